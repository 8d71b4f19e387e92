#include "query.h"

#include <string.h>

#include "conversation.h"
#include "packet.h"

/* Whether every piece between commas is key=value, so that the text is a list of pairs and no value with a comma. */
static bool
is_list(const char *text)
{
	if (strchr(text, ',') == NULL)
		return (false);
	for (;;) {
		size_t length = strcspn(text, ",");
		const char *equals = memchr(text, '=', length);

		if (equals == NULL || equals == text)
			return (false);
		if (text[length] == '\0')
			return (true);
		text += length + 1;
	}
}

/* A list is shown under the name of what was asked. */
static void
show_command(struct text *answer, const char *parameter, const char *text)
{
	if (!is_list(text)) {
		text_print(answer, "%s\n", text);
		return;
	}
	text_print(answer, "%s: [\n", parameter);
	for (;;) {
		size_t length = strcspn(text, ",");

		text_print(answer, "%.*s\n", (int)length, text);
		if (text[length] == '\0')
			break;
		text += length + 1;
	}
	text_print(answer, "]\n");
}

static int
show_data(struct job *job, struct line *line)
{
	while (line->backend.channel.data_left > 0) {
		char bytes[4096];
		size_t count;

		if (channel_receive_data(&line->backend.channel, bytes, sizeof(bytes), &count) != 0)
			return (converse_broken(job, line));
		for (size_t i = 0; i < count; i++)
			if (bytes[i] == '\0')
				bytes[i] = '?';
		text_add(&job->answer, bytes, count);
	}
	return (0);
}

/* One packet of the answer; RC_MORE while there may be more. */
static enum rc
answer_once(struct job *job, struct line *line, const char *parameter)
{
	struct packet packet;
	const char *text;

	if (converse_receive(job, line, &packet) != 0)
		return (RC_OK);
	if (packet.kind == PACKET_END) {
		(void)converse_finish(job, line);
		return (RC_OK);
	}
	if (packet.kind == PACKET_DATA)
		return (show_data(job, line) == 0 ? RC_MORE : RC_OK);
	if (converse_text(job, line, &packet, &text) != 0)
		return (RC_OK);
	show_command(&job->answer, parameter, text);
	return (RC_MORE);
}

enum rc
query_answer(struct job *job, struct query_packet *packet)
{
	static char nothing[] = "";
	const char *parameter = packet->parameter != NULL ? packet->parameter : "";
	enum rc result = RC_OK;
	struct line *line;

	packet->result = nothing;
	if (!IS_WHOLE(packet) || packet->command == NULL || (line = job_line(job, packet->command)) == NULL)
		return (RC_OK);
	text_clear(&job->answer);
	if (line->is_running || converse_begin(job, line, DUTY_QUERY, parameter) == 0)
		result = answer_once(job, line, parameter);
	if (job->answer.bytes != NULL && !job->answer.failed)
		packet->result = job->answer.bytes;
	return (result);
}
