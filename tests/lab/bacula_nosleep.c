/*
 * Preloaded into a test's Director, and into nothing else.
 *
 * The Director's job queue sleeps 2 s before each job, its "wait" command polls every second, and its end of a job
 * every 200 ms. Tests run hundreds of jobs: each of those three pauses becomes 20 ms, all others stay as they are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <time.h>

typedef int nanosleep_function(const struct timespec *, struct timespec *);

static const struct timespec shortened[] = {{2, 0}, {1, 0}, {0, 200000000}};
static const struct timespec instead = {0, 20000000};

int
nanosleep(const struct timespec *wanted, struct timespec *left)
{
	static nanosleep_function *original;
	size_t i;

	/* POSIX lets a symbol's address be a function's; ISO C has no way to say it without this. */
	if (original == NULL)
		*(void **)&original = dlsym(RTLD_NEXT, "nanosleep");
	for (i = 0; i < sizeof(shortened) / sizeof(shortened[0]); i++)
		if (wanted->tv_sec == shortened[i].tv_sec && wanted->tv_nsec == shortened[i].tv_nsec)
			return original(&instead, left);
	return original(wanted, left);
}
