#ifndef PGKEEP_PLUGIN_LINE_H
#define PGKEEP_PLUGIN_LINE_H

/*
 * What stands in Plugin = "pgkeep: key=value flag other=\"a b\"" of a FileSet. The first colon counts as a blank; blanks
 * separate words; " begins and ends a quoted part anywhere in a word; a backslash takes the next character as it is. A
 * word without = means word=1.
 *
 * The daemon's .ls puts " listing=<path>" behind the line, without quotes: from the last of these on, all is path.
 */

#include <stdbool.h>
#include <stddef.h>

struct parameters {
	char **pairs;           /* "key=value", in the order of the line */
	size_t count;
	bool has_listing;       /* then the last pair is listing=<path> */
};

/* Returns 0, or -1 and what is wrong in *wrong. parameters_free afterwards in either case. */
int parameters_parse(struct parameters *parameters, const char *line, bool may_list, const char **wrong);
void parameters_free(struct parameters *parameters);

#endif
