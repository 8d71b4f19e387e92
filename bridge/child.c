#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "text.h"

#ifndef SYS_close_range
#define SYS_close_range 436             /* the same on every architecture */
#endif

enum {
	LOW_DESCRIPTORS = 10,           /* below, the child arranges its own */
	MOST_GROUPS = 65536
};

/* Where a child can't go on; said to the parent before it ends. */
enum stage {
	STAGE_DESCRIPTORS,
	STAGE_GROUPS,
	STAGE_USER,
	STAGE_DIRECTORY,
	STAGE_PROGRAM
};

static const char *const stages[] = {"arrange descriptors for", "take the groups of the user of", "take the user of",
    "leave the directory for", "run"};

struct report {
	int stage;
	int error;
};

/* What the child needs, all made before the fork. */
struct prepared {
	char *argv[2];
	char *envp[8];
	struct text environment[8];
	bool becomes_user;
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	int group_count;
	char *home;
	unsigned most_descriptors;
};

/* Preparing. */

static int
prepare_user(struct prepared *prepared, const char *user, char *wrong, size_t wrong_size)
{
	struct passwd entry;
	struct passwd *found = NULL;
	size_t size = 4096;
	char *room = NULL;
	int error;
	int result = -1;

	for (;;) {
		char *more = realloc(room, size);

		if (more == NULL) {
			snprintf(wrong, wrong_size, "no memory");
			goto done;
		}
		room = more;
		error = user != NULL ? getpwnam_r(user, &entry, room, size, &found) :
		    getpwuid_r(geteuid(), &entry, room, size, &found);
		if (error != ERANGE || size > (1 << 20))
			break;
		size *= 2;
	}
	if (found == NULL) {
		/* Only for its home, when nobody else's rights are asked for. */
		if (user == NULL)
			result = 0;
		else if (error == 0)
			snprintf(wrong, wrong_size, "there is no user \"%s\"", user);
		else
			snprintf(wrong, wrong_size, "cannot look up the user \"%s\": error %d", user, error);
		goto done;
	}
	if ((prepared->home = strdup(found->pw_dir)) == NULL)
		goto done;
	if (user == NULL || found->pw_uid == geteuid()) {
		result = 0;
		goto done;
	}
	if (geteuid() != 0) {
		snprintf(wrong, wrong_size, "cannot become \"%s\": the daemon does not run as root", user);
		goto done;
	}
	prepared->becomes_user = true;
	prepared->uid = found->pw_uid;
	prepared->gid = found->pw_gid;
	for (int room_for = 64; room_for <= MOST_GROUPS; room_for *= 4) {
		gid_t *groups = realloc(prepared->groups, (size_t)room_for * sizeof(*groups));

		if (groups == NULL)
			goto done;
		prepared->groups = groups;
		prepared->group_count = room_for;
		if (getgrouplist(user, found->pw_gid, groups, &prepared->group_count) != -1) {
			result = 0;
			goto done;
		}
	}
	snprintf(wrong, wrong_size, "the user \"%s\" is in more than %d groups", user, MOST_GROUPS);

done:
	if (result != 0 && wrong[0] == '\0')
		snprintf(wrong, wrong_size, "no memory");
	free(room);
	return (result);
}

/* The daemon's environment is not the backend's: LD_LIBRARY_PATH of a Bacula in /opt/bacula would spoil Python. */
static int
prepare_environment(struct prepared *prepared, const struct child_plan *plan)
{
	const char *home = prepared->home != NULL ? prepared->home : getenv("HOME");
	const char *const pairs[][2] = {
		{"PATH", getenv("PATH") != NULL ? getenv("PATH") : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		{"HOME", home != NULL ? home : "/"},
		{"LANG", getenv("LANG") != NULL ? getenv("LANG") : "C.UTF-8"},
		{"TZ", getenv("TZ")},
		{"BACULA_JOBID", plan->job_id},
		{"PGKEEP_CONFIG", plan->config},
	};
	size_t used = 0;

	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		if (pairs[i][1] == NULL)
			continue;
		text_print(&prepared->environment[used], "%s=%s", pairs[i][0], pairs[i][1]);
		if (prepared->environment[used].failed)
			return (-1);
		prepared->envp[used] = prepared->environment[used].bytes;
		used++;
	}
	prepared->envp[used] = NULL;
	return (0);
}

