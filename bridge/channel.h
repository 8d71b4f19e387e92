#ifndef PGKEEP_CHANNEL_H
#define PGKEEP_CHANNEL_H

/*
 * Packets on the pipes of one backend.
 *
 * Whoever waits here also listens for what may come at any time: messages, slots given back, signs of life, lines on
 * standard error, and the job's end. That holds while writing, too, so that two sides which both write do not wait for
 * each other for ever. A wait ends with an error when nothing at all came or went for the time given.
 */

#include <stdbool.h>
#include <stddef.h>

#include "text.h"

enum channel_state {
	CHANNEL_OPEN,
	CHANNEL_CANCELLED,      /* the wake-up descriptor says that the job is over */
	CHANNEL_CLOSED,         /* the backend closed a pipe */
	CHANNEL_SILENT,         /* nothing came for too long */
	CHANNEL_GARBLED,        /* what came is not a packet */
	CHANNEL_BROKEN          /* the system refused something */
};

/* Who is told what comes between the packets that are waited for; called within the functions below. */
struct channel_listener {
	void *owner;
	void (*said)(void *owner, char kind, const char *text);
	void (*complained)(void *owner, const char *line);
	int (*gave_back)(void *owner, unsigned slot);   /* -1 when that slot is not lent */
	bool (*has_ended)(void *owner);                 /* the process, whoever else holds its pipes open */
};

struct packet {
	char kind;
	size_t length;
	const char *bytes;      /* with a NUL behind them; until the next packet; NULL for D, whose bytes are read apart */
};

struct channel {
	int to;                 /* the backend's standard input, output and error; ours do not block; -1 when closed */
	int from;
	int errors;
	int wake;
	int timeout_seconds;
	struct channel_listener listener;

	enum channel_state state;
	char reason[256];       /* why it is not open */

	char *received;
	size_t start;           /* of what was received and not used, in received */
	size_t end;
	size_t room;
	size_t data_left;       /* of the D packet that is being read */
	struct text payload;    /* of the packet received last */
	struct text message;
	bool is_cut;            /* a packet was begun that could not be written to its end */
	char line[512];         /* of standard error, not yet whole */
	size_t line_length;
};

int channel_open(struct channel *channel, int to, int from, int errors, int wake, int timeout_seconds,
    const struct channel_listener *listener);
void channel_close(struct channel *channel);

/* These return 0, or -1 with state and reason set; nothing works after that. */

/* Wait for the next packet that is not transparent. The data of the last one must have been read. */
int channel_receive(struct channel *channel, struct packet *packet);

/* After the backend closed a pipe: look for an error that it wrote before, and return whether there is one. */
bool channel_last_words(struct channel *channel, struct packet *packet);

/* Copy some of a D packet's data, 1 to size bytes, and say how many; data_left says how many are left. */
int channel_receive_data(struct channel *channel, char *data, size_t size, size_t *count);

/* Send one packet. */
int channel_send(struct channel *channel, char kind, const void *payload, size_t length);

/* Deal with what came already, without waiting; *is_pending says whether a packet that is not transparent is there. */
int channel_listen(struct channel *channel, bool *is_pending);

/* Wait until something transparent came, or a packet that is not, and deal with it as channel_listen does. */
int channel_wait(struct channel *channel, bool *is_pending);

/* Send one packet if the pipe takes it at once, whatever state the channel is in; for farewells. */
void channel_try_send(struct channel *channel, char kind, const void *payload, size_t length);

/* Read what is on standard error until nothing is there now; returns whether it may come to more. */
bool channel_read_errors(struct channel *channel);

/* Throw away what the backend writes, so that it does not wait for us; returns whether it may come to more. */
bool channel_discard(struct channel *channel);

#endif
