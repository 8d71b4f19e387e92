/*
 * The content of CopyData messages without their frames: the fast twin of src/pgkeep/pg/copy_rows.py, which has the rules
 * and works without it. Nothing but libc; called through ctypes, which lets other threads run meanwhile.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FRAME 5

/* What is kept between two calls, and what a call tells; as in copy_rows.py. */
struct progress {
	uint64_t left;     /* bytes that the message begun lacks */
	uint64_t consumed; /* of the input, by this call */
	uint64_t produced; /* of the output, by this call */
	uint64_t rows;     /* messages that ended, by this call */
};

enum { MORE = 0, ENOUGH = 1, OTHER = 2, BROKEN = 3 };

/*
 * Take length bytes of messages apart: the bodies of CopyData go to out, which has room for as many bytes. Stop at the
 * first end of a message with at least wanted bytes in out (ENOUGH), at a message of another type (OTHER), at a length
 * that cannot be (BROKEN), or when the input is used up but for a part of a frame (MORE).
 */
int
pgkeep_copy_rows(const unsigned char *in, size_t length, unsigned char *out, uint64_t wanted, struct progress *progress)
{
	size_t at = 0;
	size_t filled = 0;
	uint64_t left = progress->left;
	uint64_t rows = 0;
	int state = MORE;

	for (;;) {
		if (left > 0) {
			size_t part = length - at < left ? length - at : (size_t)left;

			memcpy(out + filled, in + at, part);
			at += part;
			filled += part;
			left -= part;
			if (left > 0)
				break;
			rows++;
			if (filled >= wanted) {
				state = ENOUGH;
				break;
			}
		}
		if (length - at < FRAME)
			break;
		if (in[at] != 'd') {
			state = OTHER;
			break;
		}
		left = (uint64_t)in[at + 1] << 24 | (uint64_t)in[at + 2] << 16 | (uint64_t)in[at + 3] << 8 | in[at + 4];
		/* Text rows have at least their newline: an empty message is none. */
		if (left <= 4 || left > UINT64_C(0x7FFFFFFF)) {
			left = 0;
			state = BROKEN;
			break;
		}
		left -= 4;
		at += FRAME;
	}
	progress->left = left;
	progress->consumed = at;
	progress->produced = filled;
	progress->rows = rows;
	return state;
}
