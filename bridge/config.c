#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "text.h"

enum {
	MOST_BYTES = 64 << 10
};

#define WHITE " \t\r"

static int
set_path(char **field, const char *value)
{
	if (value[0] != '/' || *field != NULL)
		return (-1);
	return ((*field = strdup(value)) != NULL ? 0 : -1);
}

static int
set_seconds(int *field, const char *value, uint64_t least)
{
	uint64_t number;

	if (parse_number(value, strlen(value), 86400, &number) != 0 || number < least)
		return (-1);
	*field = (int)number;
	return (0);
}

static int
set_yes_or_no(bool *field, const char *value)
{
	*field = strcmp(value, "yes") == 0;
	return (*field || strcmp(value, "no") == 0 ? 0 : -1);
}

/* Returns what is expected, or NULL when the line is well. */
static const char *
set_key(struct config *config, const char *key, const char *value)
{
	if (strcmp(key, "backend") == 0)
		return (set_path(&config->backend, value) == 0 ? NULL : "an absolute path, once");
	if (strcmp(key, "config") == 0)
		return (set_path(&config->config, value) == 0 ? NULL : "an absolute path, once");
	if (strcmp(key, "user") == 0) {
		if (value[0] == '\0' || config->user != NULL)
			return ("the name of a user, once");
		return ((config->user = strdup(value)) != NULL ? NULL : "memory");
	}
	if (strcmp(key, "ring") == 0)
		return (set_yes_or_no(&config->ring, value) == 0 ? NULL : "yes or no");
	if (strcmp(key, "timeout") == 0)
		return (set_seconds(&config->timeout_seconds, value, 1) == 0 ? NULL : "1 to 86400 seconds");
	if (strcmp(key, "kill_after") == 0)
		return (set_seconds(&config->kill_after_seconds, value, 0) == 0 ? NULL : "0 to 86400 seconds");
	return ("one of backend, user, config, ring, timeout and kill_after");
}

static char *
trimmed(char *text)
{
	size_t length;

	text += strspn(text, WHITE);
	length = strlen(text);
	while (length > 0 && strchr(WHITE, text[length - 1]) != NULL)
		length--;
	text[length] = '\0';
	return (text);
}

static int
parse(struct config *config, char *text, const char *path, char *wrong, int wrong_size)
{
	char *next;

	for (int number = 1; text != NULL; number++, text = next) {
		const char *expected;
		char *equals;
		char *line;

		if ((next = strchr(text, '\n')) != NULL)
			*next++ = '\0';
		line = trimmed(text);
		if (line[0] == '\0' || line[0] == '#')
			continue;
		if ((equals = strchr(line, '=')) == NULL) {
			snprintf(wrong, (size_t)wrong_size, "%s: line %d: expected \"key = value\"", path, number);
			return (-1);
		}
		*equals = '\0';
		if ((expected = set_key(config, trimmed(line), trimmed(equals + 1))) != NULL) {
			snprintf(wrong, (size_t)wrong_size, "%s: line %d: %s: expected %s", path, number, trimmed(line), expected);
			return (-1);
		}
	}
	return (0);
}

/* The file's bytes, with a NUL; NULL and nothing wrong when there is no file. */
static char *
slurp(const char *path, char *wrong, int wrong_size)
{
	int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat status;
	char *bytes = NULL;
	ssize_t count = -1;

	if (descriptor == -1) {
		if (errno != ENOENT)
			snprintf(wrong, (size_t)wrong_size, "%s: cannot be read: error %d", path, errno);
		return (NULL);
	}
	/* By the kernel's number: the name fstat belongs to new C libraries. The struct is the kernel's own here. */
	if (syscall(SYS_fstat, descriptor, &status) != 0 || !S_ISREG(status.st_mode))
		snprintf(wrong, (size_t)wrong_size, "%s: not a regular file", path);
	else if ((status.st_uid != 0 && status.st_uid != geteuid()) || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0)
		snprintf(wrong, (size_t)wrong_size, "%s: others than root and the daemon's user can write it", path);
	else if (status.st_size > MOST_BYTES)
		snprintf(wrong, (size_t)wrong_size, "%s: more than %d bytes", path, MOST_BYTES);
	else if ((bytes = calloc(1, MOST_BYTES + 1)) == NULL || (count = read(descriptor, bytes, MOST_BYTES)) < 0)
		snprintf(wrong, (size_t)wrong_size, "%s: cannot be read: error %d", path, errno);
	else if (memchr(bytes, '\0', (size_t)count) != NULL)
		snprintf(wrong, (size_t)wrong_size, "%s: not a text", path);
	close(descriptor);
	if (wrong[0] != '\0') {
		free(bytes);
		bytes = NULL;
	}
	return (bytes);
}

int
config_read(struct config *config, const char *directory, const char *exe_path, char *wrong, int wrong_size)
{
	struct text path = {0};
	char *bytes;

	*config = (struct config){.ring = true, .timeout_seconds = 300, .kill_after_seconds = 10};
	wrong[0] = '\0';
	text_print(&path, "%s/%s", directory, CONFIG_FILE);
	if (path.failed)
		goto no_memory;
	if ((bytes = slurp(path.bytes, wrong, wrong_size)) != NULL)
		parse(config, bytes, path.bytes, wrong, wrong_size);
	free(bytes);
	if (wrong[0] == '\0' && config->backend == NULL) {
		text_clear(&path);
		text_print(&path, "%s%spgkeep-backend", exe_path,
		    exe_path[0] != '\0' && exe_path[strlen(exe_path) - 1] == '/' ? "" : "/");
		if (path.failed || (config->backend = strdup(path.bytes)) == NULL)
			goto no_memory;
	}
	text_free(&path);
	return (wrong[0] == '\0' ? 0 : -1);

no_memory:
	text_free(&path);
	snprintf(wrong, (size_t)wrong_size, "no memory");
	return (-1);
}

void
config_free(struct config *config)
{
	free(config->backend);
	free(config->user);
	free(config->config);
	*config = (struct config){0};
}
