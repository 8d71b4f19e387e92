#ifndef PGKEEP_JOB_H
#define PGKEEP_JOB_H

/*
 * What one job, or one question from a console, keeps: a context of Bacula's, and in it a list of the pgkeep lines of the
 * FileSet, each with a backend of its own. All is used by the job's thread alone, but for job_cancel.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "abi.h"
#include "backend.h"
#include "objects.h"
#include "plugin_line.h"
#include "text.h"

/* What the backend of a line is there for. */
enum duty {
	DUTY_NONE,
	DUTY_BACKUP,
	DUTY_ESTIMATE,
	DUTY_LISTING,
	DUTY_QUERY,
	DUTY_RESTORE
};

struct line {
	struct line *next;
	char *command;                  /* the whole text, which is the key to everything of this line */
	unsigned number;                /* from 1, in the order of the FileSet */
	bool is_repeated;               /* the same text came twice */
	bool has_failed;                /* and that was said */
	bool is_done;                   /* its backend ended well */
	bool is_running;
	struct backend backend;
	struct parameters parameters;
};

/* The file or object that the daemon saves now. */
struct backup_file {
	struct text name;
	struct text target;             /* of a link */
	struct text content;            /* of an object */
	struct text fields[6];          /* of a plugin object */
	bool is_open;                   /* startBackupFile gave it out, endBackupFile did not come */
	bool has_data;                  /* DATA was said */
	bool is_at_end;                 /* and its F */
	int64_t announced;              /* bytes; -1: not known beforehand */
	int64_t received;
	const char *slot;               /* of the ring, being read; NULL: none */
	unsigned slot_number;
	size_t slot_length;
	size_t slot_used;
};

/* The file that the daemon restores now. */
struct restore_file {
	bool is_open;                   /* the backend took it, and neither COMPLETE nor FAILED was said */
	bool has_data;                  /* DATA was said */
	bool is_refused;                /* the backend reported an error for it */
	bool has_attributes;            /* setFileAttributes came, which only a whole file gets */
	uint64_t written;
	size_t filled;                  /* bytes in the slot that is being filled */
};

struct job {
	struct bacula_context *context;
	atomic_int is_cancelled;
	atomic_int wake;                /* descriptor; -1 until the first backend is started */

	int level;
	int64_t since;
	int64_t begun;                  /* nanoseconds since 1970: tells this run of the job from an earlier one */
	enum duty duty;
	struct line *lines;
	struct line *last;
	unsigned line_count;
	struct line *current;

	struct backup_file saving;
	struct restore_file restoring;
	int64_t restore_failed_at;      /* by clock_milliseconds, the first failure of a restore; 0: none */
	bool is_restore_over;           /* everything that the daemon restores has come */
	struct text kept;               /* prefixes for checkFile, each with a NUL behind */
	struct text collected;          /* what backends want back at a restore, of all lines so far */
	bool is_collected_saved;
	struct objects objects;         /* of a restore */
	struct expected expected;
	struct text answer;             /* to a query */
};

struct job *job_new(struct bacula_context *context);

/* End all backends and forget everything. */
void job_free(struct job *job);

/* From any thread: only what is atomic, and one write. */
void job_cancel(struct job *job);
bool job_is_cancelled(const struct job *job);

/* The wake-up descriptor, made when it is first asked for; -1 when that fails. */
int job_wake(struct job *job);

/* The line with this text; made when there is none. NULL without memory. */
struct line *job_line(struct job *job, const char *command);

/* Note a line of the FileSet as it is read; the same text twice is remembered as such. */
void job_note_line(struct job *job, const char *command);

/* End all backends that run, in haste. */
void job_end_backends(struct job *job);

#endif
