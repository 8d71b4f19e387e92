#include "plugin_line.h"

#include <stdlib.h>
#include <string.h>

#include "text.h"

static const char listing[] = " listing=";

static bool
is_blank(char byte)
{
	return (byte == ' ' || byte == '\t');
}

static int
add_pair(struct parameters *parameters, const char *bytes, size_t length)
{
	char **pairs = realloc(parameters->pairs, (parameters->count + 1) * sizeof(*pairs));
	char *pair;

	if (pairs == NULL)
		return (-1);
	parameters->pairs = pairs;
	if ((pair = malloc(length + 1)) == NULL)
		return (-1);
	memcpy(pair, bytes, length);
	pair[length] = '\0';
	pairs[parameters->count++] = pair;
	return (0);
}

/* The last " listing=" of the line, or NULL. */
static const char *
find_listing(const char *line)
{
	const char *found = NULL;

	for (const char *next = line; (next = strstr(next, listing)) != NULL; next++)
		found = next;
	return (found);
}

/* Take one word, which begins at *at, into word; return what is wrong, or NULL. */
static const char *
take_word(const char **at, const char *end, struct text *word)
{
	bool is_quoted = false;
	bool has_value = false;

	text_clear(word);
	for (; *at < end && (is_quoted || !is_blank(**at)); ++*at) {
		char byte = **at;

		if (byte == '"') {
			is_quoted = !is_quoted;
			continue;
		}
		if (byte == '\\') {
			if (++*at == end)
				return ("it ends in a backslash");
			byte = **at;
		}
		if ((unsigned char)byte < ' ')
			return ("it holds a control character");
		has_value = has_value || byte == '=';
		text_add(word, &byte, 1);
	}
	if (is_quoted)
		return ("a quotation mark is missing");
	if (!has_value)
		text_add(word, "=1", 2);
	if (word->failed)
		return ("there is no memory for it");
	return (word->bytes[0] == '=' ? "a word has no key" : NULL);
}

int
parameters_parse(struct parameters *parameters, const char *line, bool may_list, const char **wrong)
{
	const char *path = may_list ? find_listing(line) : NULL;
	const char *end = path != NULL ? path : line + strlen(line);
	const char *colon = memchr(line, ':', (size_t)(end - line));
	const char *at;
	struct text word = {0};

	*parameters = (struct parameters){0};
	*wrong = NULL;
	/* The word before the colon only chose the plugin. */
	at = colon != NULL ? colon + 1 : end;
	while (*wrong == NULL) {
		while (at < end && is_blank(*at))
			at++;
		if (at == end)
			break;
		if ((*wrong = take_word(&at, end, &word)) == NULL && add_pair(parameters, word.bytes, word.length) != 0)
			*wrong = "there is no memory for it";
	}
	if (*wrong == NULL && path != NULL) {
		parameters->has_listing = true;
		if (strchr(path, '\n') != NULL)
			*wrong = "it holds a control character";
		else if (add_pair(parameters, path + 1, strlen(path + 1)) != 0)
			*wrong = "there is no memory for it";
	}
	text_free(&word);
	return (*wrong == NULL ? 0 : -1);
}

void
parameters_free(struct parameters *parameters)
{
	for (size_t i = 0; i < parameters->count; i++)
		free(parameters->pairs[i]);
	free(parameters->pairs);
	*parameters = (struct parameters){0};
}
