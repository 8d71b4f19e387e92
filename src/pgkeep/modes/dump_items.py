"""Items of a backup as a restore of dumps asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

from pgkeep.streams.item import EXTENT_BYTES, Buffer, DetachedItem, StreamedItem

Select = Callable[[str], bool]
Supply = Callable[[Select], Iterable[StreamedItem | DetachedItem]]
"""Gives a backup's items whose virtual path is selected, digests checked; may be called several times."""


def content_of(item: StreamedItem | DetachedItem) -> Iterator[Buffer]:
    """Yield an item's content in order, whichever kind it is."""
    if not hasattr(item, "read_extent"):
        yield from item.chunks()
        return
    detached = cast(DetachedItem, item)
    try:
        size = item.header.size
        for offset in range(0, size, EXTENT_BYTES):
            yield detached.read_extent(offset, min(EXTENT_BYTES, size - offset))
    finally:
        detached.close()
