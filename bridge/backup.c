#include "backup.h"

#include <string.h>

#include "accurate.h"
#include "conversation.h"
#include "daemon.h"
#include "file_item.h"
#include "packet.h"

/* What startBackupFile finds, one thing at a time. */
enum found {
	FOUND_FAILURE,          /* reported */
	FOUND_ITEM,             /* the packet is filled */
	FOUND_NOTHING,          /* a question was answered: look again */
	FOUND_END               /* the backend has no more */
};

enum rc
backup_begin(struct job *job, const char *command, enum duty duty)
{
	struct line *line = job_line(job, command);

	job->current = line;
	job->saving.is_open = false;
	if (line == NULL)
		return (RC_ERROR);
	if (line->is_repeated || line->is_running || line->is_done) {
		job->duty = duty;
		converse_fail(job, line, "two Plugin lines of the FileSet are the same: %.1000s", command);
		return (RC_ERROR);
	}
	return (converse_begin(job, line, duty, NULL) == 0 ? RC_OK : RC_ERROR);
}

static bool
is_dry(const struct job *job)
{
	return (job->duty != DUTY_BACKUP);
}

/* Remember text as one of the strings that the daemon gets; they must live until the file is done. */
static char *
keep(struct text *text, const char *value)
{
	text_clear(text);
	text_add(text, value, strlen(value));
	return (text->failed ? NULL : text->bytes);
}

static const char *
behind(const char *text, const char *keyword)
{
	size_t length = strlen(keyword);

	return (strncmp(text, keyword, length) == 0 ? text + length : NULL);
}

/* The next command of a block that F ends; *text is NULL at the F. */
static int
next_in_block(struct job *job, struct line *line, const char **text)
{
	struct packet packet;

	if (converse_receive(job, line, &packet) != 0)
		return (-1);
	*text = NULL;
	return (packet.kind == PACKET_END ? 0 : converse_text(job, line, &packet, text));
}

/* Files. */

static int
receive_attributes(struct job *job, struct line *line, struct file_item *item)
{
	struct backup_file *file = &job->saving;
	bool has_times = false;
	const char *text;
	const char *value;

	for (;;) {
		if (next_in_block(job, line, &text) != 0)
			return (-1);
		if (text == NULL)
			break;
		if ((value = behind(text, "STAT:")) != NULL) {
			if (file_item_parse_stat(item, value) != 0)
				return (converse_fail(job, line, "the backend broke the protocol: STAT:%.100s", value));
		} else if ((value = behind(text, "TSTAMP:")) != NULL) {
			if (file_item_parse_times(item, value) != 0)
				return (converse_fail(job, line, "the backend broke the protocol: TSTAMP:%.100s", value));
			has_times = true;
		} else if ((value = behind(text, "LSTAT:")) != NULL) {
			if (keep(&file->target, value) == NULL)
				return (converse_fail(job, line, "no memory"));
		} else
			return (converse_fail(job, line, "the backend broke the protocol: \"%.40s\" among the attributes of %.1000s",
			    text, file->name.bytes));
	}
	if (item->type == 0 || !has_times)
		return (converse_fail(job, line, "the backend broke the protocol: %.1000s has no STAT or no TSTAMP", file->name.bytes));
	if ((item->type == 'S' || item->type == 'L') && file->target.length == 0)
		return (converse_fail(job, line, "the backend broke the protocol: the link %.1000s has no LSTAT", file->name.bytes));
	if ((item->type == 'D') != (file->name.bytes[file->name.length - 1] == '/'))
		return (converse_fail(job, line, "the backend broke the protocol: %.1000s: a slash at the end means a directory",
		    file->name.bytes));
	return (0);
}

/* What comes after the attributes: DATA, or F when there is none. */
static int
receive_data_mark(struct job *job, struct line *line, const struct file_item *item)
{
	struct backup_file *file = &job->saving;
	struct packet packet;
	const char *text;

	if (converse_receive(job, line, &packet) != 0)
		return (-1);
	if (packet.kind == PACKET_END) {
		file->is_at_end = true;
		if (item->type == 'F' && file->announced > 0)
			return (converse_fail(job, line, "%.1000s: %lld bytes were announced, and none came", file->name.bytes,
			    (long long)file->announced));
		return (0);
	}
	if (converse_text(job, line, &packet, &text) != 0)
		return (-1);
	if (strcmp(text, "DATA") != 0 || (item->type != 'F' && item->type != 'E'))
		return (converse_unexpected(job, line, &packet, "the end of a file without data"));
	file->has_data = true;
	return (0);
}

