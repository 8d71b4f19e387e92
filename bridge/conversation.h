#ifndef PGKEEP_CONVERSATION_H
#define PGKEEP_CONVERSATION_H

/*
 * How a line of the FileSet talks to its backend: from the greeting to the end. Each function returns 0 or -1; -1 has been
 * reported, the line has failed, and its backend is gone.
 */

#include "abi.h"
#include "job.h"

/* Start the line's backend and say everything up to, and with, the start command of its duty. */
int converse_begin(struct job *job, struct line *line, enum duty duty, const char *query);

/* Say END and let the backend exit; its exit status counts. */
int converse_finish(struct job *job, struct line *line);

/* Say a command; a newline is put behind it. */
int converse_say(struct job *job, struct line *line, const char *format, ...) __attribute__((format(printf, 3, 4)));
int converse_send(struct job *job, struct line *line, char kind, const void *payload, size_t length);

/* Wait for a packet; an error that the backend reports instead makes the line fail. */
int converse_receive(struct job *job, struct line *line, struct packet *packet);

/* The same, with the error of one file given to the caller, who answers for it. */
int converse_receive_answer(struct job *job, struct line *line, struct packet *packet);

/* Take the text of a command packet, without its newline; -1 when it is none. */
int converse_text(struct job *job, struct line *line, const struct packet *packet, const char **text);

/* Wait for F. */
int converse_expect_end(struct job *job, struct line *line);

/* After the channel itself failed: say why, and what became of the backend. */
int converse_broken(struct job *job, struct line *line);

/* Make the line fail for a reason of our own. */
int converse_fail(struct job *job, struct line *line, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The backend said something that has no place where it stands. */
int converse_unexpected(struct job *job, struct line *line, const struct packet *packet, const char *expected);

/* How bad the failure of a line is. */
enum message_type converse_severity(const struct job *job);

#endif
