#include "restore.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "conversation.h"
#include "daemon.h"
#include "file_item.h"
#include "packet.h"

enum {
	/* Less than this goes as a D packet: cheaper than a slot's way there and back. */
	SMALL_BYTES = 16 << 10,
	EXPECTED_CHUNK = 256 << 10,
	/* How long a restore that has failed may go on to be read; see report() in conversation.c. */
	DRAIN_MILLISECONDS = 60000
};

/* What comes before the first file. */

void
restore_keep_object(struct job *job, const struct restore_object_packet *packet)
{
	const char *wrong;

	if (packet == NULL)
		return;
	wrong = IS_WHOLE(packet) ? objects_keep(&job->objects, packet) : "this daemon's restore object packet has another size";
	if (wrong != NULL)
		message(job->context, MESSAGE_FATAL, "%s", wrong);
}

void
restore_keep_expected(struct job *job, const struct restore_list_packet *packet)
{
	if (packet == NULL) {
		job->expected.is_complete = true;
		return;
	}
	if (!IS_WHOLE(packet)) {
		job->expected.has_failed = EINVAL;
		return;
	}
	expected_add(&job->expected, daemon_text(job->context, VARIABLE_WORKING_DIR), packet);
}

static int
expect_ok(struct job *job, struct line *line)
{
	struct packet packet;
	const char *text;

	if (converse_receive(job, line, &packet) != 0 || converse_text(job, line, &packet, &text) != 0)
		return (-1);
	return (strcmp(text, "OK") == 0 ? 0 : converse_unexpected(job, line, &packet, "OK"));
}

static int
send_data(struct job *job, struct line *line, const char *data, size_t length)
{
	while (length > 0) {
		size_t piece = length < PACKET_MAX_PAYLOAD_BYTES ? length : PACKET_MAX_PAYLOAD_BYTES;

		if (converse_send(job, line, PACKET_DATA, data, piece) != 0)
			return (-1);
		data += piece;
		length -= piece;
	}
	return (0);
}

/* The blobs that the backends of this line and of others had kept, in the order in which they were made. */
static int
send_objects(struct job *job, struct line *line)
{
	for (size_t i = 0; i < job->objects.count; i++) {
		const struct object *object = &job->objects.list[i];

		bool is_own = strcmp(object->command, line->command) == 0;

		if (object->type != FILE_RESTORE_OBJECT)
			continue;
		if (converse_say(job, line, "RESTOREOBJ:%s", is_own ? OBJECT_NAME : OBJECT_OF_ANOTHER_LINE) != 0 ||
		    converse_say(job, line, "RESTOREOBJ_LEN:%zu", object->length) != 0 ||
		    converse_say(job, line, "RESTOREOBJ_JOB:%u", (unsigned)object->job_id) != 0 ||
		    send_data(job, line, object->content, object->length) != 0 ||
		    converse_send(job, line, PACKET_END, NULL, 0) != 0 || expect_ok(job, line) != 0)
			return (-1);
	}
	return (0);
}

/* The files that are going to come. An old Director does not have the daemon told: then nothing is said. */
static int
send_expected(struct job *job, struct line *line)
{
	struct expected *expected = &job->expected;
	uint64_t sent = 0;
	char *buffer;
	int result = -1;

	if (!expected->is_complete && !expected->has_failed)
		return (0);
	if (expected->has_failed || (expected->buffer.length > 0 && expected_flush(expected) != 0))
		return (converse_fail(job, line, "the list of files to restore cannot be kept in the daemon's working directory: "
		    "error %d", expected->has_failed));
	if ((buffer = malloc(EXPECTED_CHUNK)) == NULL)
		return (converse_fail(job, line, "no memory"));
	if (converse_say(job, line, "EXPECT") != 0)
		goto done;
	while (sent < expected->bytes) {
		ssize_t count = pread(expected->descriptor, buffer, EXPECTED_CHUNK, (off_t)sent);

		if (count == -1 && errno == EINTR)
			continue;
		if (count <= 0) {
			converse_fail(job, line, "the list of files to restore cannot be read again: error %d", errno);
			goto done;
		}
		if (converse_send(job, line, PACKET_DATA, buffer, (size_t)count) != 0)
			goto done;
		sent += (uint64_t)count;
	}
	if (converse_send(job, line, PACKET_END, NULL, 0) == 0)
		result = expect_ok(job, line);

done:
	free(buffer);
	return (result);
}

