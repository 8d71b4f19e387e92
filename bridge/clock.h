#ifndef PGKEEP_CLOCK_H
#define PGKEEP_CLOCK_H

#include <stdint.h>

/* Milliseconds of the clock that nobody sets. */
int64_t clock_milliseconds(void);

/* Nanoseconds since 1970. */
int64_t clock_date_nanoseconds(void);

#endif
