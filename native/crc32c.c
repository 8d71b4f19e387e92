/*
 * CRC-32C of a buffer: the twin in C of pg/crc32c.py, which says what it is for.
 *
 * x86-64 has an instruction for it since SSE4.2, asked for at run time; elsewhere tables do eight bytes a step. The
 * instruction gives its result three cycles later, but takes new work in each: three parts of a long buffer go through
 * it side by side, and are put together by what the register of one becomes with the length of the others behind it.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANE_BYTES = 4096 };

static uint32_t tables[8][256];

#if defined(__x86_64__)
/* By the bytes of a register: what it becomes with one and with two times LANE_BYTES zeros behind it. */
static uint32_t behind_one[4][256];
static uint32_t behind_two[4][256];

static void make_shift(uint32_t shift[4][256], size_t count);
#endif

/* Before main, so that threads find the tables ready. */
__attribute__((constructor)) static void
make_tables(void)
{
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0x82F63B78) : 0);
		tables[0][byte] = crc;
	}
	for (int table = 1; table < 8; table++)
		for (int byte = 0; byte < 256; byte++) {
			uint32_t crc = tables[table - 1][byte];

			tables[table][byte] = crc >> 8 ^ tables[0][crc & 0xFF];
		}
#if defined(__x86_64__)
	make_shift(behind_one, LANE_BYTES);
	make_shift(behind_two, 2 * LANE_BYTES);
#endif
}

static uint32_t
by_tables(uint32_t crc, const unsigned char *bytes, size_t count)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	for (; count >= 8; count -= 8, bytes += 8) {
		uint64_t word;

		memcpy(&word, bytes, sizeof(word));
		word ^= crc;
		crc = tables[7][word & 0xFF] ^ tables[6][word >> 8 & 0xFF] ^ tables[5][word >> 16 & 0xFF] ^
		    tables[4][word >> 24 & 0xFF] ^ tables[3][word >> 32 & 0xFF] ^ tables[2][word >> 40 & 0xFF] ^
		    tables[1][word >> 48 & 0xFF] ^ tables[0][word >> 56];
	}
#endif
	for (; count > 0; count--)
		crc = crc >> 8 ^ tables[0][(crc ^ *bytes++) & 0xFF];
	return crc;
}

#if defined(__x86_64__)
static void
make_shift(uint32_t shift[4][256], size_t count)
{
	static const unsigned char zeros[2 * LANE_BYTES];

	for (int byte = 0; byte < 4; byte++) {
		shift[byte][0] = 0;
		for (int bit = 0; bit < 8; bit++) {
			uint32_t moved = by_tables(UINT32_C(1) << (8 * byte + bit), zeros, count);

			/* The register is linear in what it began with. */
			for (int lower = 0; lower < 1 << bit; lower++)
				shift[byte][1 << bit | lower] = moved ^ shift[byte][lower];
		}
	}
}

static uint32_t
shifted(uint32_t shift[4][256], uint64_t crc)
{
	return shift[0][crc & 0xFF] ^ shift[1][crc >> 8 & 0xFF] ^ shift[2][crc >> 16 & 0xFF] ^
	       shift[3][crc >> 24 & 0xFF];
}

static uint64_t
word_at(const unsigned char *bytes)
{
	uint64_t word;

	memcpy(&word, bytes, sizeof(word));
	return word;
}

__attribute__((target("sse4.2"))) static uint32_t
by_instruction(uint32_t crc, const unsigned char *bytes, size_t count)
{
	uint64_t wide = crc;

	for (; count >= 3 * LANE_BYTES; count -= 3 * LANE_BYTES, bytes += 3 * LANE_BYTES) {
		uint64_t second = 0, third = 0;

		for (size_t at = 0; at < LANE_BYTES; at += 8) {
			wide = __builtin_ia32_crc32di(wide, word_at(bytes + at));
			second = __builtin_ia32_crc32di(second, word_at(bytes + LANE_BYTES + at));
			third = __builtin_ia32_crc32di(third, word_at(bytes + 2 * LANE_BYTES + at));
		}
		wide = shifted(behind_two, wide) ^ shifted(behind_one, second) ^ third;
	}
	for (; count >= 8; count -= 8, bytes += 8)
		wide = __builtin_ia32_crc32di(wide, word_at(bytes));
	crc = (uint32_t)wide;
	for (; count > 0; count--)
		crc = __builtin_ia32_crc32qi(crc, *bytes++);
	return crc;
}
#endif

/* Return the CRC-32C of count bytes, or of what crc is the checksum of and these bytes after it. */
uint32_t
pgkeep_crc32c(uint32_t crc, const unsigned char *bytes, size_t count)
{
	crc = ~crc;
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2"))
		return ~by_instruction(crc, bytes, count);
#endif
	return ~by_tables(crc, bytes, count);
}
