/*
 * pgkeep-wal: the small front of "pgkeep archive-push" and "pgkeep archive-get".
 *
 *   archive_command = 'pgkeep-wal archive-push [OPTION]... %p'
 *   restore_command = 'pgkeep-wal archive-get [OPTION]... %f %p'
 *
 * The options are those of pgkeep. An archive service with the same options, if one runs, is asked to do the work;
 * otherwise, or when anything at all is odd, the pgkeep beside this program is run with the same arguments. It does the
 * same, and starts a service for the next time. What is said on the socket: src/pgkeep/wire/archive_packets.py.
 *
 * The exit status is what the server must see. A failed push stays within 1 to 125, so that the server tries again. For
 * a get, 1 means that the file is certainly not there; whatever else goes wrong is above 125, because the server takes 1
 * to 125 for the end of the WAL.
 */

#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROTOCOL 1
#define MAX_TEXT 16384
#define REQUEST_HEAD 12
#define ANSWER_HEAD 8

/* The service says "." every second; this much silence means that it hangs. */
#define SILENCE_MS 10000
#define CONNECT_SECONDS 2

#define EXIT_ABSENT 1
#define EXIT_ABSENT_FROM_PGKEEP 100
#define EXIT_PUSH_BROKEN 101
#define EXIT_GET_BROKEN 201

enum operation { PUSH = 1, GET = 2 };
enum result { DONE = 0, ABSENT = 1, FAILED = 2, DECLINED = 3, NO_ANSWER = 4 };

struct call {
	enum operation operation;
	int argc;
	char **argv;
	const char *name;
	const char *path;
	char directory[PATH_MAX];
	char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

struct answer {
	enum result result;
	int exit_status;
	int fd; /* the delivered file, or -1 */
	char message[MAX_TEXT + 1];
};

extern char **environ;

static uint64_t
fnv1a(uint64_t hash, const char *text)
{
	/* The NUL is part of it, so that "ab" "c" and "a" "bc" differ. */
	do {
		hash ^= (unsigned char)*text;
		hash *= UINT64_C(0x100000001b3);
	} while (*text++ != '\0');
	return hash;
}

/* Find the socket of the service with these options in this directory; return false when there can be none. */
static bool
find_socket(struct call *call)
{
	const uint64_t basis = UINT64_C(0xcbf29ce484222325);
	const char *given = NULL;
	const char *runtime = getenv("PGKEEP_RUNTIME_DIR");
	int operands = call->operation == PUSH ? 1 : 2;
	uint64_t key = fnv1a(basis, call->directory);
	uint64_t environment = 0;
	int length;

	for (int i = 2; i < call->argc - operands; i++) {
		if (strncmp(call->argv[i], "--socket=", 9) == 0)
			given = call->argv[i] + 9;
		key = fnv1a(key, call->argv[i]);
	}

	/* Settings may come from the environment too; a sum does not depend on their order. */
	for (char **entry = environ; *entry != NULL; entry++)
		if (strncmp(*entry, "PGKEEP_", 7) == 0)
			environment += fnv1a(basis, *entry);
	key ^= environment;

	if (given != NULL)
		length = snprintf(call->socket_path, sizeof(call->socket_path), "%s", given);
	else if (runtime != NULL && runtime[0] != '\0')
		length = snprintf(call->socket_path, sizeof(call->socket_path), "%s/%016llx.socket", runtime,
		    (unsigned long long)key);
	else
		length = snprintf(call->socket_path, sizeof(call->socket_path), "/tmp/pgkeep-%lu/%016llx.socket",
		    (unsigned long)geteuid(), (unsigned long long)key);
	if (length < 0 || (size_t)length >= sizeof(call->socket_path)) {
		call->socket_path[0] = '\0';
		return false;
	}
	return true;
}

/* Return a socket that is connected to a service of this user or of root, or -1. */
static int
connect_service(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct timeval patience = { .tv_sec = CONNECT_SECONDS };
	struct ucred peer;
	socklen_t length = sizeof(peer);
	int fd;

	memcpy(address.sun_path, path, strlen(path) + 1);
	if ((fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) == -1)
		return -1;
	/* It limits how long connect(2) waits for room in the queue, too. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) == -1)
		goto err_close;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == -1)
		goto err_close;
	/* In a directory like /tmp anybody may listen. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == -1)
		goto err_close;
	if (peer.uid != geteuid() && peer.uid != 0)
		goto err_close;
	return fd;

err_close:
	close(fd);
	return -1;
}

static bool
append(char *text, size_t *length, const char *field)
{
	size_t size = strlen(field) + 1;

	if (*length + size > MAX_TEXT)
		return false;
	memcpy(text + *length, field, size);
	*length += size;
	return true;
}

static bool
send_request(int fd, const struct call *call)
{
	char packet[REQUEST_HEAD + MAX_TEXT] = { 'P', 'G', 'K', 'W', PROTOCOL, (char)call->operation };
	size_t length = 0;
	size_t sent = 0;

	if (!append(packet + REQUEST_HEAD, &length, call->directory) ||
	    !append(packet + REQUEST_HEAD, &length, call->name) || !append(packet + REQUEST_HEAD, &length, call->path))
		return false;
	for (int i = 0; i < 4; i++)
		packet[8 + i] = (char)(length >> (8 * i) & 0xff);
	length += REQUEST_HEAD;
	while (sent < length) {
		ssize_t n = send(fd, packet + sent, length - sent, MSG_NOSIGNAL);

		if (n == -1 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		sent += (size_t)n;
	}
	return true;
}

/* Receive what is there, and a file descriptor with it; return the number of bytes, 0 at the end, -1 for an error. */
static ssize_t
receive(int fd, char *buffer, size_t size, int *delivered)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = { .iov_base = buffer, .iov_len = size };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space)
	};
	struct pollfd waiting = { .fd = fd, .events = POLLIN };
	struct cmsghdr *header;
	ssize_t n;
	int ready;

	while ((ready = poll(&waiting, 1, SILENCE_MS)) == -1 && errno == EINTR)
		;
	if (ready <= 0)
		return -1;
	while ((n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC)) == -1 && errno == EINTR)
		;
	if (n <= 0)
		return n;
	for (header = CMSG_FIRSTHDR(&message); header != NULL; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
			continue;
		if (*delivered != -1)
			close(*delivered);
		memcpy(delivered, CMSG_DATA(header), sizeof(*delivered));
	}
	return n;
}

