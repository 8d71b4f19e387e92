/*
 * The walk over WAL from record to record: the fast twin of src/pgkeep/pg/wal_walk.py, which has the rules and works
 * without it. Nothing but libc; called through ctypes, which lets other threads run meanwhile.
 *
 * Page and record headers are those of PostgreSQL's src/include/access/xlog_internal.h and xlogrecord.h, the checks those
 * of src/backend/access/transam/xlogreader.c. Little-endian hosts only, as WAL is.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SHORT_HEADER 24
#define LONG_HEADER 40
#define RECORD_HEADER 24
#define CRC_OFFSET 20

#define FIRST_IS_CONTRECORD 0x0001
#define IS_LONG_HEADER 0x0002
#define FIRST_IS_OVERWRITE_CONTRECORD 0x0008
#define ALL_FLAGS 0x000F

#define XLOG_RMGR 0
#define XLOG_SWITCH 0x40
#define RMGRS_OF_INTEREST 6

/* Why a walk ended; the same numbers as WalkEnd in Python, but for ABANDONED, which stays here. */
enum reason { PIECE_END, OPEN, SWITCHED, ZEROS, LENGTH, LINK, CRC, PAGE, CONTINUATION, ABANDONED };

/* All members have 64 bits, so that both languages see the same layout. */
struct walk {
	/* What the caller says. */
	uint64_t lsn;
	uint64_t segment_bytes;
	uint64_t page_bytes;
	uint64_t magic;
	uint64_t timeline;
	uint64_t checks_all;
	uint64_t skipped_to;
	/* What it says, and what is left for the next piece. */
	uint64_t page_timeline;
	uint64_t previous;
	/* What was found. */
	uint64_t first;
	uint64_t last;
	uint64_t end;
	uint64_t reason;
	uint64_t page;
	uint64_t found;
};

struct piece {
	struct walk *walk;
	const unsigned char *bytes;
	uint64_t size;
};

static uint32_t crc_tables[8][256];

static uint16_t
u16(const unsigned char *bytes)
{
	uint16_t value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

static uint32_t
u32(const unsigned char *bytes)
{
	uint32_t value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

static uint64_t
u64(const unsigned char *bytes)
{
	uint64_t value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

static uint64_t
aligned(uint64_t offset)
{
	return (offset + 7) & ~UINT64_C(7);
}

/* Before main, so that threads find the tables ready. */
__attribute__((constructor)) static void
make_crc_tables(void)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0x82F63B78) : 0);
		crc_tables[0][byte] = crc;
	}
	for (int table = 1; table < 8; table++)
		for (int byte = 0; byte < 256; byte++) {
			uint32_t crc = crc_tables[table - 1][byte];

			crc_tables[table][byte] = crc >> 8 ^ crc_tables[0][crc & 0xFF];
		}
}

/* Eight bytes a step, each from a table of its own. */
static uint32_t
crc_of(uint32_t crc, const unsigned char *bytes, uint64_t count)
{
	for (; count >= 8; count -= 8, bytes += 8) {
		uint64_t word = u64(bytes) ^ crc;

		crc = crc_tables[7][word & 0xFF] ^ crc_tables[6][word >> 8 & 0xFF] ^ crc_tables[5][word >> 16 & 0xFF] ^
		    crc_tables[4][word >> 24 & 0xFF] ^ crc_tables[3][word >> 32 & 0xFF] ^ crc_tables[2][word >> 40 & 0xFF] ^
		    crc_tables[1][word >> 48 & 0xFF] ^ crc_tables[0][word >> 56];
	}
	for (; count > 0; count--)
		crc = crc >> 8 ^ crc_tables[0][(crc ^ *bytes++) & 0xFF];
	return crc;
}

static uint64_t
header_bytes(const struct piece *piece, uint64_t page)
{
	return (piece->walk->lsn + page) % piece->walk->segment_bytes == 0 ? LONG_HEADER : SHORT_HEADER;
}

/* Look at the header of the page at offset page; return PIECE_END when it is right. */
static enum reason
check_page(const struct piece *piece, uint64_t page)
{
	struct walk *walk = piece->walk;
	const unsigned char *header = piece->bytes + page;
	uint16_t flags = u16(header + 2);
	uint32_t timeline = u32(header + 4);
	int is_long = header_bytes(piece, page) == LONG_HEADER;

	walk->page = page;
	if (u16(header) == 0)
		return ZEROS;
	if (u16(header) != walk->magic || flags & ~ALL_FLAGS || !!(flags & IS_LONG_HEADER) != is_long ||
	    u64(header + 8) != walk->lsn + page || timeline < walk->page_timeline || timeline > walk->timeline)
		return PAGE;
	walk->page_timeline = timeline;
	return PIECE_END;
}

/*
 * Go over the left bytes of a record that continues on the page at offset page; *next becomes the offset of what follows
 * it. ABANDONED: there the server gave the record up, and *next is that page.
 */
