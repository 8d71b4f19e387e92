#include "packet.h"

#include <stdint.h>
#include <string.h>

#include "text.h"

static const char bare[] = "FTH";
static const char filled[] = "CDMK";
static const char others[] = "EAQWISNRPOV";

static bool
is_one_of(char kind, const char *kinds)
{
	return (kind != '\0' && strchr(kinds, kind) != NULL);
}

int
packet_encode(char header[PACKET_HEADER_BYTES], char kind, size_t length)
{
	if (length > PACKET_MAX_PAYLOAD_BYTES || (length > 0 && is_one_of(kind, bare)) ||
	    (length == 0 && is_one_of(kind, filled)))
		return (-1);
	header[0] = kind;
	for (int i = 6; i > 0; i--) {
		header[i] = (char)('0' + length % 10);
		length /= 10;
	}
	header[7] = '\n';
	return (0);
}

const char *
packet_parse(const char header[PACKET_HEADER_BYTES], char *kind, size_t *length)
{
	uint64_t found;

	if (!is_one_of(header[0], bare) && !is_one_of(header[0], filled) && !is_one_of(header[0], others))
		return ("unknown packet type");
	if (parse_number(header + 1, 6, PACKET_MAX_PAYLOAD_BYTES, &found) != 0)
		return ("a packet's length is six digits");
	if (header[7] != '\n')
		return ("a packet's header ends in a newline");
	if (found > 0 && is_one_of(header[0], bare))
		return ("a packet of this type has no payload");
	if (found == 0 && is_one_of(header[0], filled))
		return ("a packet of this type needs a payload");
	*kind = header[0];
	*length = (size_t)found;
	return (NULL);
}

/* A number as it is written: no zero in front. */
static int
parse_plain_number(const char *digits, size_t length, uint64_t most, uint64_t *number)
{
	return (length > 1 && digits[0] == '0' ? -1 : parse_number(digits, length, most, number));
}

int
packet_parse_slot(const char *payload, size_t size, unsigned *slot, size_t *length)
{
	const char *blank = memchr(payload, ' ', size);
	uint64_t number;
	uint64_t bytes;

	if (blank == NULL || payload[size - 1] != '\n' ||
	    parse_plain_number(payload, (size_t)(blank - payload), 999999, &number) != 0 ||
	    parse_plain_number(blank + 1, size - (size_t)(blank - payload) - 2, UINT64_C(9999999999), &bytes) != 0)
		return (-1);
	*slot = (unsigned)number;
	*length = (size_t)bytes;
	return (0);
}

int
packet_parse_release(const char *payload, size_t size, unsigned *slot)
{
	uint64_t number;

	if (size < 2 || payload[size - 1] != '\n' || parse_plain_number(payload, size - 1, 999999, &number) != 0)
		return (-1);
	*slot = (unsigned)number;
	return (0);
}

bool
packet_is_transparent(char kind)
{
	return (is_one_of(kind, "QWISNRPOVHK"));
}
