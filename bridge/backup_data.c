/* The content of the file that is being saved: from D packets and slots of the ring into the daemon's buffer. */

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backup.h"
#include "conversation.h"
#include "packet.h"

static int
fail_read(struct io_packet *packet, int error)
{
	packet->status = -1;
	packet->io_errno = error;
	return (-1);
}

/* Return the slot to the backend once it is read. */
static int
release_slot(struct job *job, struct line *line)
{
	struct backup_file *file = &job->saving;
	char text[16];
	int length = snprintf(text, sizeof(text), "%u\n", file->slot_number);

	file->slot = NULL;
	return (converse_send(job, line, PACKET_RELEASE, text, (size_t)length));
}

/* Take the next packet of a file's data: D, M, or the F at its end. */
static int
receive_data_packet(struct job *job, struct line *line)
{
	struct backup_file *file = &job->saving;
	struct packet packet;

	if (converse_receive(job, line, &packet) != 0)
		return (-1);
	if (packet.kind == PACKET_END) {
		file->is_at_end = true;
		if (file->announced >= 0 && file->received != file->announced)
			return (converse_fail(job, line, "%.1000s: %lld bytes were announced, and %lld came", file->name.bytes,
			    (long long)file->announced, (long long)file->received));
		return (0);
	}
	if (packet.kind == PACKET_DATA)
		return (0);
	if (packet.kind != PACKET_SLOT)
		return (converse_unexpected(job, line, &packet, "data or its end"));
	if (packet_parse_slot(packet.bytes, packet.length, &file->slot_number, &file->slot_length) != 0)
		return (converse_fail(job, line, "the backend broke the protocol: an M packet names no slot and length"));
	file->slot = ring_content(&line->backend.ring, file->slot_number, file->slot_length);
	file->slot_used = 0;
	if (file->slot == NULL)
		return (converse_fail(job, line, "the backend broke the protocol: there is no slot %u with %zu bytes",
		    file->slot_number, file->slot_length));
	return (0);
}

/* Put some bytes into buffer, 1 to size of them; 0 at the end; -1 for a failure, which was reported. */
static int64_t
receive_some_data(struct job *job, struct line *line, char *buffer, size_t size)
{
	struct backup_file *file = &job->saving;
	struct channel *channel = &line->backend.channel;
	size_t count;

	while (file->slot == NULL && channel->data_left == 0) {
		if (file->is_at_end)
			return (0);
		if (receive_data_packet(job, line) != 0)
			return (-1);
	}
	if (file->slot == NULL) {
		if (channel_receive_data(channel, buffer, size, &count) != 0)
			return (converse_broken(job, line));
	} else {
		count = file->slot_length - file->slot_used;
		if (count > size)
			count = size;
		memcpy(buffer, file->slot + file->slot_used, count);
		file->slot_used += count;
		if (file->slot_used == file->slot_length && release_slot(job, line) != 0)
			return (-1);
	}
	file->received += (int64_t)count;
	if (file->announced >= 0 && file->received > file->announced)
		return (converse_fail(job, line, "%.1000s: %lld bytes were announced, and more came", file->name.bytes,
		    (long long)file->announced));
	return ((int64_t)count);
}

static int
read_file(struct job *job, struct io_packet *packet)
{
	struct backup_file *file = &job->saving;
	struct line *line = job->current;
	size_t filled = 0;

	if (!file->is_open || line == NULL || line->has_failed || packet->count < 0 || packet->buf == NULL)
		return (fail_read(packet, EIO));
	if (job_is_cancelled(job))
		return (fail_read(packet, EINTR));
	/* The daemon makes one record of what it is given: full ones cost it least. */
	while (filled < (size_t)packet->count && file->has_data) {
		int64_t count = receive_some_data(job, line, packet->buf + filled, (size_t)packet->count - filled);

		if (count < 0)
			return (fail_read(packet, job_is_cancelled(job) ? EINTR : EIO));
		if (count == 0)
			break;
		filled += (size_t)count;
	}
	packet->status = (int32_t)filled;
	packet->io_errno = 0;
	return (0);
}

void
backup_io(struct job *job, struct io_packet *packet)
{
	switch (packet->func) {
	case IO_OPEN:
		if (!job->saving.is_open || job->current == NULL || job->current->has_failed) {
			fail_read(packet, EIO);
			return;
		}
		packet->status = 0;
		packet->io_errno = 0;
		return;
	case IO_READ:
		(void)read_file(job, packet);
		return;
	case IO_CLOSE:
		/* Whether all was read shows in endBackupFile: the daemon does not look at the status of a close. */
		packet->status = 0;
		packet->io_errno = 0;
		return;
	default:
		fail_read(packet, EINVAL);
	}
}
