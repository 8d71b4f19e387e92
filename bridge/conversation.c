#include "conversation.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "daemon.h"
#include "packet.h"

/* The number of pgkeep's own protocol, version 1. */
#define GREETING "Hello pgkeep 1001"

enum message_type
converse_severity(const struct job *job)
{
	/* What a console asks has no status; its error is shown there. */
	return (job->duty == DUTY_BACKUP || job->duty == DUTY_RESTORE || job->duty == DUTY_NONE ? MESSAGE_FATAL :
	    MESSAGE_ERROR);
}

/* A console that asks a question gets the error as its answer. */
static void
report(struct job *job, const char *text)
{
	if (job->duty == DUTY_QUERY) {
		text_clear(&job->answer);
		text_print(&job->answer, "error=%.*s\n", (int)strcspn(text, "\n"), text);
	} else if (job->duty == DUTY_RESTORE && !job->is_restore_over) {
		/*
		 * Not yet fatal: the daemon would end here and now, and wait two minutes for its own connection to close while
		 * the Storage Daemon still sends (Bacula 15.0.3 with TLS). What comes is passed over, and the job fails at its end.
		 */
		message_of_backend(job->context, MESSAGE_ERROR, text);
		if (job->restore_failed_at == 0)
			job->restore_failed_at = clock_milliseconds();
	} else
		message_of_backend(job->context, converse_severity(job), text);
}

static int
end_failed(struct line *line)
{
	line->has_failed = true;
	if (line->is_running)
		backend_cancel(&line->backend);
	line->is_running = false;
	return (-1);
}

int
converse_fail(struct job *job, struct line *line, const char *format, ...)
{
	char text[1600];
	va_list list;

	va_start(list, format);
	vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	if (!line->has_failed && !job_is_cancelled(job))
		report(job, text);
	return (end_failed(line));
}

int
converse_broken(struct job *job, struct line *line)
{
	char reason[sizeof(line->backend.channel.reason)];
	char end[1200];
	char text[1600];
	struct packet packet;

	if (line->has_failed)
		return (end_failed(line));
	if (channel_last_words(&line->backend.channel, &packet)) {
		report(job, packet.bytes);
		line->has_failed = true;
		line->backend.channel.state = CHANNEL_CLOSED;
		return (end_failed(line));
	}
	snprintf(reason, sizeof(reason), "%s", line->backend.channel.reason);
	end_failed(line);
	backend_describe(&line->backend, line->backend.channel.state == CHANNEL_CLOSED, end, sizeof(end));
	snprintf(text, sizeof(text), "%s%s", reason, end);
	if (!job_is_cancelled(job) && line->backend.channel.state != CHANNEL_CANCELLED)
		report(job, text);
	return (-1);
}

int
converse_send(struct job *job, struct line *line, char kind, const void *payload, size_t length)
{
	if (!line->is_running)
		return (-1);
	if (channel_send(&line->backend.channel, kind, payload, length) != 0)
		return (converse_broken(job, line));
	return (0);
}

int
converse_say(struct job *job, struct line *line, const char *format, ...)
{
	struct text text = {0};
	va_list list;
	int result;

	va_start(list, format);
	text_print_list(&text, format, list);
	va_end(list);
	if (!text.failed && memchr(text.bytes, '\n', text.length) != NULL)
		result = converse_fail(job, line, "a newline cannot be told to the backend: %.40s", text.bytes);
	else {
		text_add(&text, "\n", 1);
		result = text.failed ? converse_fail(job, line, "no memory") :
		    converse_send(job, line, PACKET_COMMAND, text.bytes, text.length);
	}
	text_free(&text);
	return (result);
}

int
converse_receive_answer(struct job *job, struct line *line, struct packet *packet)
{
	if (!line->is_running)
		return (-1);
	if (channel_receive(&line->backend.channel, packet) != 0)
		return (converse_broken(job, line));
	if (packet->kind == PACKET_FATAL) {
		if (!line->has_failed)
			report(job, packet->bytes);
		return (end_failed(line));
	}
	return (0);
}

int
converse_receive(struct job *job, struct line *line, struct packet *packet)
{
	if (converse_receive_answer(job, line, packet) != 0)
		return (-1);
	if (packet->kind == PACKET_ERROR) {
		report(job, packet->bytes);
		return (end_failed(line));
	}
	return (0);
}

