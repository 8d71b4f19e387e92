/*
 * pgkeep-fd.so: the part of pgkeep that Bacula's File Daemon loads. It knows the daemon and packets, and nothing of
 * PostgreSQL: all of that is the backend's, a process that is started for each Plugin line of a job.
 */

#include <errno.h>
#include <stdlib.h>

#include "abi.h"
#include "accurate.h"
#include "backup.h"
#include "daemon.h"
#include "job.h"
#include "query.h"
#include "restore.h"

#ifndef PGKEEP_VERSION
#define PGKEEP_VERSION "0"
#endif

#define EXPORTED __attribute__((visibility("default")))

int loadPlugin(const struct bacula_info *information, const struct bacula_functions *functions,
    struct plugin_info **plugin, struct plugin_functions **plugin_functions);
int unloadPlugin(void);

static struct job *
job_of(const struct bacula_context *context)
{
	return (context != NULL ? context->plugin : NULL);
}

static enum rc
new_plugin(struct bacula_context *context)
{
	/* Also called for every console that connects: nothing is started here. */
	context->plugin = job_new(context);
	/* An error here would only make the daemon pass over our lines without a word. */
	if (context->plugin == NULL)
		message(context, MESSAGE_FATAL, "no memory");
	return (RC_OK);
}

static enum rc
free_plugin(struct bacula_context *context)
{
	struct job *job = job_of(context);

	/* The one call that always comes: whatever still runs ends here. */
	if (job != NULL)
		job_free(job);
	context->plugin = NULL;
	return (RC_OK);
}

static enum rc
handle_event(struct bacula_context *context, struct bacula_event *event, void *value)
{
	struct job *job = job_of(context);

	if (job == NULL || event == NULL)
		return (RC_OK);
	switch (event->type) {
	case EVENT_CANCEL:
		job_cancel(job);
		break;
	case EVENT_LEVEL:
		job->level = (int)((intptr_t)value & 0xFF);
		break;
	case EVENT_SINCE:
		job->since = (intptr_t)value;
		break;
	case EVENT_PLUGIN_COMMAND:
		if (value != NULL)
			job_note_line(job, value);
		break;
	case EVENT_BACKUP_COMMAND:
		return (value != NULL ? backup_begin(job, value, DUTY_BACKUP) : RC_OK);
	case EVENT_ESTIMATE_COMMAND:
		return (value != NULL ? backup_begin(job, value, DUTY_ESTIMATE) : RC_OK);
	case EVENT_RESTORE_OBJECT:
		restore_keep_object(job, value);
		break;
	case EVENT_FEATURES:
		if (value != NULL)
			*(const char **)value = "RestoreListFiles";
		break;
	case EVENT_RESTORE_COMMAND:
		/* Never an error: the daemon would write the file itself. */
		if (value != NULL)
			restore_begin(job, value);
		break;
	case EVENT_END_RESTORE_JOB:
		restore_end(job);
		break;
	case EVENT_END_BACKUP_JOB:
		backup_end(job);
		break;
	case EVENT_JOB_END:
		/* After a good job nothing runs any more. */
		job_end_backends(job);
		break;
	case EVENT_OPTION_PLUGIN:
	case EVENT_HANDLE_BACKUP_FILE:
		if (event->type == EVENT_OPTION_PLUGIN)
			message(context, MESSAGE_FATAL, "Plugin = \"pgkeep: ...\" stands in an Options block of the FileSet; "
			    "it belongs into the Include, beside File");
		return (event->type == EVENT_HANDLE_BACKUP_FILE ? RC_CORE : RC_OK);
	case EVENT_PLUGIN_OPTIONS:
		message(context, MESSAGE_WARNING, "Plugin Options of the daemon's configuration are not used; settings belong into "
		    "pgkeep.conf or the Plugin line");
		break;
	default:
		break;
	}
	return (RC_OK);
}

static enum rc
start_backup_file(struct bacula_context *context, struct save_packet *packet)
{
	struct job *job = job_of(context);

	return (job != NULL ? backup_start_file(job, packet) : RC_ERROR);
}

static enum rc
end_backup_file(struct bacula_context *context)
{
	struct job *job = job_of(context);

	return (job != NULL ? backup_end_file(job) : RC_ERROR);
}

static enum rc
start_restore_file(struct bacula_context *context, const char *command)
{
	(void)context;
	(void)command;
	return (RC_OK);
}

static enum rc
end_restore_file(struct bacula_context *context)
{
	struct job *job = job_of(context);

	if (job != NULL)
		restore_end_file(job);
	return (RC_OK);
}

