#ifndef PGKEEP_DAEMON_H
#define PGKEEP_DAEMON_H

/* What is asked of the File Daemon, and said to it. */

#include <stdbool.h>
#include <stdint.h>

#include "abi.h"

/* Remember the daemon's functions, which live as long as it does. */
void daemon_remember(const struct bacula_functions *functions);

/* The value of a variable; fallback when the daemon does not set it. */
int32_t daemon_number(struct bacula_context *context, enum variable variable, int32_t fallback);

/* The daemon's own text, good for as long as the job; NULL when there is none. */
const char *daemon_text(struct bacula_context *context, enum variable variable);

/* Whether the job goes nowhere any more: cancelled, or failed by somebody. */
bool daemon_gave_up(struct bacula_context *context);

/* Look a file up in the catalog's list; RC_SEEN when it is there. The checksum is let go of at once. */
enum rc daemon_catalogued(struct bacula_context *context, struct accurate_packet *file);

/* Mark a file of the catalog's list as being there still. */
void daemon_mark_seen(struct bacula_context *context, const char *name);

/*
 * Put a message into the job's log: "pgkeep: " in front, a newline behind, what does not fit into the daemon's buffer cut
 * off, control characters made visible. Without a context it is a message of the daemon.
 */
void message(struct bacula_context *context, enum message_type type, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The same for what a backend said: its first line is the message, each further one a hint. */
void message_of_backend(struct bacula_context *context, enum message_type type, const char *text);

#endif
