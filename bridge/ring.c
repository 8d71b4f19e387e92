#include "ring.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RING_BYTES ((size_t)RING_SLOTS * RING_SLOT_BYTES)

/* Kernel constants that old C libraries lack, as they lack memfd_create. */
#define RING_MFD_CLOEXEC 1U
#define RING_MFD_ALLOW_SEALING 2U
#define RING_ADD_SEALS 1033
#define RING_SEALS (1 | 2 | 4)          /* nobody seals more, shrinks it, or lets it grow */

static int
open_memory(void)
{
	return ((int)syscall(SYS_memfd_create, "pgkeep", RING_MFD_CLOEXEC | RING_MFD_ALLOW_SEALING));
}

static int
open_unlinked_file(const char *directory)
{
	char path[4096];
	int descriptor;

	if (directory == NULL || (size_t)snprintf(path, sizeof(path), "%s/pgkeep-ring.XXXXXX", directory) >= sizeof(path))
		return (-1);
	if ((descriptor = mkostemp(path, O_CLOEXEC)) != -1)
		unlink(path);
	return (descriptor);
}

int
ring_open(struct ring *ring, const char *directory)
{
	bool is_file = false;
	void *memory;

	*ring = (struct ring){.descriptor = open_memory()};
	if (ring->descriptor == -1) {
		is_file = true;
		ring->descriptor = open_unlinked_file(directory);
	}
	if (ring->descriptor == -1)
		return (-1);
	/* A full disk must be noticed here and not as SIGBUS in the daemon; the same goes for a backend that shrinks it. */
	if (is_file ? posix_fallocate(ring->descriptor, 0, (off_t)RING_BYTES) != 0 :
	    ftruncate(ring->descriptor, (off_t)RING_BYTES) != 0)
		goto failed;
	if (!is_file)
		(void)fcntl(ring->descriptor, RING_ADD_SEALS, RING_SEALS);
	memory = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, ring->descriptor, 0);
	if (memory == MAP_FAILED)
		goto failed;
	ring->memory = memory;
	return (0);

failed:
	ring_close_descriptor(ring);
	return (-1);
}

void
ring_close_descriptor(struct ring *ring)
{
	if (ring->descriptor != -1)
		close(ring->descriptor);
	ring->descriptor = -1;
}

void
ring_close(struct ring *ring)
{
	ring_close_descriptor(ring);
	if (ring->memory != NULL)
		munmap(ring->memory, RING_BYTES);
	ring->memory = NULL;
}

char *
ring_content(const struct ring *ring, unsigned slot, size_t length)
{
	if (ring->memory == NULL || slot >= RING_SLOTS || length == 0 || length > RING_SLOT_BYTES)
		return (NULL);
	return (ring->memory + (size_t)slot * RING_SLOT_BYTES);
}

int
ring_free_slot(struct ring *ring)
{
	if (ring->lent == RING_SLOTS)
		return (-1);
	while (ring->is_lent[ring->next])
		ring->next = (ring->next + 1) % RING_SLOTS;
	return ((int)ring->next);
}

void
ring_lend(struct ring *ring, unsigned slot)
{
	ring->is_lent[slot] = true;
	ring->lent++;
}

int
ring_take_back(struct ring *ring, unsigned slot)
{
	if (slot >= RING_SLOTS || !ring->is_lent[slot])
		return (-1);
	ring->is_lent[slot] = false;
	ring->lent--;
	return (0);
}