static enum reason
carry(const struct piece *piece, uint64_t page, uint64_t left, uint64_t *next)
{
	for (;; page += piece->walk->page_bytes) {
		uint64_t header = header_bytes(piece, page);
		uint64_t room = piece->walk->page_bytes - header;
		enum reason reason;
		uint16_t flags;

		if (page >= piece->size)
			return OPEN;
		reason = check_page(piece, page);
		if (reason != PIECE_END)
			return reason;
		flags = u16(piece->bytes + page + 2);
		if (flags & FIRST_IS_OVERWRITE_CONTRECORD) {
			*next = page;
			return ABANDONED;
		}
		if (!(flags & FIRST_IS_CONTRECORD) || u32(piece->bytes + page + 16) != left)
			return CONTINUATION;
		if (left <= room) {
			*next = aligned(page + header + left);
			return PIECE_END;
		}
		left -= room;
	}
}

/* Copy the header of the record at offset start, and compute the record's CRC when crc is not null. */
static void
gather(const struct piece *piece, uint64_t start, uint64_t total, unsigned char *head, uint32_t *crc)
{
	uint64_t page_bytes = piece->walk->page_bytes;
	uint64_t done = 0;
	uint64_t wanted = crc ? total : RECORD_HEADER;
	uint32_t sum = UINT32_MAX;

	while (done < wanted) {
		uint64_t page = start / page_bytes * page_bytes;
		uint64_t span = page + page_bytes - start;
		uint64_t in_head = 0;

		if (span > wanted - done)
			span = wanted - done;
		if (done < RECORD_HEADER) {
			in_head = RECORD_HEADER - done < span ? RECORD_HEADER - done : span;
			memcpy(head + done, piece->bytes + start, in_head);
		}
		if (crc)
			sum = crc_of(sum, piece->bytes + start + in_head, span - in_head);
		done += span;
		start = page + page_bytes;
		start += header_bytes(piece, start);
	}
	if (crc)
		*crc = ~crc_of(sum, head, CRC_OFFSET);
}

/*
 * Walk over the size bytes, whole pages, that begin at walk->lsn. Write the offsets of the records whose kind has its bit
 * in interest, one set of 16 kinds for each of the first resource managers, to found, which has room for all of them:
 * size / RECORD_HEADER.
 */
void
pgkeep_wal_walk(struct walk *walk, const unsigned char *bytes, uint64_t size, const uint16_t *interest, uint32_t *found)
{
	struct piece piece = { walk, bytes, size };
	uint64_t position = walk->skipped_to;
	enum reason reason = PIECE_END;

	walk->first = walk->last = size;
	walk->found = 0;
	if (position == 0 && size > 0) {
		/* Nothing is known: the page says how much of a record that began before is left. */
		walk->end = 0;
		reason = check_page(&piece, 0);
		if (reason == PIECE_END && u16(bytes + 2) & FIRST_IS_CONTRECORD)
			reason = carry(&piece, 0, u32(bytes + 16), &position);
		if (reason == OPEN) {
			walk->first = walk->end = size;
			walk->reason = PIECE_END;
			return;
		}
		if (reason == ABANDONED)
			reason = PIECE_END;
	}
	walk->end = position;
	walk->first = position;
	while (reason == PIECE_END && position < size) {
		unsigned char head[RECORD_HEADER];
		uint64_t start;
		uint64_t next;
		uint64_t room;
		uint32_t total;
		uint32_t crc;
		int is_of_interest;

		walk->end = position;
		if (position % walk->page_bytes == 0) {
			reason = check_page(&piece, position);
			if (reason == PIECE_END && u16(bytes + position + 2) & FIRST_IS_CONTRECORD)
				reason = CONTINUATION;
			if (reason != PIECE_END)
				break;
			position += header_bytes(&piece, position);
			walk->end = position;
		}
		start = position;
		room = walk->page_bytes - start % walk->page_bytes;
		total = u32(bytes + start);
		if (total < RECORD_HEADER) {
			reason = total == 0 ? ZEROS : LENGTH;
			walk->page = start / walk->page_bytes * walk->page_bytes;
			break;
		}
		if (room >= RECORD_HEADER) {
			memcpy(head, bytes + start, sizeof(head));
			if (walk->previous != 0 && u64(head + 8) != walk->previous) {
				reason = LINK;
				break;
			}
		}
		if (total <= room)
			next = aligned(start + total);
		else {
			reason = carry(&piece, start + room, total - room, &next);
			if (reason == ABANDONED) {
				reason = PIECE_END;
				position = next;
				walk->end = position;
				continue;
			}
			if (reason != PIECE_END)
				break;
			if (room < RECORD_HEADER) {
				gather(&piece, start, total, head, NULL);
				if (walk->previous != 0 && u64(head + 8) != walk->previous) {
					reason = LINK;
					break;
				}
			}
		}
		is_of_interest = head[17] < RMGRS_OF_INTEREST && interest[head[17]] >> (head[16] >> 4) & 1;
		if (is_of_interest || walk->checks_all) {
			gather(&piece, start, total, head, &crc);
			if (crc != u32(head + CRC_OFFSET)) {
				reason = CRC;
				break;
			}
		}
		if (is_of_interest)
			found[walk->found++] = (uint32_t)start;
		walk->last = start;
		walk->previous = walk->lsn + start;
		position = next;
		walk->end = position;
		if (head[17] == XLOG_RMGR && (head[16] & 0xF0) == XLOG_SWITCH)
			reason = SWITCHED;
	}
	walk->reason = reason;
}
