#ifndef PGKEEP_TEXT_H
#define PGKEEP_TEXT_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that grow; a NUL stands behind them. All zero is an empty one. */
struct text {
	char *bytes;            /* NULL when nothing was ever added */
	size_t length;
	size_t room;
	bool failed;            /* there was no memory for something; stays set until text_free */
};

void text_add(struct text *text, const void *bytes, size_t length);
void text_print(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_print_list(struct text *text, const char *format, va_list list) __attribute__((format(printf, 2, 0)));

/* Forget the bytes, keep the room. */
void text_clear(struct text *text);
void text_free(struct text *text);

/*
 * Set *number to what the length digits say and return 0; return -1 when they are not one to twenty decimal digits, or
 * say more than most. (strtol and its like have other names in new C libraries, and take blanks and signs.)
 */
int parse_number(const char *digits, size_t length, uint64_t most, uint64_t *number);

#endif
