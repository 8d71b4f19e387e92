"""WAL as the items of a backup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pgkeep.pg.lsn import Timeline
from pgkeep.streams.item import Buffer, BytesItem, Item, ItemHeader, ItemRole


@dataclass(frozen=True, slots=True)
class WalItem:
    """A segment as an item."""

    header: ItemHeader
    chunks: Callable[[], Iterator[Buffer]]


def history_item(root: str, timeline: Timeline, text: str, *, mtime_ns: int, role: ItemRole = ItemRole.WAL) -> Item:
    """Return the history file of *timeline*, below the virtual path *root*; *text* as the server keeps it."""
    content = text.encode("utf-8", "surrogateescape")
    path = f"{root}/wal/{timeline.history_file_name}"
    return BytesItem(ItemHeader(path=path, size=len(content), mtime_ns=mtime_ns, role=role), content)