/* The backend reported an error for one file: an error of the job, whose other files go on. */
static void
refuse_file(struct job *job, const struct packet *packet)
{
	message_of_backend(job->context, MESSAGE_ERROR, packet->bytes);
	job->restoring.is_refused = true;
}

/* Say why the file that is open does not come to its end. */
static void
fail_file(struct job *job, const char *reason)
{
	struct restore_file *file = &job->restoring;
	struct line *line = job->current;
	struct packet packet;
	const char *text;

	if (!file->is_open || line == NULL || !line->is_running)
		goto done;
	if (file->has_data) {
		if (converse_send(job, line, PACKET_END, NULL, 0) != 0)
			goto done;
		if (!file->is_refused && converse_receive_answer(job, line, &packet) != 0)
			goto done;
		if (!file->is_refused && packet.kind == PACKET_ERROR)
			refuse_file(job, &packet);
		else if (!file->is_refused && converse_text(job, line, &packet, &text) != 0)
			goto done;
	}
	if (!file->is_refused)
		(void)converse_say(job, line, "FAILED:%s", reason);

done:
	file->is_open = false;
}

void
restore_begin(struct job *job, const char *command)
{
	struct line *line = job_line(job, command);

	/* Before another line's backend is spoken to. */
	fail_file(job, "the daemon went on to another file");
	job->duty = DUTY_RESTORE;
	job->current = line;
	if (line == NULL || line->has_failed || line->is_running)
		return;
	if (converse_begin(job, line, DUTY_RESTORE, NULL) == 0 && send_objects(job, line) == 0)
		(void)send_expected(job, line);
}

/* One file. */

static char
letter_of(int32_t type)
{
	return (type == FILE_REGULAR ? 'F' : type == FILE_EMPTY ? 'E' : type == FILE_DIRECTORY ? 'D' :
	    type == FILE_SYMLINK ? 'S' : type == FILE_LINK_SAVED ? 'L' : '\0');
}

static int
describe_file(struct job *job, struct line *line, const struct restore_packet *packet, char letter)
{
	struct file_item item = {.type = letter, .link_fi = packet->link_fi, .status = packet->statp};
	struct text text = {0};
	int result = -1;

	file_item_print_stat(&text, &item);
	text_add(&text, "", 1);
	file_item_print_times(&text, &item);
	if (text.failed) {
		converse_fail(job, line, "no memory");
		goto done;
	}
	if (converse_say(job, line, "FNAME:%s", packet->ofname) != 0 || converse_say(job, line, "%s", text.bytes) != 0 ||
	    converse_say(job, line, "%s", text.bytes + strlen(text.bytes) + 1) != 0)
		goto done;
	if ((letter == 'S' || letter == 'L') &&
	    converse_say(job, line, "LSTAT:%s", packet->olname != NULL ? packet->olname : "") != 0)
		goto done;
	result = converse_send(job, line, PACKET_END, NULL, 0);

done:
	text_free(&text);
	return (result);
}