static int
receive_file(struct job *job, struct line *line, const char *name, struct save_packet *packet)
{
	static const struct {
		char letter;
		enum file_type type;
	} types[] = {{'F', FILE_REGULAR}, {'E', FILE_EMPTY}, {'D', FILE_DIRECTORY}, {'S', FILE_SYMLINK},
	    {'L', FILE_LINK_SAVED}};
	struct backup_file *file = &job->saving;
	struct file_item item = {0};

	if (name[0] != '/' || keep(&file->name, name) == NULL || keep(&file->target, "") == NULL)
		return (converse_fail(job, line, "the backend broke the protocol: FNAME:%.1000s", name));
	file->has_data = file->is_at_end = false;
	file->received = 0;
	file->slot = NULL;
	if (receive_attributes(job, line, &item) != 0)
		return (-1);
	file->announced = item.type == 'E' ? 0 : item.status.st_size;
	if (!is_dry(job) && receive_data_mark(job, line, &item) != 0)
		return (-1);
	packet->fname = file->name.bytes;
	packet->link = item.type == 'D' ? file->name.bytes : file->target.bytes;
	packet->statp = item.status;
	packet->link_fi = item.link_fi;
	packet->portable = true;
	packet->no_read = item.type != 'F' && item.type != 'E';
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (types[i].letter == item.type)
			packet->type = types[i].type;
	if (packet->type == FILE_REGULAR && item.status.st_size == 0 && !file->has_data)
		packet->type = FILE_EMPTY;
	return (0);
}

/* Objects. */

/* Read D packets up to F into content. */
static int
receive_content(struct job *job, struct line *line, size_t most)
{
	struct text *content = &job->saving.content;
	struct packet packet;

	text_clear(content);
	for (;;) {
		if (converse_receive(job, line, &packet) != 0)
			return (-1);
		if (packet.kind == PACKET_END)
			return (0);
		if (packet.kind != PACKET_DATA)
			return (converse_unexpected(job, line, &packet, "the content of an object"));
		while (line->backend.channel.data_left > 0) {
			char bytes[4096];
			size_t count;

			if (channel_receive_data(&line->backend.channel, bytes, sizeof(bytes), &count) != 0)
				return (converse_broken(job, line));
			if (content->length + count > most)
				return (converse_fail(job, line, "an object of the backend has more than %zu bytes", most));
			text_add(content, bytes, count);
			if (content->failed)
				return (converse_fail(job, line, "no memory"));
		}
	}
}

static void
fill_object(struct job *job, struct save_packet *packet, enum file_type type, struct text *content)
{
	struct backup_file *file = &job->saving;

	packet->type = type;
	packet->fname = file->name.bytes;
	packet->no_read = true;
	packet->portable = true;
	packet->statp.st_mode = S_IFREG | 0600;
	packet->statp.st_nlink = 1;
	packet->statp.st_size = (off_t)content->length;
	packet->restore_object.name = file->name.bytes;
	packet->restore_object.content = content->bytes;
	packet->restore_object.length = (int32_t)content->length;
	packet->restore_object.index = 1;
}

/* CONFIGOBJ: the questions of the restore menu. */
static enum found
receive_config_object(struct job *job, struct line *line, const char *name, struct save_packet *packet)
{
	if (name[0] == '\0' || keep(&job->saving.name, name) == NULL) {
		converse_fail(job, line, "the backend broke the protocol: CONFIGOBJ without a name");
		return (FOUND_FAILURE);
	}
	if (receive_content(job, line, OBJECT_MOST_BYTES) != 0)
		return (FOUND_FAILURE);
	if (job->saving.content.length == 0) {
		converse_fail(job, line, "the backend broke the protocol: CONFIGOBJ without content");
		return (FOUND_FAILURE);
	}
	if (is_dry(job))
		return (FOUND_NOTHING);
	fill_object(job, packet, FILE_PLUGIN_CONFIG, &job->saving.content);
	return (FOUND_ITEM);
}

