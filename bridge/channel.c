#include "channel.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "clock.h"
#include "packet.h"

enum {
	FIRST_ROOM = 64 << 10,
	/* Holds any packet whole. What comes while we write and does not fit waits in the pipe. */
	MOST_ROOM = 2 << 20,
	/* How often to look whether a silent process is there at all. */
	LOOK_MILLISECONDS = 1000
};

static int
fail(struct channel *channel, enum channel_state state, const char *format, ...) __attribute__((format(printf, 3, 4)));

static int
fail(struct channel *channel, enum channel_state state, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	vsnprintf(channel->reason, sizeof(channel->reason), format, list);
	va_end(list);
	channel->state = state;
	return (-1);
}

int
channel_open(struct channel *channel, int to, int from, int errors, int wake, int timeout_seconds,
    const struct channel_listener *listener)
{
	*channel = (struct channel){.to = to, .from = from, .errors = errors, .wake = wake,
	    .timeout_seconds = timeout_seconds, .listener = *listener, .room = FIRST_ROOM};
	if ((channel->received = malloc(channel->room)) == NULL)
		return (fail(channel, CHANNEL_BROKEN, "no memory"));
	return (0);
}

static void
close_one(int *descriptor)
{
	if (*descriptor != -1)
		close(*descriptor);
	*descriptor = -1;
}

void
channel_close(struct channel *channel)
{
	close_one(&channel->to);
	close_one(&channel->from);
	close_one(&channel->errors);
	free(channel->received);
	channel->received = NULL;
	text_free(&channel->payload);
	text_free(&channel->message);
}

/* Standard error. */

static void
end_line(struct channel *channel)
{
	channel->line[channel->line_length] = '\0';
	if (channel->line_length > 0)
		channel->listener.complained(channel->listener.owner, channel->line);
	channel->line_length = 0;
}