void
restore_create_file(struct job *job, struct restore_packet *packet)
{
	struct restore_file *file = &job->restoring;
	struct line *line = job->current;
	struct packet answer;
	const char *text;
	char letter;

	if (!IS_WHOLE(packet)) {
		message(job->context, MESSAGE_FATAL, "this daemon's restore packet has %d bytes, expected %zu", packet->pkt_size,
		    sizeof(*packet));
		return;
	}
	packet->create_status = CREATE_ERROR;
	fail_file(job, "the daemon went on to another file");
	if (line != NULL && line->has_failed) {
		packet->create_status = CREATE_SKIP;
		if (job->restore_failed_at != 0 && clock_milliseconds() - job->restore_failed_at > DRAIN_MILLISECONDS) {
			job->restore_failed_at = 0;
			message(job->context, MESSAGE_FATAL, "the restore has failed; what else comes is not waited for");
		}
		return;
	}
	if (line == NULL || !line->is_running || packet->ofname == NULL)
		return;
	if (job_is_cancelled(job))
		return;
	/* Attributes that a file was given later: we never save such. */
	if (packet->stream == STREAM_ATTRIBUTES_UPDATE) {
		packet->create_status = CREATE_SKIP;
		return;
	}
	if ((letter = letter_of(packet->type)) == '\0') {
		message(job->context, MESSAGE_ERROR, "%.1000s: a file of type %d cannot be restored", packet->ofname, packet->type);
		return;
	}
	if (describe_file(job, line, packet, letter) != 0 || converse_receive_answer(job, line, &answer) != 0)
		return;
	*file = (struct restore_file){0};
	if (answer.kind == PACKET_ERROR) {
		refuse_file(job, &answer);
		return;
	}
	if (converse_text(job, line, &answer, &text) != 0)
		return;
	if (strcmp(text, "SKIP") == 0)
		packet->create_status = CREATE_SKIP;
	else if (strcmp(text, "OK") == 0) {
		packet->create_status = CREATE_EXTRACT;
		file->is_open = true;
	} else
		(void)converse_unexpected(job, line, &answer, "OK or SKIP");
}

/* Data. */

/* Look whether the backend has something against the file already, without waiting for it. */
static int
listen_for_refusal(struct job *job, struct line *line)
{
	struct packet packet;
	bool is_pending;

	if (channel_listen(&line->backend.channel, &is_pending) != 0)
		return (converse_broken(job, line));
	if (!is_pending)
		return (0);
	if (converse_receive_answer(job, line, &packet) != 0)
		return (-1);
	if (packet.kind != PACKET_ERROR)
		return (converse_unexpected(job, line, &packet, "nothing while data is sent"));
	refuse_file(job, &packet);
	return (-1);
}

/* A slot to fill, waiting for one to be given back if there is none; -1 when the file can't go on. */
static int
await_slot(struct job *job, struct line *line)
{
	int slot;

	while ((slot = ring_free_slot(&line->backend.ring)) == -1) {
		bool is_pending;

		if (channel_wait(&line->backend.channel, &is_pending) != 0)
			return (converse_broken(job, line));
		if (is_pending && listen_for_refusal(job, line) != 0)
			return (-1);
	}
	return (slot);
}

/* Send what is in the slot that is being filled. */
static int
flush_slot(struct job *job, struct line *line)
{
	struct restore_file *file = &job->restoring;
	struct ring *ring = &line->backend.ring;
	size_t filled = file->filled;
	char text[32];
	int length;
	int slot;

	file->filled = 0;
	if (filled == 0)
		return (0);
	slot = ring_free_slot(ring);
	if (filled < SMALL_BYTES)
		return (converse_send(job, line, PACKET_DATA, ring_content(ring, (unsigned)slot, filled), filled));
	ring_lend(ring, (unsigned)slot);
	length = snprintf(text, sizeof(text), "%d %zu\n", slot, filled);
	return (converse_send(job, line, PACKET_SLOT, text, (size_t)length));
}

static int
write_data(struct job *job, struct line *line, const char *data, size_t count)
{
	struct restore_file *file = &job->restoring;
	struct ring *ring = &line->backend.ring;

	if (!file->has_data && converse_say(job, line, "DATA") != 0)
		return (-1);
	file->has_data = true;
	if (!line->backend.has_ring) {
		if (send_data(job, line, data, count) != 0)
			return (-1);
		file->written += count;
		return (listen_for_refusal(job, line));
	}
	while (count > 0) {
		int slot = await_slot(job, line);
		size_t piece = RING_SLOT_BYTES - file->filled;

		if (slot == -1)
			return (-1);
		if (piece > count)
			piece = count;
		memcpy(ring_content(ring, (unsigned)slot, RING_SLOT_BYTES) + file->filled, data, piece);
		file->filled += piece;
		file->written += piece;
		data += piece;
		count -= piece;
		if (file->filled == RING_SLOT_BYTES && (flush_slot(job, line) != 0 || listen_for_refusal(job, line) != 0))
			return (-1);
	}
	return (0);
}