/* RESTOREOBJ: kept until the last line is done. */
static enum found
receive_restore_object(struct job *job, struct line *line)
{
	struct text *content = &job->saving.content;
	uint64_t announced;
	const char *length;
	const char *text;

	if (next_in_block(job, line, &text) != 0)
		return (FOUND_FAILURE);
	length = text != NULL ? behind(text, "RESTOREOBJ_LEN:") : NULL;
	if (length == NULL || parse_number(length, strlen(length), OBJECT_MOST_BYTES, &announced) != 0) {
		converse_fail(job, line, "the backend broke the protocol: RESTOREOBJ without a length of at most %d bytes",
		    OBJECT_MOST_BYTES);
		return (FOUND_FAILURE);
	}
	if (receive_content(job, line, announced) != 0)
		return (FOUND_FAILURE);
	if (content->length != announced) {
		converse_fail(job, line, "a restore object has %zu bytes, expected %llu", content->length,
		    (unsigned long long)announced);
		return (FOUND_FAILURE);
	}
	if (!is_dry(job) && collect_object(&job->collected, line->command, content->bytes != NULL ? content->bytes : "",
	    content->length) != 0) {
		converse_fail(job, line, "a restore object and its Plugin line have more than %d bytes", OBJECT_MOST_BYTES);
		return (FOUND_FAILURE);
	}
	return (FOUND_NOTHING);
}

static int32_t
object_status(const char *word)
{
	return (strcmp(word, "OK") == 0 ? 'T' : strcmp(word, "WARNING") == 0 ? 'W' : strcmp(word, "ERROR") == 0 ? 'e' :
	    strcmp(word, "FATAL") == 0 ? 'f' : 'U');
}

/* PLUGINOBJ: what the catalog lists as one thing, a database for instance. */
static enum found
receive_plugin_object(struct job *job, struct line *line, const char *path, struct save_packet *packet)
{
	static const char *const keys[] = {"PLUGINOBJ_CAT:", "PLUGINOBJ_TYPE:", "PLUGINOBJ_NAME:", "PLUGINOBJ_SRC:",
	    "PLUGINOBJ_UUID:"};
	enum { KEYS = sizeof(keys) / sizeof(keys[0]) };
	struct plugin_object object = {.status = 'U', .count = 1};
	struct backup_file *file = &job->saving;
	uint64_t number;
	const char *value;
	const char *text;

	/* The daemon joins the fields by blanks, and an empty one would shift those behind it. */
	for (size_t i = 0; i < KEYS; i++)
		if (keep(&file->fields[i], "-") == NULL)
			goto no_memory;
	if (path[0] != '/' || keep(&file->name, path) == NULL) {
		converse_fail(job, line, "the backend broke the protocol: PLUGINOBJ:%.1000s", path);
		return (FOUND_FAILURE);
	}
	for (;;) {
		size_t key = 0;

		if (next_in_block(job, line, &text) != 0)
			return (FOUND_FAILURE);
		if (text == NULL)
			break;
		while (key < KEYS && (value = behind(text, keys[key])) == NULL)
			key++;
		if (key < KEYS) {
			if (value[0] != '\0' && keep(&file->fields[key], value) == NULL)
				goto no_memory;
		} else if ((value = behind(text, "PLUGINOBJ_SIZE:")) != NULL &&
		    parse_number(value, strlen(value), INT64_MAX, &number) == 0)
			object.size = number;
		else if ((value = behind(text, "PLUGINOBJ_COUNT:")) != NULL &&
		    parse_number(value, strlen(value), UINT32_MAX, &number) == 0)
			object.count = (uint32_t)number;
		else if ((value = behind(text, "PLUGINOBJ_STATUS:")) != NULL)
			object.status = object_status(value);
		else {
			converse_fail(job, line, "the backend broke the protocol: \"%.100s\" in a plugin object", text);
			return (FOUND_FAILURE);
		}
	}
	if (is_dry(job))
		return (FOUND_NOTHING);
	object.path = file->name.bytes;
	object.plugin_name = line->command;
	object.category = file->fields[0].bytes;
	object.type = file->fields[1].bytes;
	object.name = file->fields[2].bytes;
	object.source = file->fields[3].bytes;
	object.uuid = file->fields[4].bytes;
	packet->type = FILE_PLUGIN_OBJECT;
	packet->fname = file->name.bytes;
	packet->no_read = true;
	packet->portable = true;
	packet->statp.st_mode = S_IFREG | 0600;
	packet->statp.st_nlink = 1;
	packet->plugin_object = object;
	return (FOUND_ITEM);

no_memory:
	converse_fail(job, line, "no memory");
	return (FOUND_FAILURE);
}