/* Read the service's last word into *answer; anything but a whole one is NO_ANSWER. */
static void
receive_answer(int fd, struct answer *answer)
{
	char head[ANSWER_HEAD];
	size_t got = 0;
	size_t length = 0;

	answer->result = NO_ANSWER;
	while (got < ANSWER_HEAD) {
		ssize_t n = receive(fd, head + got, ANSWER_HEAD - got, &answer->fd);

		if (n <= 0)
			return;
		got += (size_t)n;
		/* Dots come before the answer only. */
		while (got > 0 && head[0] == '.')
			memmove(head, head + 1, --got);
	}
	for (int i = 3; i >= 0; i--)
		length = length << 8 | (unsigned char)head[4 + i];
	if (head[0] != 'R' || head[3] != 0 || length > MAX_TEXT)
		return;
	for (got = 0; got < length;) {
		ssize_t n = receive(fd, answer->message + got, length - got, &answer->fd);

		if (n <= 0)
			return;
		got += (size_t)n;
	}
	answer->message[length] = '\0';
	answer->exit_status = (unsigned char)head[2];
	if ((unsigned char)head[1] <= DECLINED)
		answer->result = (enum result)head[1];
}

/* Give the delivered file, which has no name yet, its name. */
static bool
name_file(int fd, const char *target)
{
	char source[64];

	snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
	for (int attempt = 0; attempt < 3; attempt++) {
		if (linkat(AT_FDCWD, source, AT_FDCWD, target, AT_SYMLINK_FOLLOW) == 0)
			return true;
		if (errno != EEXIST || (unlink(target) == -1 && errno != ENOENT))
			return false;
	}
	return false;
}

/* Let the service do it; return the exit status, or -1 when pgkeep must be run. */
static int
ask_service(const struct call *call)
{
	static struct answer answer = { .result = NO_ANSWER, .fd = -1 };
	int status = -1;
	int fd;

	if ((fd = connect_service(call->socket_path)) == -1)
		return -1;
	if (!send_request(fd, call))
		goto out;
	receive_answer(fd, &answer);
	switch (answer.result) {
	case DONE:
		if (call->operation == PUSH || (answer.fd != -1 && name_file(answer.fd, call->path)))
			status = 0;
		break;
	case ABSENT:
		if (call->operation == GET)
			status = EXIT_ABSENT;
		break;
	case FAILED:
		fprintf(stderr, "pgkeep-wal: %s\n", answer.message);
		status = answer.exit_status;
		if (call->operation == PUSH && (status < 1 || status > 125))
			status = EXIT_PUSH_BROKEN;
		if (call->operation == GET && status <= 125)
			status = EXIT_GET_BROKEN;
		break;
	case DECLINED:
	case NO_ANSWER:
		break;
	}
	if (answer.fd != -1)
		close(answer.fd);

out:
	close(fd);
	return status;
}

