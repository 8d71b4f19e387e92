#ifndef PGKEEP_CHILD_H
#define PGKEEP_CHILD_H

/*
 * One process, in a process group of its own, with pipes on its standard descriptors. The daemon has threads: between fork
 * and exec only system calls are made, with what was prepared before.
 */

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct child {
	pid_t pid;              /* 0: none, or reaped */
	int to;                 /* our ends, which do not block; whoever takes them sets -1 here */
	int from;
	int errors;
	int status;             /* as of waitpid, once it is reaped; -1 when nobody knows */
};

struct child_plan {
	const char *program;    /* absolute path; run without arguments */
	const char *user;       /* whom to become; NULL: stay */
	const char *job_id;     /* BACULA_JOBID */
	const char *config;     /* PGKEEP_CONFIG, or NULL */
	int inherit;            /* becomes descriptor 3 of the child; -1: none */
	int patience_seconds;   /* until the program must have been loaded */
};

/* Start it; return 0, or -1 and what is wrong in wrong. */
int child_start(struct child *child, const struct child_plan *plan, char *wrong, size_t wrong_size);

/* Send a signal to the whole group; does nothing without a process. */
void child_signal(const struct child *child, int signal);

/* Whether it has ended. It stays a zombie, so its number is still its own. */
bool child_has_ended(const struct child *child);

/* Reap it, once it has ended; first end what is left of its group when that is wanted. */
void child_reap(struct child *child, bool with_group);

/* "exit status 1", "signal 9". */
void child_describe(const struct child *child, char *text, size_t size);

#endif