int
converse_text(struct job *job, struct line *line, const struct packet *packet, const char **text)
{
	char *bytes = line->backend.channel.payload.bytes;
	size_t length = packet->length;

	if (packet->kind != PACKET_COMMAND)
		return (converse_unexpected(job, line, packet, "a command"));
	if (bytes[length - 1] == '\n')
		bytes[--length] = '\0';
	if (strlen(bytes) != length || memchr(bytes, '\n', length) != NULL)
		return (converse_fail(job, line, "the backend broke the protocol: a command of more than one line"));
	*text = bytes;
	return (0);
}

int
converse_unexpected(struct job *job, struct line *line, const struct packet *packet, const char *expected)
{
	if (packet->kind == PACKET_COMMAND) {
		/* Its keyword: what follows may be anything. */
		int length = (int)strcspn(packet->bytes, ":= \n");

		return (converse_fail(job, line, "the backend broke the protocol: expected %s, found the command \"%.*s\"",
		    expected, length < 40 ? length : 40, packet->bytes));
	}
	return (converse_fail(job, line, "the backend broke the protocol: expected %s, found a %c packet of %zu bytes", expected,
	    packet->kind, packet->length));
}

int
converse_expect_end(struct job *job, struct line *line)
{
	struct packet packet;

	if (converse_receive(job, line, &packet) != 0)
		return (-1);
	return (packet.kind == PACKET_END ? 0 : converse_unexpected(job, line, &packet, "an F packet"));
}

static int
say_end(struct job *job, struct line *line)
{
	return (converse_send(job, line, PACKET_END, NULL, 0));
}

static int
greet(struct job *job, struct line *line)
{
	struct packet packet;
	const char *text;

	if (converse_say(job, line, GREETING) != 0 || converse_receive(job, line, &packet) != 0 ||
	    converse_text(job, line, &packet, &text) != 0)
		return (-1);
	if (strcmp(text, "Hello Bacula") != 0)
		return (converse_fail(job, line, "the backend answered the greeting with \"%.40s\"", text));
	return (0);
}

/* One key of the job, when it has a value. */
static int
say_key(struct job *job, struct line *line, const char *key, const char *value)
{
	return (value != NULL ? converse_say(job, line, "%s=%s", key, value) : 0);
}

static int
say_variable(struct job *job, struct line *line, const char *key, enum variable variable)
{
	return (say_key(job, line, key, daemon_text(job->context, variable)));
}

static int
describe_job(struct job *job, struct line *line)
{
	struct bacula_context *context = job->context;
	const char *previous = daemon_text(context, VARIABLE_PREV_JOB_NAME);
	char level[2] = {(char)job->level, '\0'};
	char replace[2] = {(char)daemon_number(context, VARIABLE_REPLACE, 0), '\0'};
	char type[2] = {(char)daemon_number(context, VARIABLE_TYPE, 0), '\0'};
	bool is_restore = job->duty == DUTY_RESTORE;
	bool has_level = job->duty == DUTY_BACKUP || job->duty == DUTY_ESTIMATE;

	if (converse_say(job, line, "Job") != 0 ||
	    say_variable(job, line, "Name", VARIABLE_JOB_NAME) != 0 ||
	    converse_say(job, line, "JobID=%d", (int)daemon_number(context, VARIABLE_JOB_ID, 0)) != 0 ||
	    converse_say(job, line, "Type=%c", is_restore ? 'R' : job->duty == DUTY_BACKUP ? 'B' : 'E') != 0)
		return (-1);
	if (has_level && level[0] > ' ' && say_key(job, line, "Level", level) != 0)
		return (-1);
	if (has_level && job->since != 0 && converse_say(job, line, "Since=%lld", (long long)job->since) != 0)
		return (-1);
	if (is_restore && (say_variable(job, line, "Where", VARIABLE_WHERE) != 0 ||
	    say_variable(job, line, "RegexWhere", VARIABLE_REGEX_WHERE) != 0 ||
	    (replace[0] > ' ' && say_key(job, line, "Replace", replace) != 0)))
		return (-1);
	if (!is_restore && previous != NULL && say_key(job, line, "PrevJobName", previous) != 0)
		return (-1);
	if (converse_say(job, line, "Namespace=@postgresql") != 0 ||
	    say_variable(job, line, "WorkingDir", VARIABLE_WORKING_DIR) != 0 ||
	    say_variable(job, line, "SysconfigPath", VARIABLE_SYSCONFIG_PATH) != 0 ||
	    say_variable(job, line, "ExePath", VARIABLE_EXE_PATH) != 0 ||
	    converse_say(job, line, "Accurate=%d", daemon_number(context, VARIABLE_ACCURATE, 0) != 0) != 0 ||
	    say_variable(job, line, "FDName", VARIABLE_FD_NAME) != 0 ||
	    say_variable(job, line, "ClientName", VARIABLE_CLIENT) != 0 ||
	    say_variable(job, line, "FDVersion", VARIABLE_VERSION) != 0 ||
	    (type[0] > ' ' && say_key(job, line, "JobType", type) != 0) ||
	    (!is_restore && converse_say(job, line, "Lines=%u %u", job->line_count, line->number) != 0) ||
	    (!is_restore && converse_say(job, line, "Run=%lld", (long long)job->begun) != 0))
		return (-1);
	if (line->backend.has_ring && converse_say(job, line, "Ring=3 %d %d", RING_SLOTS, RING_SLOT_BYTES) != 0)
		return (-1);
	return (say_end(job, line) == 0 ? converse_expect_end(job, line) : -1);
}