static int
prepare(struct prepared *prepared, const struct child_plan *plan, char *wrong, size_t wrong_size)
{
	struct rlimit limit;

	*prepared = (struct prepared){0};
	if (prepare_user(prepared, plan->user, wrong, wrong_size) != 0)
		return (-1);
	if (prepare_environment(prepared, plan) != 0 || (prepared->argv[0] = strdup(plan->program)) == NULL) {
		snprintf(wrong, wrong_size, "no memory");
		return (-1);
	}
	prepared->most_descriptors = 65536;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < prepared->most_descriptors)
		prepared->most_descriptors = (unsigned)limit.rlim_cur;
	return (0);
}

static void
forget(struct prepared *prepared)
{
	for (size_t i = 0; i < sizeof(prepared->environment) / sizeof(prepared->environment[0]); i++)
		text_free(&prepared->environment[i]);
	free(prepared->argv[0]);
	free(prepared->groups);
	free(prepared->home);
}

/* Both ends above those that the child arranges, so that dup2 never hits one that is still needed. */
static int
open_pipe(int ends[2])
{
	int low[2];

	ends[0] = ends[1] = -1;
	if (pipe2(low, O_CLOEXEC) != 0)
		return (-1);
	ends[0] = fcntl(low[0], F_DUPFD_CLOEXEC, LOW_DESCRIPTORS);
	ends[1] = fcntl(low[1], F_DUPFD_CLOEXEC, LOW_DESCRIPTORS);
	close(low[0]);
	close(low[1]);
	return (ends[0] != -1 && ends[1] != -1 ? 0 : -1);
}

static void
close_pipe(int ends[2])
{
	for (int i = 0; i < 2; i++) {
		if (ends[i] != -1)
			close(ends[i]);
		ends[i] = -1;
	}
}

/* The child. */

static void __attribute__((noreturn))
give_up(int report_to, enum stage stage)
{
	struct report report = {.stage = (int)stage, .error = errno};

	while (write(report_to, &report, sizeof(report)) == -1 && errno == EINTR)
		;
	_exit(127);
}

static void __attribute__((noreturn))
become(const struct prepared *prepared, int to, int from, int errors, int inherit, int report_to)
{
	struct sigaction by_default = {.sa_handler = SIG_DFL};
	sigset_t none;

	setpgid(0, 0);
	for (int signal = 1; signal < NSIG; signal++)
		(void)sigaction(signal, &by_default, NULL);
	if (dup2(to, 0) == -1 || dup2(from, 1) == -1 || dup2(errors, 2) == -1 ||
	    (inherit != -1 && dup2(inherit, 3) == -1) || dup2(report_to, 4) == -1 || fcntl(4, F_SETFD, FD_CLOEXEC) == -1)
		give_up(report_to, STAGE_DESCRIPTORS);
	report_to = 4;
	if (inherit == -1)
		close(3);
	if (syscall(SYS_close_range, 5U, ~0U, 0U) != 0)
		for (unsigned descriptor = 5; descriptor < prepared->most_descriptors; descriptor++)
			close((int)descriptor);
	/* By system call: the C library's own would have all threads follow, of which there are none here. */
	if (prepared->becomes_user) {
		if (syscall(SYS_setgroups, (size_t)prepared->group_count, prepared->groups) != 0 ||
		    syscall(SYS_setresgid, prepared->gid, prepared->gid, prepared->gid) != 0)
			give_up(report_to, STAGE_GROUPS);
		if (syscall(SYS_setresuid, prepared->uid, prepared->uid, prepared->uid) != 0)
			give_up(report_to, STAGE_USER);
	}
	if (chdir("/") != 0)
		give_up(report_to, STAGE_DIRECTORY);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(prepared->argv[0], prepared->argv, prepared->envp);
	give_up(report_to, STAGE_PROGRAM);
}

/* The parent. */

/* Whether the program runs: the pipe closes without a word when it is loaded. */
static int
await_program(int descriptor, const struct child_plan *plan, char *wrong, size_t wrong_size)
{
	struct pollfd waiting = {.fd = descriptor, .events = POLLIN};
	struct report report;
	ssize_t count;
	int ready;

	while ((ready = poll(&waiting, 1, plan->patience_seconds * 1000)) == -1 && errno == EINTR)
		;
	if (ready != 1) {
		snprintf(wrong, wrong_size, "cannot run %s: it was not loaded within %d seconds", plan->program,
		    plan->patience_seconds);
		return (-1);
	}
	while ((count = read(descriptor, &report, sizeof(report))) == -1 && errno == EINTR)
		;
	if (count == 0)
		return (0);
	if (count == (ssize_t)sizeof(report)) {
		const char *why = report.error == ENOENT ? "no such file" : report.error == EACCES ? "permission denied" :
		    report.error == ENOEXEC ? "not a program" : "error";

		snprintf(wrong, wrong_size, "cannot %s %s: %s (%d)", stages[report.stage], plan->program, why, report.error);
	} else
		snprintf(wrong, wrong_size, "cannot run %s", plan->program);
	return (-1);
}