/* Replace this process by the pgkeep beside this program, or else by the one on the PATH. */
static void
exec_pgkeep(const struct call *call)
{
	static char program[PATH_MAX];
	static char option[sizeof(call->socket_path) + 16];
	char **arguments;
	char *slash;
	ssize_t length;
	int n = 0;

	if ((arguments = calloc((size_t)call->argc + 2, sizeof(*arguments))) == NULL)
		return;
	snprintf(option, sizeof(option), "--for-client=%s", call->socket_path);
	arguments[n++] = program;
	arguments[n++] = call->argv[1];
	arguments[n++] = option;
	for (int i = 2; i < call->argc; i++)
		if (strncmp(call->argv[i], "--socket=", 9) != 0)
			arguments[n++] = call->argv[i];
	length = readlink("/proc/self/exe", program, sizeof(program) - sizeof("pgkeep"));
	if (length > 0) {
		program[length] = '\0';
		if ((slash = strrchr(program, '/')) != NULL) {
			memcpy(slash + 1, "pgkeep", sizeof("pgkeep"));
			execv(program, arguments);
		}
	}
	memcpy(program, "pgkeep", sizeof("pgkeep"));
	execvp(program, arguments);
	fprintf(stderr, "pgkeep-wal: cannot run pgkeep: %s\n", strerror(errno));
	free(arguments);
}

/*
 * Run pgkeep and turn its status into one for the server. For a get, only the status that nothing else has counts as
 * absent: an interpreter that cannot start says 1. For a push, 126 of a shell would make the archiver end.
 */
static int
run_pgkeep(const struct call *call)
{
	const int broken = call->operation == GET ? EXIT_GET_BROKEN : EXIT_PUSH_BROKEN;
	pid_t self = getpid();
	pid_t child;
	int status;

	if ((child = fork()) == -1) {
		fprintf(stderr, "pgkeep-wal: cannot fork: %s\n", strerror(errno));
		return broken;
	}
	if (child == 0) {
		/* Nobody would name the end of an orphan's work. */
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		if (getppid() == self)
			exec_pgkeep(call);
		_exit(broken);
	}
	while (waitpid(child, &status, 0) == -1)
		if (errno != EINTR)
			return broken;
	if (WIFSIGNALED(status)) {
		/* The server takes SIGTERM for its own shutdown, and every other signal for an error. */
		signal(WTERMSIG(status), SIG_DFL);
		raise(WTERMSIG(status));
		return broken;
	}
	status = WEXITSTATUS(status);
	if (status == 0)
		return 0;
	if (call->operation == PUSH)
		return status <= 125 ? status : broken;
	if (status == EXIT_ABSENT_FROM_PGKEEP)
		return EXIT_ABSENT;
	return status > 125 ? status : EXIT_GET_BROKEN;
}

static int
usage(bool is_get)
{
	fprintf(stderr, "usage: pgkeep-wal archive-push [OPTION]... PATH\n"
			"       pgkeep-wal archive-get [OPTION]... NAME PATH\n");
	return is_get ? EXIT_GET_BROKEN + 1 : 2;
}

int
main(int argc, char **argv)
{
	static struct call call;
	const char *slash;
	bool is_get = argc > 1 && strcmp(argv[1], "archive-get") == 0;
	int status;

	if (argc < (is_get ? 4 : 3) || (!is_get && strcmp(argv[1], "archive-push") != 0))
		return usage(is_get);
	call.operation = is_get ? GET : PUSH;
	call.argc = argc;
	call.argv = argv;
	call.path = argv[argc - 1];
	slash = strrchr(call.path, '/');
	call.name = is_get ? argv[argc - 2] : slash != NULL ? slash + 1 : call.path;

	if (getcwd(call.directory, sizeof(call.directory)) != NULL && call.directory[0] == '/' && find_socket(&call) &&
	    (status = ask_service(&call)) != -1)
		return status;
	return run_pgkeep(&call);
}
