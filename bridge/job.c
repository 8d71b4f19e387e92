#include "job.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "daemon.h"

struct job *
job_new(struct bacula_context *context)
{
	struct job *job = calloc(1, sizeof(*job));

	if (job == NULL)
		return (NULL);
	job->context = context;
	job->begun = clock_date_nanoseconds();
	atomic_init(&job->is_cancelled, 0);
	atomic_init(&job->wake, -1);
	job->expected.descriptor = -1;
	return (job);
}

void
job_end_backends(struct job *job)
{
	for (struct line *line = job->lines; line != NULL; line = line->next) {
		if (line->is_running)
			backend_cancel(&line->backend);
		line->is_running = false;
	}
}

void
job_free(struct job *job)
{
	struct line *next;
	int wake;

	job_end_backends(job);
	for (struct line *line = job->lines; line != NULL; line = next) {
		next = line->next;
		parameters_free(&line->parameters);
		free(line->command);
		free(line);
	}
	text_free(&job->saving.name);
	text_free(&job->saving.target);
	text_free(&job->saving.content);
	for (size_t i = 0; i < sizeof(job->saving.fields) / sizeof(job->saving.fields[0]); i++)
		text_free(&job->saving.fields[i]);
	text_free(&job->kept);
	text_free(&job->collected);
	text_free(&job->answer);
	objects_free(&job->objects);
	expected_free(&job->expected);
	if ((wake = atomic_load(&job->wake)) != -1)
		close(wake);
	free(job);
}

void
job_cancel(struct job *job)
{
	const uint64_t one = 1;
	int wake;

	/*
	 * Called on another thread, while the job's own may be anywhere. The flag is set before the descriptor is looked for,
	 * and job_wake looks at the flag after it made the descriptor known: one of the two sees the other.
	 */
	atomic_store(&job->is_cancelled, 1);
	if ((wake = atomic_load(&job->wake)) != -1)
		(void)!write(wake, &one, sizeof(one));
}

bool
job_is_cancelled(const struct job *job)
{
	return (atomic_load(&job->is_cancelled) != 0);
}

int
job_wake(struct job *job)
{
	const uint64_t one = 1;
	int wake = atomic_load(&job->wake);

	if (wake != -1)
		return (wake);
	if ((wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) == -1)
		return (-1);
	atomic_store(&job->wake, wake);
	if (job_is_cancelled(job))
		(void)!write(wake, &one, sizeof(one));
	return (wake);
}

static struct line *
find_line(const struct job *job, const char *command)
{
	struct line *line = job->lines;

	while (line != NULL && strcmp(line->command, command) != 0)
		line = line->next;
	return (line);
}

struct line *
job_line(struct job *job, const char *command)
{
	struct line *line = find_line(job, command);

	if (line != NULL)
		return (line);
	if ((line = calloc(1, sizeof(*line))) == NULL || (line->command = strdup(command)) == NULL) {
		free(line);
		message(job->context, MESSAGE_FATAL, "no memory");
		return (NULL);
	}
	line->number = ++job->line_count;
	if (job->last != NULL)
		job->last->next = line;
	else
		job->lines = line;
	job->last = line;
	return (line);
}

void
job_note_line(struct job *job, const char *command)
{
	struct line *line = find_line(job, command);

	if (line == NULL)
		(void)job_line(job, command);
	else
		line->is_repeated = true;
}
