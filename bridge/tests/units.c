/*
 * The parts of the bridge that need no daemon: packets, numbers, attributes, Plugin lines, what is collected for a
 * restore. The packets come from tests/wire/vectors/packets.json, which the backend's tests read as well; vectors.py makes
 * vectors.inc of it.
 */

#include <stdio.h>
#include <string.h>

#include "../file_item.h"
#include "../objects.h"
#include "../packet.h"
#include "../plugin_line.h"
#include "../text.h"

static int failures;

#define CHECK(what, name) do { \
	if (!(what)) { \
		printf("%s:%d: %s: %s\n", __FILE__, __LINE__, (name), #what); \
		failures++; \
	} \
} while (0)

struct vector {
	const char *name;
	const char *bytes;
	size_t length;
	char kind;                      /* 0: not a packet */
	size_t payload;
};

static const struct vector vectors[] = {
#include "vectors.inc"
	{NULL, NULL, 0, 0, 0}
};

/* Whether bytes are one packet, whole and alone. */
static bool
is_packet(const char *bytes, size_t length, char *kind, size_t *payload)
{
	unsigned slot;
	size_t size;

	if (length < PACKET_HEADER_BYTES || packet_parse(bytes, kind, payload) != NULL ||
	    length != PACKET_HEADER_BYTES + *payload)
		return (false);
	if (*kind == PACKET_SLOT)
		return (packet_parse_slot(bytes + PACKET_HEADER_BYTES, *payload, &slot, &size) == 0);
	if (*kind == PACKET_RELEASE)
		return (packet_parse_release(bytes + PACKET_HEADER_BYTES, *payload, &slot) == 0);
	return (true);
}

static void
test_packets(void)
{
	char header[PACKET_HEADER_BYTES];

	for (const struct vector *vector = vectors; vector->name != NULL; vector++) {
		char kind = 0;
		size_t payload = 0;
		bool is_good = is_packet(vector->bytes, vector->length, &kind, &payload);

		CHECK(is_good == (vector->kind != 0), vector->name);
		if (!is_good || vector->kind == 0)
			continue;
		CHECK(kind == vector->kind, vector->name);
		CHECK(payload == vector->payload, vector->name);
		CHECK(packet_encode(header, kind, payload) == 0, vector->name);
		CHECK(memcmp(header, vector->bytes, sizeof(header)) == 0, vector->name);
	}
	CHECK(packet_encode(header, PACKET_DATA, PACKET_MAX_PAYLOAD_BYTES) == 0, "longest");
	CHECK(memcmp(header, "D999999\n", 8) == 0, "longest");
	CHECK(packet_encode(header, PACKET_DATA, PACKET_MAX_PAYLOAD_BYTES + 1) == -1, "too long");
	CHECK(packet_encode(header, PACKET_DATA, 0) == -1, "empty data");
	CHECK(packet_encode(header, PACKET_END, 1) == -1, "an end with a payload");
}

static void
test_numbers(void)
{
	static const struct {
		const char *digits;
		uint64_t most;
		int result;
		uint64_t number;
	} rows[] = {{"0", 0, 0, 0}, {"007", 7, 0, 7}, {"18446744073709551615", UINT64_MAX, 0, UINT64_MAX},
	    {"18446744073709551616", UINT64_MAX, -1, 0}, {"99999999999999999999", UINT64_MAX, -1, 0}, {"", 9, -1, 0},
	    {"10", 9, -1, 0}, {"-1", 9, -1, 0}, {"+1", 9, -1, 0}, {" 1", 9, -1, 0}, {"1 ", 9, -1, 0}, {"0x1", 99, -1, 0},
	    {"000000000000000000001", 9, -1, 0}};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint64_t number = 0;

		CHECK(parse_number(rows[i].digits, strlen(rows[i].digits), rows[i].most, &number) == rows[i].result, rows[i].digits);
		CHECK(number == rows[i].number, rows[i].digits);
	}
}

