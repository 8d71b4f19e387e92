#include "daemon.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The daemon formats into 2000 bytes. */
#define MESSAGE_BYTES 1900

static const struct bacula_functions *daemon_functions;

void
daemon_remember(const struct bacula_functions *functions)
{
	daemon_functions = functions;
}

int32_t
daemon_number(struct bacula_context *context, enum variable variable, int32_t fallback)
{
	int32_t value = fallback;

	daemon_functions->get_value(context, (int)variable, &value);
	return (value);
}

const char *
daemon_text(struct bacula_context *context, enum variable variable)
{
	char *value = NULL;

	daemon_functions->get_value(context, (int)variable, &value);
	return (value);
}

bool
daemon_gave_up(struct bacula_context *context)
{
	int32_t status = daemon_number(context, VARIABLE_JOB_STATUS, 'R');

	return (daemon_number(context, VARIABLE_IS_CANCELED, 0) != 0 || status == 'A' || status == 'E' || status == 'f' ||
	    status == 'I');
}

enum rc
daemon_catalogued(struct bacula_context *context, struct accurate_packet *file)
{
	enum rc found = daemon_functions->get_accurate_attribs(context, file);

	if (file->checksum != NULL)
		daemon_functions->free(context, __FILE__, __LINE__, file->checksum);
	file->checksum = NULL;
	return (found);
}

void
daemon_mark_seen(struct bacula_context *context, const char *name)
{
	char copy[4096];

	/* The daemon's parameter is not const. */
	if ((size_t)snprintf(copy, sizeof(copy), "%s", name) < sizeof(copy))
		daemon_functions->set_value(context, VARIABLE_FILE_SEEN, copy);
}

/* Where to cut text so that it has at most length bytes and no half of a character. */
static size_t
whole_characters(const char *text, size_t length)
{
	if (strlen(text) <= length)
		return (strlen(text));
	while (length > 0 && ((unsigned char)text[length] & 0xC0) == 0x80)
		length--;
	return (length);
}

/* How many bytes the character at text has; 0 when it is none of UTF-8, as no catalog would take it. */
static size_t
character_length(const unsigned char *text)
{
	size_t length = text[0] < 0x80 ? 1 : text[0] >= 0xC2 && text[0] < 0xE0 ? 2 : text[0] >= 0xE0 && text[0] < 0xF0 ? 3 :
	    text[0] >= 0xF0 && text[0] < 0xF5 ? 4 : 0;

	for (size_t i = 1; i < length; i++)
		if ((text[i] & 0xC0) != 0x80)
			return (0);
	/* Written longer than needed, half of a pair, beyond the last. */
	if ((text[0] == 0xE0 && text[1] < 0xA0) || (text[0] == 0xED && text[1] >= 0xA0) ||
	    (text[0] == 0xF0 && text[1] < 0x90) || (text[0] == 0xF4 && text[1] >= 0x90))
		return (0);
	return (length);
}

static void
deliver(struct bacula_context *context, enum message_type type, char *text)
{
	size_t length;

	text[whole_characters(text, MESSAGE_BYTES)] = '\0';
	for (unsigned char *byte = (unsigned char *)text; *byte != '\0'; byte += length) {
		length = character_length(byte);
		if (length == 0 || *byte < ' ' || *byte == 0x7F) {
			*byte = '?';
			length = 1;
		}
	}
	daemon_functions->job_message(context, __FILE__, __LINE__, (int)type, 0, "pgkeep: %s\n", text);
}

void
message(struct bacula_context *context, enum message_type type, const char *format, ...)
{
	char text[MESSAGE_BYTES + 64];
	va_list list;

	va_start(list, format);
	vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	deliver(context, type, text);
}

void
message_of_backend(struct bacula_context *context, enum message_type type, const char *text)
{
	char whole[MESSAGE_BYTES + 64];
	size_t length = strcspn(text, "\n");
	size_t used;

	used = (size_t)snprintf(whole, sizeof(whole), "%.*s", (int)(length < MESSAGE_BYTES ? length : MESSAGE_BYTES), text);
	while (text[length] != '\0' && used < MESSAGE_BYTES) {
		text += length + 1;
		length = strcspn(text, "\n");
		if (length > 0)
			used += (size_t)snprintf(whole + used, sizeof(whole) - used, " (%.*s)",
			    (int)(length < MESSAGE_BYTES ? length : MESSAGE_BYTES), text);
	}
	deliver(context, type, used > 0 ? whole : strcpy(whole, "(nothing said)"));
}
