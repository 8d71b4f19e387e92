#ifndef PGKEEP_BACKEND_H
#define PGKEEP_BACKEND_H

/* A running backend: its process, the channel to it, and the ring. */

#include <stdatomic.h>
#include <stdbool.h>

#include "abi.h"
#include "channel.h"
#include "child.h"
#include "config.h"
#include "ring.h"

enum {
	BACKEND_LAST_LINES = 4,
	BACKEND_MOST_WARNINGS = 50
};

struct backend {
	struct bacula_context *context;
	struct config config;
	struct child child;
	struct channel channel;
	struct ring ring;
	bool has_ring;
	bool is_open;                           /* the channel is */
	unsigned complaints;                    /* lines of standard error so far */
	char last_lines[BACKEND_LAST_LINES][256];
};

/*
 * Start the backend that the configuration names, with a wake-up descriptor to listen to. Returns 0, or -1 with what is
 * wrong in wrong, and nothing left behind.
 */
int backend_start(struct backend *backend, struct bacula_context *context, int wake, char *wrong, int wrong_size);

/*
 * End it in good order: it was told so, and exits by itself. Returns 0 when its exit status is 0 within the time out.
 */
int backend_finish(struct backend *backend);

/*
 * End it, whatever it does: CANCEL, SIGTERM to its group, closing its input; after kill_after SIGKILL. Always reaped.
 * When it ended by itself its group is still cleared, and a moment is given for its exit status to be known.
 */
void backend_cancel(struct backend *backend);

/*
 * Put " (exit status 1; its last words: ...)" into text, for a message, after one of the above. How a process ended that
 * we had to end says nothing, so it is left out on demand; so is all of it when there is nothing to say.
 */
void backend_describe(const struct backend *backend, bool with_status, char *text, size_t size);

#endif
