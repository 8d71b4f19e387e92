#ifndef PGKEEP_QUERY_H
#define PGKEEP_QUERY_H

/* What .query asks on a console. */

#include "abi.h"
#include "job.h"

/* queryParameter, which comes again and again while it returns RC_MORE; the packet's result is never NULL. */
enum rc query_answer(struct job *job, struct query_packet *packet);

#endif
