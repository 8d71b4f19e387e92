"""Items become members of volumes: the work that the sink's pool of threads does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import msgspec
import zstandard
from blake3 import blake3

from pgkeep.streams.extents import HasHeader
from pgkeep.streams.item import UNKNOWN_SIZE, Buffer, ItemHeader, ItemKind, ItemRole
from pgkeep.streams.record import FileEntry, StoredAt
from pgkeep.streams.tar import TarMember, padding_of, render_member
from pgkeep.vault.layout import member_name
from pgkeep.vault.volume import STORED_DIGEST_BYTES, VolumeWriter, padding_frame, raw_frame

NANOSECONDS = 1_000_000_000


def tar_header(header: ItemHeader, size: int) -> bytes:
    """Return the tar header of the item with *header*, of *size* bytes."""
    return render_member(
        TarMember(
            name=member_name(header.path),
            kind=header.kind,
            size=size,
            mtime=header.mtime_ns // NANOSECONDS,
            file_mode=header.file_mode,
            owner=header.owner,
            group=header.group,
            link=header.link,
        )
    )


def entry_with_header(entry: FileEntry, header: ItemHeader) -> FileEntry:
    """Return *entry*, whose content stays where it is, with what *header* says of the file now."""
    return msgspec.structs.replace(
        entry, mtime_ns=header.mtime_ns, file_mode=header.file_mode, owner=header.owner, group=header.group
    )


class _Member:
    """One member being written."""

    __slots__ = ("content", "frames", "header", "header_frame", "offset", "size", "stored", "volume")

    def __init__(self, header: ItemHeader, volume: VolumeWriter, header_frame: bytes) -> None:
        self.header = header
        self.volume = volume
        self.header_frame = header_frame
        self.offset = volume.offset
        self.size = 0
        self.frames: list[int] = []
        self.content = blake3()
        self.stored = blake3()


class MemberWriter:
    """
    The extent work of a backup: compress in parallel, digest and append in order.

    A volume is held by one file from its beginning to its end; there is one for each worker, which is as many as files
    can be begun at once.

    Args:
        volumes: One for each worker.
        backup_id: Of the backup that they belong to.
        compression_level: Of zstd.
        record: Takes the entry of each complete member; called from any worker.
        held: Returns the entry of a path in an earlier backup; a file with the same content is not kept twice.
        refer: Takes the entry of each file whose content the earlier backup holds; called from any worker.
    """

    def __init__(
        self,
        volumes: Iterable[VolumeWriter],
        *,
        backup_id: str,
        compression_level: int,
        record: Callable[[FileEntry], None],
        held: Callable[[str], FileEntry | None] | None = None,
        refer: Callable[[FileEntry], None] = lambda _: None,
    ) -> None:
        self._free = list(volumes)
        self._backup_id = backup_id
        self._compression_level = compression_level
        self._record = record
        self._held = held
        self._refer = refer
        self._local = threading.local()

    def begin(self, item: HasHeader, /) -> _Member:
        """Take a free volume and write the header."""
        header = item.header
        if header.size == UNKNOWN_SIZE:
            header_frame = raw_frame(tar_header(header, 0))
        else:
            header_frame = self._compressor().compress(tar_header(header, header.size))
        volume = self._free.pop()
        member = _Member(header, volume, header_frame)
        volume.append(header_frame)
        return member

    def extent(self, member: _Member, offset: int, buffer: Buffer, /) -> tuple[Buffer, bytes]:  # noqa: ARG002 - the pool's contract
        """Compress one extent."""
        return buffer, self._compressor().compress(buffer)

    def ordered(self, member: _Member, result: tuple[Buffer, bytes], /) -> None:
        """Append one extent."""
        content, frame = result
        member.content.update(content)
        member.stored.update(frame)
        member.frames.append(len(frame))
        member.size += len(content)
        member.volume.append(frame)

    def end(self, member: _Member, /) -> None:
        """Complete the member and say where it is."""
        header, volume = member.header, member.volume
        earlier = self._same_content(member)
        if earlier is not None:
            volume.take_back(member.offset)
            self._free.append(volume)
            self._refer(earlier)
            return
        padding = padding_frame(padding_of(member.size))
        if padding:
            volume.append(padding)
            member.stored.update(padding)
        if header.size == UNKNOWN_SIZE:
            member.header_frame = raw_frame(tar_header(header, member.size))
            volume.replace(member.offset, member.header_frame)
        # The header comes last in the digest, because a stream's is known last.
        member.stored.update(member.header_frame)
        stored_digest = member.stored.digest(length=STORED_DIGEST_BYTES)
        volume.end_member(stored_digest)
        at = StoredAt(
            backup_id=self._backup_id,
            volume=volume.number,
            offset=member.offset,
            header_length=len(member.header_frame),
            frames=member.frames,
            padding_length=len(padding),
            stored_digest=stored_digest.hex(),
        )
        self._record(
            FileEntry(
                path=header.path,
                kind=header.kind.value,
                size=member.size,
                mtime_ns=header.mtime_ns,
                file_mode=header.file_mode,
                owner=header.owner,
                group=header.group,
                digest=member.content.hexdigest() if header.kind is ItemKind.FILE else "",
                link=header.link,
                at=at,
            )
        )
        self._free.append(volume)

    def _same_content(self, member: _Member) -> FileEntry | None:
        """Return the entry for a file whose content an earlier backup holds already; None when it must be kept."""
        header = member.header
        if self._held is None or not member.size or header.role is not ItemRole.DATA:
            return None
        entry = self._held(header.path)
        if entry is None or entry.at is None or entry.size != member.size:
            return None
        if entry.digest != member.content.hexdigest():
            return None
        return entry_with_header(entry, header)

    def _compressor(self) -> zstandard.ZstdCompressor:
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=self._compression_level)
            self._local.compressor = compressor
        return compressor
