#ifndef PGKEEP_RESTORE_H
#define PGKEEP_RESTORE_H

/*
 * A restore: the daemon brings file by file, the backend takes them.
 *
 * The daemon would write a file itself, under its virtual name, when RestoreCommand or startRestoreFile returned an error,
 * and call the restore a success. So these never do: a line whose backend has failed is a fatal error of the job, and its
 * files are refused one by one.
 */

#include "abi.h"
#include "job.h"

/* RestoreCommand, which comes before every file. */
void restore_begin(struct job *job, const char *command);

/* RestoreObject, and the list of files that are to come. */
void restore_keep_object(struct job *job, const struct restore_object_packet *packet);
void restore_keep_expected(struct job *job, const struct restore_list_packet *packet);

/* The daemon's callbacks for one file, in their order. */
void restore_create_file(struct job *job, struct restore_packet *packet);
void restore_io(struct job *job, struct io_packet *packet);
void restore_set_attributes(struct job *job, struct restore_packet *packet);
void restore_end_file(struct job *job);

/* EndRestoreJob: all has come. */
void restore_end(struct job *job);

#endif
