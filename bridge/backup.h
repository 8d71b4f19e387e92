#ifndef PGKEEP_BACKUP_H
#define PGKEEP_BACKUP_H

/*
 * A backup, and an estimate, which is one without data: the backend says what there is, file by file, and the daemon comes
 * to fetch it. Whatever leaves a backup incomplete is a fatal error of the job: the Director takes a job that ended well,
 * warnings or not, as the base of the next.
 */

#include "abi.h"
#include "job.h"

/* BackupCommand and EstimateCommand. */
enum rc backup_begin(struct job *job, const char *command, enum duty duty);

/* The daemon's callbacks. */
enum rc backup_start_file(struct job *job, struct save_packet *packet);
enum rc backup_end_file(struct job *job);

/* The daemon is through with the files of the job. Its status is decided after this. */
void backup_end(struct job *job);
void backup_io(struct job *job, struct io_packet *packet);

#endif
