#ifndef PGKEEP_FILE_ITEM_H
#define PGKEEP_FILE_ITEM_H

/*
 * The attributes of one file as they are said:
 *
 *   STAT:<type> <size> <uid> <gid> <mode, octal> <nlink> [<LinkFI>]
 *   TSTAMP:<atime> <mtime> <ctime>
 *
 * Types: F regular, E empty, D directory, S symbolic link, L a hard link to what was saved already, X unknown.
 */

#include <stdint.h>
#include <sys/stat.h>

#include "text.h"

struct file_item {
	char type;
	int32_t link_fi;
	struct stat status;     /* st_size -1: not known */
};

/* What stands behind the colon. These return 0, or -1 when it is not of that form, or the mode contradicts the type. */
int file_item_parse_stat(struct file_item *item, const char *text);
int file_item_parse_times(struct file_item *item, const char *text);

/* The whole texts, without newline. */
void file_item_print_stat(struct text *text, const struct file_item *item);
void file_item_print_times(struct text *text, const struct file_item *item);

#endif
