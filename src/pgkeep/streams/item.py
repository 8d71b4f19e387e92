"""
Items: the one form in which data moves.

A source yields items, a sink accepts them; a restore's supply yields items, and the lay-down accepts them. An item is
a *header*, its *content*, and a *trailer* that only the consumer knows (true size, digest).

The contract at this seam:

- The consumer asks for the next item only when it has taken over the one before.
- A ``StreamedItem`` is read at once, in order, by the thread that asked; each chunk is valid until the next is asked
  for, and the item until the next item is asked for.
- A ``DetachedItem`` may be read later and by several threads at once, extent by extent, until the source is closed.
- An item with ``barrier`` set is read only after all items accepted before it have been read, and has itself been read
  when ``accept`` returns. A source may rely on that: what it does after yielding such an item happens after all reads.
- An error raised while an item is read ends the job. There is no way to skip an item in the middle.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, cast

Buffer = bytes | bytearray | memoryview

CHUNK_BYTES = 1 << 20
"""The largest chunk of a streamed item, in bytes."""

EXTENT_BYTES = 4 << 20
"""The unit in which detached items are read and in which the vault compresses; the last extent may be shorter."""

UNKNOWN_SIZE = -1


class ItemKind(enum.Enum):
    """What an item becomes in a file system."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


class ItemRole(enum.Enum):
    """What an item is for; a sink may store roles apart, it may not change them."""

    DATA = "data"
    """Part of the backup proper: files of the data directory, dumps, labels."""
    WAL = "wal"
    """A WAL segment, its partial form, or a timeline history file, carried so that the archive has no hole."""
    BACKUP_WAL = "backup_wal"
    """WAL that this very backup needs to become consistent: belongs to the backup and to the archive."""
    MANIFEST = "manifest"
    """PostgreSQL's own manifest of the backup, which the next one may build on: a sink must be able to read it back."""


@dataclass(frozen=True, slots=True)
class ItemHeader:
    """
    What is known of an item before its content.

    Attributes:
        path: Virtual path, ``@postgresql/…``; ``/`` between components, never ``.`` or ``..``, never a leading slash.
        kind: What it becomes.
        size: Bytes of content, exact: the content is cut or filled with zeros to it; ``UNKNOWN_SIZE`` for a stream
            whose length only its end tells.
        mtime_ns: Modification time, nanoseconds since the epoch, read before the content.
        file_mode: Permission bits.
        owner: Name of the owning user; empty when unknown.
        group: Name of the owning group; empty when unknown.
        link: Target of a symbolic link; empty otherwise.
        role: What it is for.
        barrier: See the module's contract.
    """

    path: str
    kind: ItemKind = ItemKind.FILE
    size: int = 0
    mtime_ns: int = 0
    file_mode: int = 0o600
    owner: str = ""
    group: str = ""
    link: str = ""
    role: ItemRole = ItemRole.DATA
    barrier: bool = False


class StreamedItem(Protocol):
    """An item whose content passes once."""

    @property
    def header(self) -> ItemHeader:
        """The item's header."""
        ...

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content, at most ``CHUNK_BYTES`` at a time; nothing for what is not a file."""
        ...


class FillingItem(StreamedItem, Protocol):
    """A streamed item whose content can also be put where it is wanted, without a copy."""

    def fill(self, buffer: memoryview) -> int:
        """
        Put what comes next at the beginning of *buffer*; called between two chunks, or before the first.

        Returns:
            How many bytes; 0 when the next chunk must be asked for.
        """
        ...


class DetachedItem(Protocol):
    """An item of known size that several threads may read, extent by extent."""

    @property
    def header(self) -> ItemHeader:
        """The item's header; its size is known."""
        ...

    def read_extent(self, offset: int, length: int) -> Buffer:
        """
        Return exactly *length* bytes at *offset*; called from any thread, at most once per extent.

        *offset* is a multiple of ``EXTENT_BYTES``; *length* is ``EXTENT_BYTES`` or what is left of the item.
        """
        ...

    def close(self) -> None:
        """Say that no further extent will be asked for; called once, also after an error."""
        ...


class ReadsInto(DetachedItem, Protocol):
    """A detached item that can be read into memory that is there already."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* with the content at *offset*: ``read_extent`` for a caller that has the memory."""
        ...


@dataclass(frozen=True, slots=True)
class UnchangedItem:
    """A file that the sink already holds from an earlier backup: only the header passes."""

    header: ItemHeader
    held_by: str
    """The ``backup_id`` whose record says where the content is."""


Item = StreamedItem | DetachedItem | UnchangedItem


@dataclass(frozen=True, slots=True)
class BytesItem:
    """A small streamed item whose content is at hand."""

    header: ItemHeader
    content: bytes

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content in chunks."""
        for offset in range(0, len(self.content), CHUNK_BYTES):
            yield self.content[offset : offset + CHUNK_BYTES]


def content_of(item: StreamedItem | DetachedItem) -> Iterator[Buffer]:
    """Yield the content of *item* in order, whichever kind it is; a detached one is closed behind it."""
    if not hasattr(item, "read_extent"):
        yield from item.chunks()
        return
    detached = cast("DetachedItem", item)
    try:
        size = item.header.size
        for offset in range(0, size, EXTENT_BYTES):
            yield detached.read_extent(offset, min(EXTENT_BYTES, size - offset))
    finally:
        detached.close()


class Sink(Protocol):
    """Where the items of one backup go: the vault, the Bacula stream."""

    def accept(self, item: Item) -> None:
        """Take over *item* as the module's contract says."""
        ...
