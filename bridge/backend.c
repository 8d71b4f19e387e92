#include "backend.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "daemon.h"
#include "packet.h"

static enum message_type
type_of(char kind)
{
	switch (kind) {
	case PACKET_JOB_ERROR:
		return (MESSAGE_ERROR);
	case PACKET_WARNING:
		return (MESSAGE_WARNING);
	case PACKET_SAVED:
		return (MESSAGE_SAVED);
	case PACKET_NOT_SAVED:
		return (MESSAGE_NOT_SAVED);
	case PACKET_RESTORED:
		return (MESSAGE_RESTORED);
	case PACKET_SKIPPED:
		return (MESSAGE_SKIPPED);
	case PACKET_MOUNT:
		return (MESSAGE_MOUNT);
	case PACKET_EVENT:
		return (MESSAGE_EVENTS);
	default:
		return (MESSAGE_INFO);
	}
}

static void
backend_said(void *owner, char kind, const char *text)
{
	struct backend *backend = owner;

	message_of_backend(backend->context, type_of(kind), text);
}

static void
backend_complained(void *owner, const char *line)
{
	struct backend *backend = owner;

	snprintf(backend->last_lines[backend->complaints % BACKEND_LAST_LINES], sizeof(backend->last_lines[0]), "%s", line);
	backend->complaints++;
	if (backend->complaints <= BACKEND_MOST_WARNINGS)
		message(backend->context, MESSAGE_WARNING, "the backend wrote to standard error: %s", line);
	else if (backend->complaints == BACKEND_MOST_WARNINGS + 1)
		message(backend->context, MESSAGE_WARNING, "the backend wrote more to standard error, which is not shown");
}

static int
backend_gave_back(void *owner, unsigned slot)
{
	struct backend *backend = owner;

	return (ring_take_back(&backend->ring, slot));
}

static bool
backend_has_ended(void *owner)
{
	struct backend *backend = owner;

	return (child_has_ended(&backend->child));
}

int
backend_start(struct backend *backend, struct bacula_context *context, int wake, char *wrong, int wrong_size)
{
	const struct channel_listener listener = {.owner = backend, .said = backend_said,
	    .complained = backend_complained, .gave_back = backend_gave_back, .has_ended = backend_has_ended};
	const char *plugin_directory = daemon_text(context, VARIABLE_PLUGIN_DIR);
	const char *exe_path = daemon_text(context, VARIABLE_EXE_PATH);
	struct child_plan plan = {.inherit = -1, .patience_seconds = 60};
	char job_id[16];
	int opened;

	*backend = (struct backend){.context = context, .child = {.to = -1, .from = -1, .errors = -1},
	    .ring = {.descriptor = -1}};
	if (config_read(&backend->config, plugin_directory != NULL ? plugin_directory : "",
	    exe_path != NULL ? exe_path : "", wrong, wrong_size) != 0)
		goto failed;
	/* Without shared memory data takes the pipes: slower, and just as good. */
	if (backend->config.ring)
		backend->has_ring = ring_open(&backend->ring, daemon_text(context, VARIABLE_WORKING_DIR)) == 0;
	snprintf(job_id, sizeof(job_id), "%d", (int)daemon_number(context, VARIABLE_JOB_ID, 0));
	plan.program = backend->config.backend;
	plan.user = backend->config.user;
	plan.config = backend->config.config;
	plan.job_id = job_id;
	if (backend->has_ring)
		plan.inherit = backend->ring.descriptor;
	if (child_start(&backend->child, &plan, wrong, (size_t)wrong_size) != 0)
		goto failed;
	ring_close_descriptor(&backend->ring);
	opened = channel_open(&backend->channel, backend->child.to, backend->child.from, backend->child.errors, wake,
	    backend->config.timeout_seconds, &listener);
	backend->is_open = true;
	if (opened != 0) {
		snprintf(wrong, (size_t)wrong_size, "%s", backend->channel.reason);
		backend_cancel(backend);
		return (-1);
	}
	return (0);

failed:
	ring_close(&backend->ring);
	config_free(&backend->config);
	return (-1);
}

/* Wait until the process has ended, for at most so long, while what it writes is taken from it. */
static bool
await_end(struct backend *backend, int64_t milliseconds, bool listens_to_wake)
{
	int64_t deadline = clock_milliseconds() + milliseconds;

	while (!child_has_ended(&backend->child)) {
		struct pollfd descriptors[3];
		int64_t left = deadline - clock_milliseconds();

		if (left <= 0)
			return (false);
		channel_discard(&backend->channel);
		channel_read_errors(&backend->channel);
		descriptors[0] = (struct pollfd){.fd = backend->channel.from, .events = POLLIN};
		descriptors[1] = (struct pollfd){.fd = backend->channel.errors, .events = POLLIN};
		descriptors[2] = (struct pollfd){.fd = listens_to_wake ? backend->channel.wake : -1, .events = POLLIN};
		/* The end of a process is no event here; usually the end of its pipes comes with it. */
		poll(descriptors, 3, left > 20 ? 20 : (int)left);
		if (descriptors[2].revents != 0)
			return (false);
	}
	channel_read_errors(&backend->channel);
	return (true);
}

static void
let_go(struct backend *backend, bool with_group)
{
	child_reap(&backend->child, with_group);
	if (backend->is_open)
		channel_close(&backend->channel);
	backend->is_open = false;
	ring_close(&backend->ring);
	config_free(&backend->config);
}

int
backend_finish(struct backend *backend)
{
	int milliseconds = backend->config.timeout_seconds * 1000;

	close(backend->channel.to);
	backend->channel.to = -1;
	if (!await_end(backend, milliseconds, true)) {
		backend_cancel(backend);
		return (-1);
	}
	/* What it started and left on purpose, such as a server, may stay; only a failure clears everything. */
	let_go(backend, false);
	return (backend->child.status == 0 ? 0 : -1);
}

void
backend_cancel(struct backend *backend)
{
	int kill_after = backend->config.kill_after_seconds;

	if (!backend->is_open)
		return;
	/* A process that is ending anyway is given the time to say how. */
	if (backend->channel.state != CHANNEL_CLOSED || !await_end(backend, 2000, false)) {
		channel_try_send(&backend->channel, PACKET_COMMAND, "CANCEL\n", 7);
		child_signal(&backend->child, SIGTERM);
		if (backend->channel.to != -1)
			close(backend->channel.to);
		backend->channel.to = -1;
		if (!await_end(backend, (int64_t)kill_after * 1000, false)) {
			child_signal(&backend->child, SIGKILL);
			await_end(backend, 10000, false);
		}
	}
	let_go(backend, true);
}

void
backend_describe(const struct backend *backend, bool with_status, char *text, size_t size)
{
	unsigned shown = backend->complaints < BACKEND_LAST_LINES ? backend->complaints : BACKEND_LAST_LINES;
	char status[64] = "";
	size_t used;

	text[0] = '\0';
	if (with_status)
		child_describe(&backend->child, status, sizeof(status));
	if (!with_status && shown == 0)
		return;
	used = (size_t)snprintf(text, size, " (%s", status);
	for (unsigned i = backend->complaints - shown; i < backend->complaints && used < size; i++)
		used += (size_t)snprintf(text + used, size - used, "%s%s", i != backend->complaints - shown ? " / " :
		    with_status ? "; its last words: " : "its last words: ", backend->last_lines[i % BACKEND_LAST_LINES]);
	if (used < size)
		snprintf(text + used, size - used, ")");
}