/* The file has come whole, and its attributes: let the backend say that it has it. */
static int
complete_file(struct job *job, struct line *line)
{
	struct restore_file *file = &job->restoring;
	struct packet packet;
	const char *text;

	file->is_open = false;
	if (file->has_data) {
		if ((!file->is_refused && flush_slot(job, line) != 0) || converse_send(job, line, PACKET_END, NULL, 0) != 0)
			return (-1);
		/* Its error was the answer to this F. */
		if (file->is_refused)
			return (-1);
		if (converse_receive_answer(job, line, &packet) != 0)
			return (-1);
		if (packet.kind == PACKET_ERROR) {
			refuse_file(job, &packet);
			return (-1);
		}
		if (converse_text(job, line, &packet, &text) != 0)
			return (-1);
		if (strcmp(text, "OK") != 0)
			return (converse_unexpected(job, line, &packet, "OK"));
	}
	return (converse_say(job, line, "COMPLETE:%llu", (unsigned long long)file->written));
}

void
restore_io(struct job *job, struct io_packet *packet)
{
	struct restore_file *file = &job->restoring;
	struct line *line = job->current;
	bool is_well = line != NULL && line->is_running && file->is_open && !file->is_refused;

	packet->status = -1;
	packet->io_errno = EIO;
	switch (packet->func) {
	case IO_OPEN:
		if (!is_well)
			return;
		packet->status = 0;
		break;
	case IO_WRITE:
		if (job_is_cancelled(job)) {
			packet->io_errno = EINTR;
			return;
		}
		if (!is_well || packet->count < 0 || (packet->count > 0 && packet->buf == NULL))
			return;
		if (packet->count > 0 && write_data(job, line, packet->buf, (size_t)packet->count) != 0)
			return;
		packet->status = packet->count;
		break;
	case IO_CLOSE:
		/* Without attributes it is not whole: endRestoreFile says so to the backend. */
		if (line != NULL && line->is_running && file->is_open && file->has_attributes && complete_file(job, line) != 0)
			return;
		packet->status = 0;
		break;
	case IO_SEEK:
		/* Sparse files and offsets: we save neither. */
		if (is_well)
			message(job->context, MESSAGE_ERROR, "the daemon wants to leave a hole in a file, which is not supported");
		file->has_attributes = false;
		packet->offset = -1;
		packet->io_errno = ESPIPE;
		return;
	default:
		packet->io_errno = EINVAL;
		return;
	}
	packet->io_errno = 0;
}

void
restore_set_attributes(struct job *job, struct restore_packet *packet)
{
	if (IS_WHOLE(packet))
		job->restoring.has_attributes = true;
}

void
restore_end_file(struct job *job)
{
	fail_file(job, "the daemon gave up on it");
}

void
restore_end(struct job *job)
{
	bool is_over = job_is_cancelled(job) || daemon_gave_up(job->context);

	if (!is_over)
		fail_file(job, "the daemon ended the restore");
	job->restoring.is_open = false;
	job->is_restore_over = true;
	for (struct line *line = job->lines; line != NULL; line = line->next) {
		if (!line->is_running)
			continue;
		if (is_over) {
			backend_cancel(&line->backend);
			line->is_running = false;
			continue;
		}
		/* Here the backend starts what the user asked for; it takes as long as it takes. */
		if (converse_say(job, line, "FINISH") == 0 && converse_expect_end(job, line) == 0)
			(void)converse_finish(job, line);
	}
	if (!job_is_cancelled(job) && job->restore_failed_at != 0)
		message(job->context, MESSAGE_FATAL, "the restore has failed: see the first error of pgkeep's above");
}