static int
do_not_block(int descriptor)
{
	int flags = fcntl(descriptor, F_GETFL);

	return (flags != -1 ? fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) : -1);
}

int
child_start(struct child *child, const struct child_plan *plan, char *wrong, size_t wrong_size)
{
	struct prepared prepared;
	int to[2] = {-1, -1};
	int from[2] = {-1, -1};
	int errors[2] = {-1, -1};
	int report[2] = {-1, -1};
	int inherit = -1;
	sigset_t all;
	sigset_t before;
	pid_t pid = -1;
	int result = -1;

	*child = (struct child){.to = -1, .from = -1, .errors = -1, .status = -1};
	wrong[0] = '\0';
	if (prepare(&prepared, plan, wrong, wrong_size) != 0)
		goto done;
	if (open_pipe(to) != 0 || open_pipe(from) != 0 || open_pipe(errors) != 0 || open_pipe(report) != 0 ||
	    (plan->inherit != -1 && (inherit = fcntl(plan->inherit, F_DUPFD_CLOEXEC, LOW_DESCRIPTORS)) == -1) ||
	    do_not_block(to[1]) == -1 || do_not_block(from[0]) == -1 || do_not_block(errors[0]) == -1) {
		snprintf(wrong, wrong_size, "cannot make pipes for %s: error %d", plan->program, errno);
		goto done;
	}

	/* No handler of the daemon may run in the child. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = fork();
	if (pid == 0)
		become(&prepared, to[0], from[1], errors[1], inherit, report[1]);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (pid == -1) {
		snprintf(wrong, wrong_size, "cannot start a process for %s: error %d", plan->program, errno);
		goto done;
	}
	child->pid = pid;
	/* Both sides do it: whichever comes first, the group is there when either goes on. */
	(void)setpgid(pid, pid);
	close(report[1]);
	report[1] = -1;
	if (await_program(report[0], plan, wrong, wrong_size) != 0) {
		child_signal(child, SIGKILL);
		/* Ten seconds: a process that hangs in the kernel is not waited for. */
		for (int i = 0; i < 1000 && !child_has_ended(child); i++)
			poll(NULL, 0, 10);
		child_reap(child, true);
		goto done;
	}
	child->to = to[1];
	child->from = from[0];
	child->errors = errors[0];
	to[1] = from[0] = errors[0] = -1;
	result = 0;

done:
	close_pipe(to);
	close_pipe(from);
	close_pipe(errors);
	close_pipe(report);
	if (inherit != -1)
		close(inherit);
	forget(&prepared);
	return (result);
}

void
child_signal(const struct child *child, int signal)
{
	/* 0 and -1 would mean whole crowds of processes. */
	if (child->pid > 1)
		(void)kill(-child->pid, signal);
}

bool
child_has_ended(const struct child *child)
{
	siginfo_t information = {0};

	if (child->pid <= 1)
		return (true);
	if (waitid(P_PID, (id_t)child->pid, &information, WEXITED | WNOHANG | WNOWAIT) == -1)
		return (errno != EINTR);
	return (information.si_pid == child->pid);
}

void
child_reap(struct child *child, bool with_group)
{
	pid_t reaped;

	if (child->pid <= 1)
		return;
	/* As long as it is a zombie its number is nobody else's. */
	if (with_group)
		child_signal(child, SIGKILL);
	while ((reaped = waitpid(child->pid, &child->status, WNOHANG)) == -1 && errno == EINTR)
		;
	if (reaped != child->pid)
		child->status = -1;
	child->pid = 0;
}

void
child_describe(const struct child *child, char *text, size_t size)
{
	if (child->status != -1 && WIFEXITED(child->status))
		snprintf(text, size, "exit status %d", WEXITSTATUS(child->status));
	else if (child->status != -1 && WIFSIGNALED(child->status))
		snprintf(text, size, "signal %d", WTERMSIG(child->status));
	else
		snprintf(text, size, "exit status unknown");
}
