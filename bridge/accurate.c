#include "accurate.h"

#include <string.h>

#include "conversation.h"
#include "daemon.h"
#include "file_item.h"
#include "packet.h"

enum {
	MOST_NAME_BYTES = 4096
};

int
accurate_answer(struct job *job, struct line *line, const char *name)
{
	struct accurate_packet packet = {0};
	struct file_item item = {.type = 'X'};
	struct text text = {0};
	char copy[MOST_NAME_BYTES];
	int result;

	if (daemon_number(job->context, VARIABLE_ACCURATE, 0) == 0)
		return (converse_send(job, line, PACKET_ERROR, "NOACCJOB\n", 9));
	if (strlen(name) >= sizeof(copy))
		return (converse_say(job, line, "UNAVAIL"));
	strcpy(copy, name);
	packet.fname = copy;
	if (daemon_catalogued(job->context, &packet) != RC_SEEN)
		return (converse_say(job, line, "UNAVAIL"));
	item.status = packet.statp;
	file_item_print_stat(&text, &item);
	text_add(&text, "", 1);
	file_item_print_times(&text, &item);
	if (text.failed)
		result = converse_fail(job, line, "no memory");
	else if ((result = converse_say(job, line, "%s", text.bytes)) == 0)
		result = converse_say(job, line, "%s", text.bytes + strlen(text.bytes) + 1);
	text_free(&text);
	return (result);
}

int
accurate_take_seen(struct job *job, struct line *line)
{
	bool is_accurate = daemon_number(job->context, VARIABLE_ACCURATE, 0) != 0;
	char name[MOST_NAME_BYTES];
	size_t length = 0;
	struct packet packet;

	for (;;) {
		if (converse_receive(job, line, &packet) != 0)
			return (-1);
		if (packet.kind == PACKET_END)
			break;
		if (packet.kind != PACKET_DATA)
			return (converse_unexpected(job, line, &packet, "names that were seen"));
		while (line->backend.channel.data_left > 0) {
			char bytes[4096];
			size_t count;

			if (channel_receive_data(&line->backend.channel, bytes, sizeof(bytes), &count) != 0)
				return (converse_broken(job, line));
			for (size_t i = 0; i < count; i++) {
				if (length == sizeof(name))
					return (converse_fail(job, line,
					    "the backend broke the protocol: a name of more than %d bytes", MOST_NAME_BYTES));
				name[length++] = bytes[i];
				if (bytes[i] != '\0')
					continue;
				if (is_accurate && length > 1)
					daemon_mark_seen(job->context, name);
				length = 0;
			}
		}
	}
	if (length > 0)
		return (converse_fail(job, line, "the backend broke the protocol: a name that was seen has no end"));
	return (0);
}

int
accurate_keep(struct job *job, struct line *line, const char *prefix)
{
	if (prefix[0] != '/')
		return (converse_fail(job, line, "the backend broke the protocol: KEEP of \"%.200s\"", prefix));
	text_add(&job->kept, prefix, strlen(prefix) + 1);
	return (job->kept.failed ? converse_fail(job, line, "no memory") : 0);
}

bool
accurate_is_kept(const struct job *job, const char *name)
{
	const char *prefix = job->kept.bytes;

	if (name == NULL || job->kept.failed)
		return (false);
	for (size_t at = 0; at < job->kept.length; at += strlen(prefix + at) + 1)
		if (strncmp(name, prefix + at, strlen(prefix + at)) == 0)
			return (true);
	return (false);
}
