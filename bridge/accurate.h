#ifndef PGKEEP_ACCURATE_H
#define PGKEEP_ACCURATE_H

/*
 * What a backend asks about, and says of, the files that the catalog has of earlier jobs. The daemon's checkChanges is not
 * used: with a checksum among the FileSet's accurate options it would open the virtual name as a file.
 */

#include <stdbool.h>

#include "abi.h"
#include "job.h"

/* CHECKGET:<name> is answered by STAT and TSTAMP, by UNAVAIL, or by E NOACCJOB. */
int accurate_answer(struct job *job, struct line *line, const char *name);

/* SEEN: names, each with a NUL behind, in D packets up to an F: these files are there still. */
int accurate_take_seen(struct job *job, struct line *line);

/* KEEP:<prefix>: so are all that begin with it. */
int accurate_keep(struct job *job, struct line *line, const char *prefix);

/* checkFile: whether a name of the catalog that no file of this job had is to stay. */
bool accurate_is_kept(const struct job *job, const char *name);

#endif
