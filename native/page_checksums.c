/*
 * Page checksums for many pages at a time: the fast twin of src/pgkeep/pg/page.py, which has the rules and works without
 * it. Nothing but libc; called through ctypes, which lets other threads run meanwhile.
 *
 * The checksum is that of PostgreSQL's src/include/storage/checksum_impl.h: 32 FNV-1a sums side by side, folded together
 * and mixed with the block number. Little-endian hosts only, as the pages are.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SUMS 32
#define PRIME UINT32_C(16777619)

/* The compiler makes one version for each, and the loader takes the one that the processor has. */
#if defined(__x86_64__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

static const uint32_t base_offsets[SUMS] = {
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756
};

/*
 * Look at count pages of words 32-bit words each, a multiple of 32; the first has the block number first_block. Write the
 * indexes of those whose stored checksum is wrong, new pages among them, to wrong, which has room for count of them;
 * return how many there are.
 */
FOR_EACH_PROCESSOR
size_t
pgkeep_wrong_pages(const unsigned char *pages, size_t count, size_t words, uint32_t first_block, uint32_t *wrong)
{
	size_t found = 0;

	for (size_t page = 0; page < count; page++, pages += words * sizeof(uint32_t)) {
		uint32_t sums[SUMS];
		uint32_t row[SUMS];
		uint32_t folded = 0;
		uint32_t stored;

		memcpy(sums, base_offsets, sizeof(sums));
		memcpy(row, pages, sizeof(row));
		/* pd_checksum is the low half of the third word, and counts as zero. */
		stored = row[2] & UINT32_C(0xFFFF);
		row[2] &= UINT32_C(0xFFFF0000);
		for (size_t round = 0; round < words / SUMS; round++) {
			if (round > 0)
				memcpy(row, pages + round * sizeof(row), sizeof(row));
			for (int i = 0; i < SUMS; i++) {
				uint32_t mixed = sums[i] ^ row[i];

				sums[i] = mixed * PRIME ^ mixed >> 17;
			}
		}
		for (int round = 0; round < 2; round++)
			for (int i = 0; i < SUMS; i++)
				sums[i] = sums[i] * PRIME ^ sums[i] >> 17;
		for (int i = 0; i < SUMS; i++)
			folded ^= sums[i];
		folded ^= first_block + (uint32_t)page;
		if (folded % 65535 + 1 != stored)
			wrong[found++] = (uint32_t)page;
	}
	return found;
}