static int
describe_parameters(struct job *job, struct line *line, const char *query)
{
	if (converse_say(job, line, "Params") != 0)
		return (-1);
	for (size_t i = 0; i < line->parameters.count; i++)
		if (converse_say(job, line, "%s", line->parameters.pairs[i]) != 0)
			return (-1);
	if (query != NULL && converse_say(job, line, "query=%s", query) != 0)
		return (-1);
	return (say_end(job, line) == 0 ? converse_expect_end(job, line) : -1);
}

/* The raw text that the user's answers in the restore menu make, for this line or for none. */
static int
describe_options(struct job *job, struct line *line)
{
	for (size_t i = 0; i < job->objects.count; i++) {
		const struct object *object = &job->objects.list[i];
		struct packet packet;
		const char *text;

		if (object->type != FILE_PLUGIN_CONFIG_FILLED || strcmp(object->command, line->command) != 0)
			continue;
		if (converse_say(job, line, "RESTOREOPTIONS:%s", object->command) != 0)
			return (-1);
		for (size_t at = 0; at < object->length; at += PACKET_MAX_PAYLOAD_BYTES) {
			size_t left = object->length - at;

			if (converse_send(job, line, PACKET_DATA, object->content + at,
			    left < PACKET_MAX_PAYLOAD_BYTES ? left : PACKET_MAX_PAYLOAD_BYTES) != 0)
				return (-1);
		}
		if (say_end(job, line) != 0 || converse_receive(job, line, &packet) != 0 ||
		    converse_text(job, line, &packet, &text) != 0)
			return (-1);
		if (strcmp(text, "OK") != 0)
			return (converse_unexpected(job, line, &packet, "OK"));
	}
	return (0);
}

int
converse_begin(struct job *job, struct line *line, enum duty duty, const char *query)
{
	static const char *const starts[] = {"", "BackupStart", "EstimateStart", "ListingStart", "QueryStart",
	    "RestoreStart"};
	char wrong[1024];
	const char *wrong_line;
	int wake;

	job->duty = duty;
	if (line->has_failed)
		return (-1);
	parameters_free(&line->parameters);
	if (parameters_parse(&line->parameters, line->command, duty == DUTY_ESTIMATE, &wrong_line) != 0)
		return (converse_fail(job, line, "the Plugin line cannot be read: %s", wrong_line));
	if (line->parameters.has_listing)
		job->duty = duty = DUTY_LISTING;
	if ((wake = job_wake(job)) == -1)
		return (converse_fail(job, line, "no descriptor is left"));
	if (job_is_cancelled(job))
		return (end_failed(line));
	if (backend_start(&line->backend, job->context, wake, wrong, sizeof(wrong)) != 0)
		return (converse_fail(job, line, "%s", wrong));
	line->is_running = true;
	if (greet(job, line) != 0 || describe_job(job, line) != 0 || describe_parameters(job, line, query) != 0 ||
	    (duty == DUTY_RESTORE && describe_options(job, line) != 0))
		return (-1);
	if (converse_say(job, line, "%s", starts[duty]) != 0)
		return (-1);
	return (converse_expect_end(job, line));
}

int
converse_finish(struct job *job, struct line *line)
{
	char end[1200];

	if (job->duty != DUTY_QUERY &&
	    (converse_say(job, line, "END") != 0 || converse_expect_end(job, line) != 0))
		return (-1);
	if (converse_send(job, line, PACKET_TERMINATE, NULL, 0) != 0)
		return (-1);
	line->is_running = false;
	if (backend_finish(&line->backend) != 0) {
		backend_describe(&line->backend, true, end, sizeof(end));
		return (converse_fail(job, line, "the backend did not end well%s", end));
	}
	line->is_done = true;
	return (0);
}