static enum rc
plugin_io(struct bacula_context *context, struct io_packet *packet)
{
	struct job *job = job_of(context);

	/* The daemon looks at status alone, and leaves the packet as the stack had it. */
	packet->status = -1;
	packet->io_errno = EINVAL;
	packet->lerror = 0;
	packet->win32 = false;
	if (job == NULL)
		return (RC_ERROR);
	if (!IS_WHOLE(packet)) {
		message(context, MESSAGE_FATAL, "this daemon's io packet has %d bytes, expected %zu", packet->pkt_size,
		    sizeof(*packet));
		return (RC_ERROR);
	}
	if (job->duty == DUTY_BACKUP)
		backup_io(job, packet);
	else if (job->duty == DUTY_RESTORE)
		restore_io(job, packet);
	return (packet->status < 0 ? RC_ERROR : RC_OK);
}

static enum rc
create_file(struct bacula_context *context, struct restore_packet *packet)
{
	struct job *job = job_of(context);

	if (job == NULL)
		return (RC_ERROR);
	restore_create_file(job, packet);
	return (RC_OK);
}

static enum rc
set_file_attributes(struct bacula_context *context, struct restore_packet *packet)
{
	struct job *job = job_of(context);

	if (job != NULL)
		restore_set_attributes(job, packet);
	return (RC_OK);
}

static enum rc
check_file(struct bacula_context *context, char *name)
{
	const struct job *job = job_of(context);

	return (job != NULL && accurate_is_kept(job, name) ? RC_SEEN : RC_OK);
}

static enum rc
handle_xacl(struct bacula_context *context, struct xacl_packet *packet)
{
	(void)context;
	/* In a backup the daemon asks until there is no more. */
	if (packet->func == XACL_ACL_BACKUP || packet->func == XACL_XATTR_BACKUP) {
		packet->count = 0;
		packet->content = NULL;
	}
	return (RC_OK);
}

static enum rc
restore_file_list(struct bacula_context *context, struct restore_list_packet *packet)
{
	struct job *job = job_of(context);

	if (job != NULL)
		restore_keep_expected(job, packet);
	return (RC_OK);
}

static enum rc
check_stream(struct bacula_context *context, struct stream_packet *packet)
{
	(void)context;
	(void)packet;
	return (RC_OK);
}

static enum rc
query_parameter(struct bacula_context *context, struct query_packet *packet)
{
	static char nothing[] = "";
	struct job *job = job_of(context);

	packet->result = nothing;
	return (job != NULL ? query_answer(job, packet) : RC_OK);
}

static struct plugin_info information_for_daemon = {
	.size = sizeof(information_for_daemon),
	.version = INTERFACE_VERSION,
	.magic = PLUGIN_MAGIC,
	.licence = "AGPLv3",
	.author = "The pgkeep authors",
	.date = "2026",
	.plugin_version = PGKEEP_VERSION,
	.description = "PostgreSQL backup and recovery"
};

static struct plugin_functions functions_for_daemon = {
	.size = sizeof(functions_for_daemon),
	.version = INTERFACE_VERSION,
	.new_plugin = new_plugin,
	.free_plugin = free_plugin,
	.handle_event = handle_event,
	.start_backup_file = start_backup_file,
	.end_backup_file = end_backup_file,
	.start_restore_file = start_restore_file,
	.end_restore_file = end_restore_file,
	.plugin_io = plugin_io,
	.create_file = create_file,
	.set_file_attributes = set_file_attributes,
	.check_file = check_file,
	.handle_xacl = handle_xacl,
	.restore_file_list = restore_file_list,
	.check_stream = check_stream,
	.query_parameter = query_parameter
};

EXPORTED int
loadPlugin(const struct bacula_info *information, const struct bacula_functions *functions,
    struct plugin_info **plugin, struct plugin_functions **plugin_functions)
{
	daemon_remember(functions);
	if (information->size != sizeof(*information) || information->version != INTERFACE_VERSION ||
	    functions->size != sizeof(*functions) || functions->version != INTERFACE_VERSION) {
		/* Where job_message is has been the same since long before. */
		message(NULL, MESSAGE_ERROR, "this daemon has plugin interface %u (%u and %u bytes), expected %d (%zu and %zu bytes): "
		    "pgkeep needs Bacula 15.0, and was not loaded", (unsigned)information->version, (unsigned)information->size,
		    (unsigned)functions->size, INTERFACE_VERSION, sizeof(*information), sizeof(*functions));
		return (RC_ERROR);
	}
	*plugin = &information_for_daemon;
	*plugin_functions = &functions_for_daemon;
	return (RC_OK);
}

EXPORTED int
unloadPlugin(void)
{
	return (RC_OK);
}
