#ifndef PGKEEP_RING_H
#define PGKEEP_RING_H

/*
 * Memory shared with a backend, through which file data passes. A slot belongs to one side at a time: its sender fills it
 * and lends it by an M packet, the receiver gives it back by a K packet. Only the packets say whose a slot is.
 */

#include <stdbool.h>
#include <stddef.h>

enum {
	RING_SLOTS = 32,                /* so much is read ahead that neither side waits when the other one does */
	RING_SLOT_BYTES = 1 << 20       /* little enough to be in a cache still when it is copied */
};

struct ring {
	int descriptor;                 /* for the backend to inherit; -1 when there is no ring */
	char *memory;
	bool is_lent[RING_SLOTS];       /* by the bridge, in a restore */
	unsigned lent;
	unsigned next;                  /* where to look for a slot to lend */
};

/* Make one; return -1 when this machine has no memory for it, which is no reason to fail: D packets do as well. */
int ring_open(struct ring *ring, const char *directory);

/* The descriptor is the backend's only. */
void ring_close_descriptor(struct ring *ring);
void ring_close(struct ring *ring);

/* The memory of a slot that the backend lent, or NULL when there is no such slot or it can't hold length bytes. */
char *ring_content(const struct ring *ring, unsigned slot, size_t length);

/* A slot that is ours to fill, or -1 when all are lent. It stays the same one until it is lent. */
int ring_free_slot(struct ring *ring);
void ring_lend(struct ring *ring, unsigned slot);

/* Take a slot back; return -1 when it is not lent. */
int ring_take_back(struct ring *ring, unsigned slot);

#endif
