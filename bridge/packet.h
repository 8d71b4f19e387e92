#ifndef PGKEEP_PACKET_H
#define PGKEEP_PACKET_H

/*
 * The form of what bridge and backend say on the pipes; docs/formats/packets.md. One letter, six digits for the length of
 * the payload, a newline; then the payload.
 */

#include <stdbool.h>
#include <stddef.h>

enum {
	PACKET_HEADER_BYTES = 8,
	PACKET_MAX_PAYLOAD_BYTES = 999999
};

enum packet_kind {
	PACKET_COMMAND = 'C',
	PACKET_DATA = 'D',
	PACKET_END = 'F',
	PACKET_TERMINATE = 'T',
	PACKET_ERROR = 'E',
	PACKET_FATAL = 'A',
	PACKET_JOB_ERROR = 'Q',
	PACKET_WARNING = 'W',
	PACKET_INFO = 'I',
	PACKET_SAVED = 'S',
	PACKET_NOT_SAVED = 'N',
	PACKET_RESTORED = 'R',
	PACKET_SKIPPED = 'P',
	PACKET_MOUNT = 'O',
	PACKET_EVENT = 'V',
	PACKET_SLOT = 'M',
	PACKET_RELEASE = 'K',
	PACKET_HEARTBEAT = 'H'
};

/* Write the header of a packet; return -1, when such a packet can't be, or 0. */
int packet_encode(char header[PACKET_HEADER_BYTES], char kind, size_t length);

/* Take a header apart; return NULL, or what is wrong with it. */
const char *packet_parse(const char header[PACKET_HEADER_BYTES], char *kind, size_t *length);

/* Take apart "<slot> <length>\n" of an M packet, "<slot>\n" of a K packet; return 0, or -1 when it is not that. */
int packet_parse_slot(const char *payload, size_t size, unsigned *slot, size_t *length);
int packet_parse_release(const char *payload, size_t size, unsigned *slot);

/* Whether such a packet may stand before any other, and is dealt with where it is read: messages, K and H. */
bool packet_is_transparent(char kind);

#endif
