#include "objects.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>

static const char name_prefix[] = "/@postgresql/";

int
collect_object(struct text *collected, const char *command, const char *content, size_t length)
{
	if (strlen(command) + length + 32 > OBJECT_MOST_BYTES)
		return (-1);
	text_print(collected, "%zu %zu\n", strlen(command), length);
	text_add(collected, command, strlen(command));
	text_add(collected, content, length);
	return (collected->failed ? -1 : 0);
}

static const char *
keep_one(struct objects *objects, uint32_t job_id, int32_t type, const char *command, size_t command_length,
    const char *content, size_t length)
{
	struct object *list;
	struct object *object;

	if (objects->bytes + command_length + length > OBJECTS_MOST_BYTES)
		return ("there are more than 64 MiB of restore objects");
	if ((list = realloc(objects->list, (objects->count + 1) * sizeof(*list))) == NULL)
		return ("there is no memory for the restore objects");
	objects->list = list;
	object = &list[objects->count];
	*object = (struct object){.job_id = job_id, .type = type, .length = length};
	if ((object->command = malloc(command_length + 1)) == NULL || (object->content = malloc(length + 1)) == NULL) {
		free(object->command);
		return ("there is no memory for the restore objects");
	}
	memcpy(object->command, command, command_length);
	object->command[command_length] = '\0';
	memcpy(object->content, content, length);
	object->content[length] = '\0';
	objects->count++;
	objects->bytes += command_length + length;
	return (NULL);
}

static const char *
take_apart(struct objects *objects, uint32_t job_id, const char *bytes, size_t length)
{
	static const char damaged[] = "a restore object of the catalog is damaged";
	const char *wrong = NULL;

	while (length > 0 && wrong == NULL) {
		const char *newline = memchr(bytes, '\n', length);
		const char *blank = newline != NULL ? memchr(bytes, ' ', (size_t)(newline - bytes)) : NULL;
		uint64_t command;
		uint64_t blob;

		if (blank == NULL || parse_number(bytes, (size_t)(blank - bytes), SIZE_MAX / 4, &command) != 0 ||
		    parse_number(blank + 1, (size_t)(newline - blank) - 1, SIZE_MAX / 4, &blob) != 0)
			return (damaged);
		length -= (size_t)(newline - bytes) + 1;
		bytes = newline + 1;
		if (command + blob > length || memchr(bytes, '\0', command) != NULL)
			return (damaged);
		wrong = keep_one(objects, job_id, FILE_RESTORE_OBJECT, bytes, command, bytes + command, blob);
		bytes += command + blob;
		length -= command + blob;
	}
	return (wrong);
}

const char *
objects_keep(struct objects *objects, const struct restore_object_packet *packet)
{
	size_t length = packet->object_len > 0 ? (size_t)packet->object_len : 0;

	if (packet->object == NULL || packet->object_name == NULL)
		return (NULL);
	if (packet->object_type == FILE_RESTORE_OBJECT && strcmp(packet->object_name, OBJECT_NAME) == 0)
		return (take_apart(objects, packet->job_id, packet->object, length));
	if (packet->object_type == FILE_PLUGIN_CONFIG_FILLED && packet->plugin_name != NULL)
		return (keep_one(objects, packet->job_id, packet->object_type, packet->plugin_name,
		    strlen(packet->plugin_name), packet->object, length));
	return (NULL);
}

void
objects_free(struct objects *objects)
{
	for (size_t i = 0; i < objects->count; i++) {
		free(objects->list[i].command);
		free(objects->list[i].content);
	}
	free(objects->list);
	*objects = (struct objects){0};
}

static int
open_unnamed(const char *directory)
{
	char path[4096];
	int descriptor;

	if (directory == NULL ||
	    (size_t)snprintf(path, sizeof(path), "%s/pgkeep-expected.XXXXXX", directory) >= sizeof(path)) {
		errno = ENAMETOOLONG;
		return (-1);
	}
	if ((descriptor = mkostemp(path, O_CLOEXEC)) != -1)
		unlink(path);
	return (descriptor);
}

int
expected_flush(struct expected *expected)
{
	size_t written = 0;

	while (written < expected->buffer.length && !expected->has_failed) {
		ssize_t count = write(expected->descriptor, expected->buffer.bytes + written,
		    expected->buffer.length - written);

		if (count == -1 && errno != EINTR)
			expected->has_failed = errno;
		if (count > 0)
			written += (size_t)count;
	}
	expected->bytes += written;
	text_clear(&expected->buffer);
	if (expected->buffer.failed && !expected->has_failed)
		expected->has_failed = ENOMEM;
	return (expected->has_failed ? -1 : 0);
}

void
expected_add(struct expected *expected, const char *directory, const struct restore_list_packet *file)
{
	if (file->ofname == NULL || strncmp(file->ofname, name_prefix, sizeof(name_prefix) - 1) != 0 ||
	    expected->has_failed)
		return;
	if (expected->descriptor == -1 && (expected->descriptor = open_unnamed(directory)) == -1) {
		expected->has_failed = errno;
		return;
	}
	text_print(&expected->buffer, "%lld %lld %u ", (long long)file->statp.st_size, (long long)file->statp.st_mtime,
	    (unsigned)file->delta_seq);
	text_add(&expected->buffer, file->ofname, strlen(file->ofname) + 1);
	expected->count++;
	if (expected->buffer.length >= 64 << 10)
		(void)expected_flush(expected);
}

void
expected_free(struct expected *expected)
{
	if (expected->descriptor != -1)
		close(expected->descriptor);
	text_free(&expected->buffer);
	*expected = (struct expected){.descriptor = -1};
}