/* What stands between files. */
static enum found
receive_item(struct job *job, struct line *line, struct save_packet *packet)
{
	struct packet received;
	const char *value;
	const char *text;
	int result;

	if (converse_receive(job, line, &received) != 0)
		return (FOUND_FAILURE);
	if (received.kind == PACKET_END)
		return (FOUND_END);
	if (converse_text(job, line, &received, &text) != 0)
		return (FOUND_FAILURE);
	if ((value = behind(text, "FNAME:")) != NULL)
		return (receive_file(job, line, value, packet) == 0 ? FOUND_ITEM : FOUND_FAILURE);
	if ((value = behind(text, "CONFIGOBJ:")) != NULL)
		return (receive_config_object(job, line, value, packet));
	if (behind(text, "RESTOREOBJ:") != NULL)
		return (receive_restore_object(job, line));
	if ((value = behind(text, "PLUGINOBJ:")) != NULL)
		return (receive_plugin_object(job, line, value, packet));
	if ((value = behind(text, "CHECKGET:")) != NULL)
		result = accurate_answer(job, line, value);
	else if (strcmp(text, "SEEN") == 0)
		result = accurate_take_seen(job, line);
	else if ((value = behind(text, "KEEP:")) != NULL)
		result = accurate_keep(job, line, value);
	else if (strcmp(text, "FileIndex") == 0)
		result = converse_say(job, line, "%d", (int)daemon_number(job->context, VARIABLE_FILE_INDEX, 0));
	else
		result = converse_unexpected(job, line, &received, "a file, an object, a question or the end");
	return (result == 0 ? FOUND_NOTHING : FOUND_FAILURE);
}

/* Whether all lines of the FileSet ended well; only then is there something to restore from. */
static bool
all_lines_are_done(const struct job *job)
{
	for (const struct line *line = job->lines; line != NULL; line = line->next)
		if (!line->is_done)
			return (false);
	return (true);
}

enum rc
backup_start_file(struct job *job, struct save_packet *packet)
{
	struct line *line = job->current;
	enum found found;

	if (line == NULL || line->has_failed)
		return (RC_ERROR);
	if (!IS_WHOLE(packet)) {
		converse_fail(job, line, "this daemon's save packet has %d bytes, expected %zu", packet->pkt_size, sizeof(*packet));
		return (RC_ERROR);
	}
	if (job_is_cancelled(job) || (!is_dry(job) && daemon_gave_up(job->context))) {
		if (line->is_running)
			backend_cancel(&line->backend);
		line->is_running = false;
		line->has_failed = true;
		return (RC_ERROR);
	}
	do
		found = line->is_running ? receive_item(job, line, packet) : FOUND_END;
	while (found == FOUND_NOTHING);
	if (found == FOUND_END && line->is_running && converse_finish(job, line) != 0)
		found = FOUND_FAILURE;
	if (found == FOUND_FAILURE)
		return (RC_ERROR);
	if (found == FOUND_END && !is_dry(job) && job->collected.length > 0 && !job->is_collected_saved &&
	    all_lines_are_done(job)) {
		if (keep(&job->saving.name, OBJECT_NAME) == NULL) {
			converse_fail(job, line, "out of memory");
			return (RC_ERROR);
		}
		fill_object(job, packet, FILE_RESTORE_OBJECT, &job->collected);
		job->is_collected_saved = true;
		found = FOUND_ITEM;
	}
	job->saving.is_open = found == FOUND_ITEM;
	return (found == FOUND_ITEM ? RC_OK : RC_NOTHING_MORE);
}

enum rc
backup_end_file(struct job *job)
{
	struct backup_file *file = &job->saving;
	struct line *line = job->current;

	if (line == NULL || line->has_failed)
		return (RC_ERROR);
	/* The daemon left before the end: it says itself what was wrong with its own side. The two are out of step. */
	if (file->is_open && file->has_data && !file->is_at_end && !is_dry(job)) {
		converse_fail(job, line, "the daemon stopped reading %.1000s after %lld bytes", file->name.bytes,
		    (long long)file->received);
		return (RC_ERROR);
	}
	file->is_open = false;
	file->has_data = false;
	/* startBackupFile knows when there is no more. */
	return (RC_MORE);
}

void
backup_end(struct job *job)
{
	bool is_given_up = job_is_cancelled(job) || daemon_gave_up(job->context);

	for (const struct line *line = job->lines; line != NULL; line = line->next)
		is_given_up = is_given_up || line->has_failed;
	if (!is_given_up && job->collected.length > 0 && !job->is_collected_saved)
		message(job->context, MESSAGE_FATAL, "a Plugin line of the FileSet was not run, so that the restore object of the "
		    "job was not saved: nothing of it could be restored");
	job_end_backends(job);
}