static void
test_attributes(void)
{
	static const char *const good[] = {"F 10 1 2 100600 1", "F -1 0 0 600 1 7", "E 0 0 0 0 0",
	    "D 0 4294967295 4294967295 040755 2", "S 9223372036854775807 0 0 120777 1 2147483647", "L 0 0 0 100644 2 5"};
	static const char *const bad[] = {"", "F", "F 10", "F 10 1 2 100600", "X 0 0 0 0 1", "F  1 2 3 600 1", "F 1 2 3 600 1 ",
	    "F 1 2 3 800 1", "F 1 -2 3 600 1", "F -2 0 0 600 1", "F 1 2 3 600 1 2 3", "F 1 4294967296 0 600 1", "f 1 2 3 600 1",
	    "F 9223372036854775808 0 0 600 1", "F 1 2 3 12345670 1", "F 1 2 3 600 1 2147483648", "D 0 0 0 100600 1",
	    "S 0 0 0 040777 1", "F 1 2 3  1"};
	static const char *const good_times[] = {"0 0 0", "1 2 3", "-1 -2 -3", "9223372036854775807 0 0"};
	static const char *const bad_times[] = {"", "1", "1 2", "1 2 3 4", "1 2 3 ", " 1 2 3", "1  2 3", "a b c", "--1 2 3"};
	struct file_item item;
	struct text text = {0};

	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		CHECK(file_item_parse_stat(&item, good[i]) == 0, good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK(file_item_parse_stat(&item, bad[i]) == -1, bad[i]);
	for (size_t i = 0; i < sizeof(good_times) / sizeof(good_times[0]); i++)
		CHECK(file_item_parse_times(&item, good_times[i]) == 0, good_times[i]);
	for (size_t i = 0; i < sizeof(bad_times) / sizeof(bad_times[0]); i++)
		CHECK(file_item_parse_times(&item, bad_times[i]) == -1, bad_times[i]);

	item = (struct file_item){0};
	CHECK(file_item_parse_stat(&item, "D 0 7 8 0755 3 9") == 0, "round trip");
	CHECK(file_item_parse_times(&item, "-5 6 7") == 0, "round trip");
	file_item_print_stat(&text, &item);
	text_print(&text, " ");
	file_item_print_times(&text, &item);
	CHECK(strcmp(text.bytes, "STAT:D 0 7 8 040755 3 9 TSTAMP:-5 6 7") == 0, text.bytes);
	text_free(&text);
}

static void
test_plugin_lines(void)
{
	/* The line, whether .ls may stand in it, and the pairs that come out, with a bar behind each; NULL: refused. */
	static const struct {
		const char *line;
		bool may_list;
		const char *pairs;
	} rows[] = {{"pgkeep:", false, ""}, {"pgkeep: ", false, ""}, {"pgkeep:a", false, "a=1|"},
	    {"pgkeep: a=b c  d=e=f", false, "a=b|c=1|d=e=f|"}, {"pgkeep: \"a=b c\"", false, "a=b c|"},
	    {"pgkeep: a=\"b\"c", false, "a=bc|"}, {"pgkeep: a=b\\ c", false, "a=b c|"}, {"pgkeep: a=\\\"b", false, "a=\"b|"},
	    {"pgkeep: a=\"\"", false, "a=|"}, {"pgkeep: a=c:\\\\x", false, "a=c:\\x|"},
	    {"pgkeep:\ta=b", false, "a=b|"}, {"pgkeep: \"a b\"", false, "a b=1|"}, {"pgkeep: =", false, NULL},
	    {"pgkeep: \"\"", false, NULL}, {"pgkeep: \"a", false, NULL}, {"pgkeep: a\\", false, NULL}, {"pgkeep: a=\n", false, NULL},
	    {"pgkeep: listing=/a b", false, "listing=/a|b=1|"}, {"pgkeep: listing=/a b", true, "listing=/a b|"},
	    {"pgkeep: a listing=x listing=", true, "a=1|listing=x|listing=|"}, {"pgkeep", false, ""}};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct parameters parameters;
		struct text found = {0};
		const char *wrong;
		int result = parameters_parse(&parameters, rows[i].line, rows[i].may_list, &wrong);

		text_add(&found, "", 0);
		for (size_t pair = 0; pair < parameters.count; pair++)
			text_print(&found, "%s|", parameters.pairs[pair]);
		CHECK((result == 0) == (rows[i].pairs != NULL), rows[i].line);
		CHECK((wrong == NULL) == (rows[i].pairs != NULL), rows[i].line);
		if (rows[i].pairs != NULL)
			CHECK(strcmp(found.bytes, rows[i].pairs) == 0, found.bytes);
		parameters_free(&parameters);
		text_free(&found);
	}
}

static void
test_objects(void)
{
	struct restore_object_packet packet = {.object_name = "pgkeep", .object_type = FILE_RESTORE_OBJECT, .job_id = 5};
	struct objects objects = {0};
	struct text collected = {0};
	char blob[OBJECT_MOST_BYTES] = {0};

	CHECK(collect_object(&collected, "pgkeep: a\nb", "x\0y", 3) == 0, "collect");
	CHECK(collect_object(&collected, "pgkeep: b", "", 0) == 0, "collect");
	CHECK(collect_object(&collected, "pgkeep: c", blob, sizeof(blob)) == -1, "collect too much");
	packet.object = collected.bytes;
	packet.object_len = (int32_t)collected.length;
	CHECK(objects_keep(&objects, &packet) == NULL, "keep");
	CHECK(objects.count == 2, "keep");
	if (objects.count == 2) {
		CHECK(strcmp(objects.list[0].command, "pgkeep: a\nb") == 0, "first");
		CHECK(objects.list[0].length == 3 && memcmp(objects.list[0].content, "x\0y", 3) == 0, "first");
		CHECK(strcmp(objects.list[1].command, "pgkeep: b") == 0 && objects.list[1].length == 0, "second");
		CHECK(objects.list[1].job_id == 5, "second");
	}
	/* Any cut is noticed, unless it falls between two pieces. */
	for (int32_t length = 1; length < (int32_t)collected.length; length++) {
		struct objects cut = {0};

		packet.object_len = length;
		CHECK((objects_keep(&cut, &packet) == NULL) == (length == 19), "cut");
		objects_free(&cut);
	}
	objects_free(&objects);
	text_free(&collected);
}

int
main(void)
{
	test_packets();
	test_numbers();
	test_attributes();
	test_plugin_lines();
	test_objects();
	if (failures == 0)
		printf("units: OK\n");
	return (failures == 0 ? 0 : 1);
}
