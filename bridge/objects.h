#ifndef PGKEEP_OBJECTS_H
#define PGKEEP_OBJECTS_H

/*
 * What Bacula keeps for a restore beside the files.
 *
 * One object per job holds what all its pgkeep lines want back, since the daemon forgets signature and compression of a
 * FileSet's Include with the first of them: it is saved behind the last file of the last line. It is named "pgkeep" and
 * holds, for each piece, "<length of command> <length of blob>\n", the command (the line's whole text) and the blob.
 */

#include <stddef.h>
#include <stdint.h>

#include "abi.h"
#include "text.h"

#define OBJECT_NAME "pgkeep"
/* What another line of the restore calls it: one restore may need what two lines saved. */
#define OBJECT_OF_ANOTHER_LINE "beside"

enum {
	OBJECT_MOST_BYTES = 65536,              /* of one line, all told */
	OBJECTS_MOST_BYTES = 64 << 20           /* of all that a restore is given */
};

struct object {
	uint32_t job_id;
	int32_t type;
	char *command;
	char *content;
	size_t length;
};

struct objects {
	struct object *list;
	size_t count;
	size_t bytes;
};

/* Add one piece to what is collected in a backup; returns 0, or -1 when it is too long or there is no memory. */
int collect_object(struct text *collected, const char *command, const char *content, size_t length);

/* Keep an object that a restore is given, taken apart; returns NULL, or what is wrong. */
const char *objects_keep(struct objects *objects, const struct restore_object_packet *packet);
void objects_free(struct objects *objects);

/*
 * The files that a restore is going to bring, in a file without a name, as the backend is told: for each
 * "<size> <mtime> <delta_seq> <name>" and a NUL.
 */
struct expected {
	int descriptor;                         /* -1: none yet */
	struct text buffer;                     /* not yet written */
	uint64_t bytes;                         /* written */
	uint64_t count;
	bool is_complete;                       /* the daemon said that it is */
	int has_failed;                         /* errno */
};

void expected_add(struct expected *expected, const char *directory, const struct restore_list_packet *file);
int expected_flush(struct expected *expected);
void expected_free(struct expected *expected);

#endif