bool
channel_read_errors(struct channel *channel)
{
	char bytes[4096];
	ssize_t count;

	if (channel->errors == -1)
		return (false);
	while ((count = read(channel->errors, bytes, sizeof(bytes))) > 0 || (count == -1 && errno == EINTR)) {
		for (ssize_t i = 0; i < count; i++) {
			if (bytes[i] == '\n' || channel->line_length == sizeof(channel->line) - 1)
				end_line(channel);
			if (bytes[i] != '\n')
				channel->line[channel->line_length++] = bytes[i];
		}
	}
	if (count == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return (true);
	/* Closed: nothing to wait for any more, and no error by itself. */
	end_line(channel);
	close_one(&channel->errors);
	return (false);
}

bool
channel_discard(struct channel *channel)
{
	char bytes[4096];
	ssize_t count;

	if (channel->from == -1)
		return (false);
	while ((count = read(channel->from, bytes, sizeof(bytes))) > 0 || (count == -1 && errno == EINTR))
		;
	if (count == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return (true);
	close_one(&channel->from);
	return (false);
}

/* Waiting. */

/*
 * Wait until the backend can be read from, or written to when that is wanted. Room for what is read is wanted, too: what
 * can't be taken is not listened for. The deadline is that of the whole wait; whoever moved a byte makes a new one.
 */
static int
wait_ready(struct channel *channel, bool for_reading, bool for_writing, int64_t deadline)
{
	for (;;) {
		struct pollfd descriptors[4] = {
			{.fd = channel->wake, .events = POLLIN},
			{.fd = channel->errors, .events = POLLIN},
			{.fd = for_reading ? channel->from : -1, .events = POLLIN},
			{.fd = for_writing ? channel->to : -1, .events = POLLOUT},
		};
		int64_t left = deadline - clock_milliseconds();
		int ready;

		if (left <= 0)
			return (fail(channel, CHANNEL_SILENT, "the backend was silent for %d seconds",
			    channel->timeout_seconds));
		ready = poll(descriptors, 4, left > LOOK_MILLISECONDS ? LOOK_MILLISECONDS : (int)left);
		if (ready == -1 && errno != EINTR && errno != EAGAIN)
			return (fail(channel, CHANNEL_BROKEN, "cannot wait for the backend: error %d", errno));
		if (ready == 0 && channel->listener.has_ended(channel->listener.owner))
			return (fail(channel, CHANNEL_CLOSED, "the backend ended"));
		if (ready <= 0)
			continue;
		if (descriptors[0].revents != 0)
			return (fail(channel, CHANNEL_CANCELLED, "the job was cancelled"));
		if (descriptors[1].revents != 0)
			channel_read_errors(channel);
		if (descriptors[2].revents != 0 || descriptors[3].revents != 0)
			return (0);
	}
}

static int64_t
new_deadline(const struct channel *channel)
{
	return (clock_milliseconds() + (int64_t)channel->timeout_seconds * 1000);
}

/* Move what is left to the front; grow, when that is not enough. Returns whether there is room for more now. */
static bool
make_room(struct channel *channel)
{
	char *received;

	if (channel->start == channel->end)
		channel->start = channel->end = 0;
	if (channel->end < channel->room)
		return (true);
	if (channel->start > 0) {
		memmove(channel->received, channel->received + channel->start, channel->end - channel->start);
		channel->end -= channel->start;
		channel->start = 0;
		return (true);
	}
	if (channel->room >= MOST_ROOM || (received = realloc(channel->received, channel->room * 2)) == NULL)
		return (false);
	channel->received = received;
	channel->room *= 2;
	return (true);
}

/* Read once, without waiting; return 1 when something came, 0 when nothing is there, -1 for an error. */
static int
read_some(struct channel *channel)
{
	ssize_t count;

	do
		count = read(channel->from, channel->received + channel->end, channel->room - channel->end);
	while (count == -1 && errno == EINTR);
	if (count > 0) {
		channel->end += (size_t)count;
		return (1);
	}
	if (count == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return (0);
	if (count == -1)
		return (fail(channel, CHANNEL_BROKEN, "cannot read from the backend: error %d", errno));
	if (channel->start != channel->end)
		return (fail(channel, CHANNEL_CLOSED, "the backend ended within a packet"));
	return (fail(channel, CHANNEL_CLOSED, "the backend ended"));
}

/* Wait until more was received. */
static int
receive_more(struct channel *channel)
{
	int64_t deadline = 0;
	int came;

	if (!make_room(channel))
		return (fail(channel, CHANNEL_BROKEN, "no memory for what the backend says"));
	while ((came = read_some(channel)) == 0) {
		if (deadline == 0)
			deadline = new_deadline(channel);
		if (wait_ready(channel, true, false, deadline) != 0)
			return (-1);
	}
	return (came == 1 ? 0 : -1);
}

/* Packets in what was received. */

static int
take_transparent(struct channel *channel, char kind, char *payload, size_t length)
{
	unsigned slot;

	if (kind == PACKET_HEARTBEAT)
		return (0);
	if (kind == PACKET_RELEASE) {
		if (packet_parse_release(payload, length, &slot) != 0)
			return (fail(channel, CHANNEL_GARBLED, "the backend broke the protocol: a K packet names no slot"));
		if (channel->listener.gave_back(channel->listener.owner, slot) != 0)
			return (fail(channel, CHANNEL_GARBLED,
			    "the backend broke the protocol: it gave back slot %u, which is not lent", slot));
		return (0);
	}
	text_clear(&channel->message);
	for (size_t i = 0; i < length; i++)
		if (payload[i] == '\0')
			payload[i] = '?';
	if (length > 0 && payload[length - 1] == '\n')
		length--;
	text_add(&channel->message, payload, length);
	if (channel->message.failed)
		return (fail(channel, CHANNEL_BROKEN, "no memory for what the backend says"));
	channel->listener.said(channel->listener.owner, kind, channel->message.bytes);
	return (0);
}

/*
 * Look at the packet in front. *needed is how many bytes must be there for it to be used, 0 when none more: then it is
 * not transparent, and *packet says what it is.
 */
static int
look(struct channel *channel, struct packet *packet, size_t *needed)
{
	for (;;) {
		char *front = channel->received + channel->start;
		size_t there = channel->end - channel->start;
		const char *wrong;

		*needed = PACKET_HEADER_BYTES;
		if (there < *needed)
			return (0);
		if ((wrong = packet_parse(front, &packet->kind, &packet->length)) != NULL) {
			char shown[PACKET_HEADER_BYTES + 1];

			for (size_t i = 0; i < PACKET_HEADER_BYTES; i++)
				shown[i] = front[i] >= ' ' && front[i] < 0x7F ? front[i] : '?';
			shown[PACKET_HEADER_BYTES] = '\0';
			return (fail(channel, CHANNEL_GARBLED, "the backend broke the protocol: %s, found \"%s\"", wrong,
			    shown));
		}
		*needed += packet->kind == PACKET_DATA ? 0 : packet->length;
		if (there < *needed)
			return (0);
		if (!packet_is_transparent(packet->kind)) {
			*needed = 0;
			return (0);
		}
		if (take_transparent(channel, packet->kind, front + PACKET_HEADER_BYTES, packet->length) != 0)
			return (-1);
		channel->start += *needed;
	}
}

int
channel_receive(struct channel *channel, struct packet *packet)
{
	size_t needed;

	if (channel->state != CHANNEL_OPEN)
		return (-1);
	for (;;) {
		if (look(channel, packet, &needed) != 0)
			return (-1);
		if (needed == 0)
			break;
		if (receive_more(channel) != 0)
			return (-1);
	}
	channel->start += PACKET_HEADER_BYTES;
	packet->bytes = NULL;
	if (packet->kind == PACKET_DATA) {
		channel->data_left = packet->length;
		return (0);
	}
	text_clear(&channel->payload);
	text_add(&channel->payload, channel->received + channel->start, packet->length);
	if (channel->payload.failed)
		return (fail(channel, CHANNEL_BROKEN, "no memory for what the backend says"));
	channel->start += packet->length;
	packet->bytes = channel->payload.bytes;
	return (0);
}

bool
channel_last_words(struct channel *channel, struct packet *packet)
{
	if (channel->state != CHANNEL_CLOSED || channel->data_left > 0)
		return (false);
	/* Every byte that it wrote is in the pipe or here: nothing waits. */
	channel->state = CHANNEL_OPEN;
	while (channel_receive(channel, packet) == 0) {
		if (packet->kind == PACKET_ERROR || packet->kind == PACKET_FATAL)
			return (true);
		if (packet->kind == PACKET_DATA)
			break;
	}
	channel->state = CHANNEL_CLOSED;
	return (false);
}

int
channel_receive_data(struct channel *channel, char *data, size_t size, size_t *count)
{
	size_t there = channel->end - channel->start;
	int64_t deadline = 0;

	if (channel->state != CHANNEL_OPEN)
		return (-1);
	if (size > channel->data_left)
		size = channel->data_left;
	if (there > 0) {
		*count = there < size ? there : size;
		memcpy(data, channel->received + channel->start, *count);
		channel->start += *count;
		channel->data_left -= *count;
		return (0);
	}
	for (;;) {
		ssize_t found = read(channel->from, data, size);

		if (found > 0) {
			*count = (size_t)found;
			channel->data_left -= *count;
			return (0);
		}
		if (found == 0)
			return (fail(channel, CHANNEL_CLOSED, "the backend ended within a packet"));
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return (fail(channel, CHANNEL_BROKEN, "cannot read from the backend: error %d", errno));
		if (deadline == 0)
			deadline = new_deadline(channel);
		if (wait_ready(channel, true, false, deadline) != 0)
			return (-1);
	}
}

int
channel_listen(struct channel *channel, bool *is_pending)
{
	struct packet packet;
	size_t needed;
	int came;

	*is_pending = false;
	if (channel->state != CHANNEL_OPEN)
		return (-1);
	do {
		if (look(channel, &packet, &needed) != 0)
			return (-1);
		*is_pending = needed == 0;
		if (*is_pending || !make_room(channel))
			return (0);
		if ((came = read_some(channel)) == -1)
			return (-1);
	} while (came == 1);
	return (0);
}

int
channel_wait(struct channel *channel, bool *is_pending)
{
	if (channel_listen(channel, is_pending) != 0)
		return (-1);
	if (*is_pending)
		return (0);
	if (wait_ready(channel, true, false, new_deadline(channel)) != 0)
		return (-1);
	return (channel_listen(channel, is_pending));
}

int
channel_send(struct channel *channel, char kind, const void *payload, size_t length)
{
	char header[PACKET_HEADER_BYTES];
	struct iovec pieces[2] = {
		{.iov_base = header, .iov_len = sizeof(header)},
		{.iov_base = (void *)(uintptr_t)payload, .iov_len = length},
	};
	struct iovec *piece = pieces;
	int64_t deadline = 0;

	if (channel->state != CHANNEL_OPEN)
		return (-1);
	if (packet_encode(header, kind, length) != 0)
		return (fail(channel, CHANNEL_BROKEN, "cannot send %zu bytes in a packet of type %c", length, kind));
	channel->is_cut = true;
	while (piece < pieces + 2) {
		ssize_t count = writev(channel->to, piece, (int)(pieces + 2 - piece));
		bool has_room;

		if (count == -1 && errno == EINTR)
			continue;
		if (count >= 0) {
			deadline = 0;
			while (piece < pieces + 2 && (size_t)count >= piece->iov_len)
				count -= (ssize_t)(piece++)->iov_len;
			if (piece < pieces + 2) {
				piece->iov_base = (char *)piece->iov_base + count;
				piece->iov_len -= (size_t)count;
			}
			continue;
		}
		if (errno == EPIPE)
			return (fail(channel, CHANNEL_CLOSED, "the backend stopped listening"));
		if (errno != EAGAIN && errno != EWOULDBLOCK)
			return (fail(channel, CHANNEL_BROKEN, "cannot write to the backend: error %d", errno));
		/* Within a D packet that is being read there is nothing to listen for yet. */
		has_room = channel->data_left == 0 && make_room(channel);
		if (deadline == 0)
			deadline = new_deadline(channel);
		if (wait_ready(channel, has_room, true, deadline) != 0)
			return (-1);
		if (has_room) {
			struct packet packet;
			size_t needed;
			int came = read_some(channel);

			if (came == -1 || look(channel, &packet, &needed) != 0)
				return (-1);
			if (came == 1)
				deadline = 0;
		}
	}
	channel->is_cut = false;
	return (0);
}

void
channel_try_send(struct channel *channel, char kind, const void *payload, size_t length)
{
	char packet[PACKET_HEADER_BYTES + 64];

	/* Within a packet that was cut short it would be taken for data. */
	if (channel->to == -1 || channel->is_cut || length > 64 || packet_encode(packet, kind, length) != 0)
		return;
	if (length > 0)
		memcpy(packet + PACKET_HEADER_BYTES, payload, length);
	while (write(channel->to, packet, PACKET_HEADER_BYTES + length) == -1 && errno == EINTR)
		;
}
