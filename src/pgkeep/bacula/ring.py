"""
The ring: slots of shared memory through which file data passes between backend and bridge.

A slot belongs to one side at a time. All begin with the sender of data; an M packet lends one, filled, to the receiver,
and a K packet gives it back. The pipes carry only who owns what, so that a byte is copied once on each side.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections import deque
from typing import Self

from pgkeep.errors import WireError

MAX_SLOTS = 1024
MAX_SLOT_BYTES = 64 << 20
SPARE_SLOTS = 2
"""So many slots are never reserved: for what is not read ahead."""

_KEY = re.compile(r"([0-9]{1,6}) ([1-9][0-9]{0,5}) ([1-9][0-9]{0,9})")


class Ring:
    """
    A mapped ring.

    Args:
        descriptor: A memfd of at least ``slots * slot_bytes`` bytes; closed here, once it is mapped.
        slots: How many.
        slot_bytes: Bytes of each.
    """

    def __init__(self, descriptor: int, slots: int, slot_bytes: int) -> None:
        if not 0 < slots <= MAX_SLOTS or not 0 < slot_bytes <= MAX_SLOT_BYTES:
            raise WireError(
                f"a ring has at most {MAX_SLOTS} slots of {MAX_SLOT_BYTES} bytes, found {slots} {slot_bytes}"
            )
        try:
            size = os.fstat(descriptor).st_size
            if size < slots * slot_bytes:
                raise WireError(f"the ring's memory has {size} bytes, expected {slots * slot_bytes}")
            self._map = mmap.mmap(descriptor, slots * slot_bytes)
            os.close(descriptor)
        except OSError as error:
            raise WireError(f"cannot map the ring at descriptor {descriptor}: {error.strerror}") from error
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._view = memoryview(self._map)
        self._free = deque(range(slots))
        self._lent: set[int] = set()

    @classmethod
    def from_key(cls, value: str) -> Self:
        """Return the ring that the job's key ``Ring=<descriptor> <slots> <slot_bytes>`` describes."""
        found = _KEY.fullmatch(value)
        if found is None:
            raise WireError(f'the key Ring says "<descriptor> <slots> <slot_bytes>", found "{value[:40]}"')
        return cls(int(found[1]), int(found[2]), int(found[3]))

    def close(self) -> None:
        """Unmap it; views that are still held keep the memory until they are gone."""
        with contextlib.suppress(BufferError):
            self._view.release()
            self._map.close()

    # For the sender of data.

    @property
    def has_free_slot(self) -> bool:
        """Whether ``lend`` may be called."""
        return bool(self._free)

    @property
    def lent(self) -> int:
        """How many slots the receiver has and will give back."""
        return len(self._lent)

    def reserve(self) -> int | None:
        """Return a free slot to be filled and lent later; None when too few are free."""
        return self._free.popleft() if len(self._free) > SPARE_SLOTS else None

    def view(self, slot: int, length: int) -> memoryview:
        """Return the memory of a reserved *slot*."""
        start = slot * self.slot_bytes
        return self._view[start : start + length]

    def lend_reserved(self, slot: int) -> None:
        """Note that a reserved *slot* is the receiver's now."""
        self._lent.add(slot)

    def lend(self, content: memoryview) -> int:
        """Copy *content*, at most a slot's worth, into a free slot; return the slot, which is the receiver's now."""
        slot = self._free.popleft()
        start = slot * self.slot_bytes
        self._view[start : start + len(content)] = content
        self._lent.add(slot)
        return slot

    def take_back(self, slot: int) -> None:
        """Note that the receiver gave *slot* back."""
        if slot not in self._lent:
            raise WireError(f"slot {slot} was given back, but is not lent")
        self._lent.discard(slot)
        self._free.append(slot)

    # For the receiver of data.

    def content(self, slot: int, length: int) -> memoryview:
        """Return what the sender put into *slot*; valid until it is given back."""
        if slot >= self.slots:
            raise WireError(f"slot {slot} of a ring with {self.slots}")
        if not 0 < length <= self.slot_bytes:
            raise WireError(f"{length} bytes in a slot of {self.slot_bytes}")
        start = slot * self.slot_bytes
        return self._view[start : start + length]
