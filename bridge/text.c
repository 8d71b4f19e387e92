#include "text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int
make_room(struct text *text, size_t more)
{
	size_t room = text->room ? text->room : 256;
	char *bytes;

	if (text->failed || more > SIZE_MAX / 4 - text->length)
		goto failed;
	if (text->length + more < text->room)
		return (0);
	while (room <= text->length + more)
		room *= 2;
	if ((bytes = realloc(text->bytes, room)) == NULL)
		goto failed;
	text->bytes = bytes;
	text->room = room;
	return (0);

failed:
	text->failed = true;
	return (-1);
}

void
text_add(struct text *text, const void *bytes, size_t length)
{
	if (make_room(text, length) != 0)
		return;
	if (length > 0)
		memcpy(text->bytes + text->length, bytes, length);
	text->length += length;
	text->bytes[text->length] = '\0';
}

void
text_print_list(struct text *text, const char *format, va_list list)
{
	va_list again;
	int length;

	va_copy(again, list);
	length = vsnprintf(NULL, 0, format, again);
	va_end(again);
	if (length < 0)
		text->failed = true;
	if (length < 0 || make_room(text, (size_t)length) != 0)
		return;
	vsnprintf(text->bytes + text->length, (size_t)length + 1, format, list);
	text->length += (size_t)length;
}

void
text_print(struct text *text, const char *format, ...)
{
	va_list list;

	va_start(list, format);
	text_print_list(text, format, list);
	va_end(list);
}

void
text_clear(struct text *text)
{
	text->length = 0;
	if (text->bytes != NULL)
		text->bytes[0] = '\0';
}

void
text_free(struct text *text)
{
	free(text->bytes);
	*text = (struct text){0};
}

int
parse_number(const char *digits, size_t length, uint64_t most, uint64_t *number)
{
	uint64_t found = 0;

	if (length == 0 || length > 20)
		return (-1);
	for (size_t i = 0; i < length; i++) {
		uint64_t digit = (uint64_t)(digits[i] - '0');

		if (digits[i] < '0' || digits[i] > '9' || found > (UINT64_MAX - digit) / 10)
			return (-1);
		found = found * 10 + digit;
	}
	if (found > most)
		return (-1);
	*number = found;
	return (0);
}
