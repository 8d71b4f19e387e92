#ifndef PGKEEP_CONFIG_H
#define PGKEEP_CONFIG_H

/*
 * pgkeep-fd.conf beside the plugin: which backend to run, and as whom. Lines of "key = value"; # begins a comment;
 * without the file every key has its default.
 */

#include <stdbool.h>

#define CONFIG_FILE "pgkeep-fd.conf"

struct config {
	char *backend;          /* absolute path */
	char *user;             /* NULL: the daemon's own */
	char *config;           /* absolute path of pgkeep.conf; NULL: the backend looks itself */
	bool ring;
	int timeout_seconds;
	int kill_after_seconds;
};

/*
 * Read the file in a directory; exe_path is the daemon's own, where the backend is looked for unless the file says another.
 * Returns 0, or -1 and what is wrong in wrong. config_free afterwards in either case.
 */
int config_read(struct config *config, const char *directory, const char *exe_path, char *wrong, int wrong_size);
void config_free(struct config *config);

#endif
