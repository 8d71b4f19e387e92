"""
The items of a Full that is merged from a chain: what the newest member names, each file put together from all of them.

Every byte that is used passes two checks: the digests of the vault's record, and size and CRC-32C of PostgreSQL's own
manifest of the backup that it is from. What a relation's file becomes is looked at page by page where the cluster has
checksums. PostgreSQL's manifest of the merged backup is written from what passed; ``pg_combinebackup`` does the same.
"""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import IO, NoReturn

import msgspec

from pgkeep import __version__
from pgkeep.datadir.manifest_check import ManifestCheck
from pgkeep.errors import BackupUnusable
from pgkeep.jobs.merging.chain import MERGED_FROM
from pgkeep.pg.backup_label import without_incremental_lines
from pgkeep.pg.backup_manifest import ManifestEnd, ManifestFile, ManifestWriter
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.data_directory import (
    BACKUP_LABEL,
    BACKUP_MANIFEST,
    DEFAULT_BLOCK_SIZE,
    TABLESPACE_MAP,
    TABLESPACES,
    WAL_DIRECTORY,
    page_file,
)
from pgkeep.pg.incremental_file import SEGMENT_BLOCKS, incremental_path, is_increment, relation_path
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.page import check_pages
from pgkeep.pg.wal import WalSegment
from pgkeep.pg.wal_blocks import BlockReference
from pgkeep.streams.item import CHUNK_BYTES, Buffer, BytesItem, Item, ItemHeader, ItemKind, ItemRole
from pgkeep.streams.record import FileEntry, Level, RecordHead, WalRange
from pgkeep.streams.rolled_file import OrderedContent, RolledFile
from pgkeep.vault.file_index import FileIndex
from pgkeep.vault.half_written import MAX_HEADLESS, not_written_anew
from pgkeep.vault.stored_backup import StoredBackup
from pgkeep.vault.stored_chain import StoredChain
from pgkeep.vault.wal_archive import WalArchive

_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class _PassingItem:
    """A file that is put together while it passes."""

    header: ItemHeader
    chunks: Callable[[], Iterator[Buffer]]


class MergedSource:
    """
    One merge, being read; use it as a context manager.

    Args:
        chain: The members, open; two or more.
        archive: Of the cluster.
        index: Returns the index over the file list of a member.
        backup_id: Of the backup to be.
    """

    def __init__(
        self, chain: StoredChain, *, archive: WalArchive, index: Callable[[str], FileIndex], backup_id: str
    ) -> None:
        self._members = chain.members
        self._newest = chain.newest
        self._head = chain.newest.head
        self._root = str(self._head.details["root"])
        self._index = index
        self._backup_id = backup_id
        self._archive = archive
        self._pages = self._suspect_pages = 0
        self._headless: dict[BlockReference, str] = {}
        self._writer = ManifestWriter(version=2, system_identifier=SystemIdentifier(int(self._head.system_identifier)))
        self._resources = ExitStack()
        try:
            # Of the older members only what is used must be there, and be what their manifests say.
            self._checks = [self._open_check(is_complete=member is self._newest) for member in self._members]
            # The manifest comes last, when every line of it is known.
            lines = tempfile.TemporaryFile()  # noqa: SIM115 - closed with all else
            self._lines: IO[bytes] = self._resources.enter_context(lines)
        except BaseException:
            self._resources.close()
            raise

    def __enter__(self) -> MergedSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def items(self) -> Iterator[Item]:
        """
        Yield the items, the manifest last.

        Raises:
            BackupUnusable: A member is damaged, or is not what its manifest says.
            FormatError: What should be an increment is none.
        """
        for member, check in zip(self._members, self._checks, strict=True):
            member.check_volumes()
            manifest = self._read_manifest(member, check)
        self._lines.write(self._writer.begin())
        for entry in self._newest.files():
            inside = self._inside(entry.path)
            if inside is None:
                yield self._wal_item(entry)
            elif inside != BACKUP_MANIFEST:
                yield from self._items_of(entry, inside)
        ends = [check.compare(member.backup_id) for member, check in zip(self._members, self._checks, strict=True)]
        self._check_range(ends[-1])
        self._check_headless()
        self._lines.write(self._writer.end(ends[-1].wal_ranges))
        header = self._header(manifest, BACKUP_MANIFEST, self._lines.tell(), role=ItemRole.MANIFEST)
        yield _PassingItem(header, self._manifest_chunks)

    def finish(self) -> RecordHead:
        """Return the record's head: that of a Full made when the newest member was."""
        details = {name: value for name, value in self._head.details.items() if name not in ("chain", "damaged_below")}
        details[MERGED_FROM] = [member.backup_id for member in self._members]
        details["merged_at"] = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
        return msgspec.structs.replace(
            self._head,
            backup_id=self._backup_id,
            level=Level.FULL,
            base="",
            files_from=self._backup_id,
            references=[],
            pgkeep_version=__version__,
            backup_label=without_incremental_lines(self._head.backup_label),
            wal=self._needed_wal(),
            wal_gaps=[],
            pages_checked=self._pages,
            pages_after_start=self._suspect_pages,
            details=details,
        )

    # The parts.

    def _needed_wal(self) -> WalRange | None:
        """Return the WAL that the merged backup needs itself; what lies before that the chain carried."""
        head, wal = self._head, self._head.wal
        if wal is None:
            return None
        segment = WalSegment.containing(
            Lsn.parse(head.start_lsn), timeline=Timeline(head.timeline), size=wal.segment_size
        )
        return msgspec.structs.replace(wal, start=head.start_lsn, first_segment=segment.name)

    def _open_check(self, *, is_complete: bool) -> ManifestCheck:
        check = ManifestCheck(lambda _: not is_complete)
        self._resources.callback(check.close)
        return check

    def _read_manifest(self, member: StoredBackup, check: ManifestCheck) -> FileEntry:
        entry = self._index(member.backup_id).get(self._path_in(member, BACKUP_MANIFEST))
        if entry is None:
            raise BackupUnusable(f"backup {member.backup_id} has no {BACKUP_MANIFEST}", hint="make a Full")
        for piece in OrderedContent(member.item(entry), _ignore).chunks():
            check.feed(piece)
        return entry

    def _items_of(self, entry: FileEntry, inside: str) -> Iterator[Item]:
        check = self._checks[-1]
        if entry.kind != ItemKind.FILE.value:
            self._newest.item(entry).check_without_content()
            check.note(inside, 0, None)
            yield BytesItem(self._header(entry, inside, 0), b"")
        elif is_increment(inside):
            rolled = self._rolled(entry, inside)
            yield self._passing(entry, relation_path(inside), rolled.size, rolled.chunks)
        elif inside == BACKUP_LABEL:
            content = b"".join(self._content(self._newest, entry, check).chunks())
            label = without_incremental_lines(content.decode("utf-8", "surrogateescape"))
            changed = label.encode("utf-8", "surrogateescape")
            yield self._passing(entry, inside, len(changed), lambda: iter([changed]))
        else:
            yield self._passing(entry, inside, entry.size, self._content(self._newest, entry, check).chunks)

    def _rolled(self, entry: FileEntry, inside: str) -> RolledFile:
        """Return the file that the increment at *inside* and what it builds on give."""
        increments = [self._content(self._newest, entry, self._checks[-1])]
        path = relation_path(inside)
        for number in reversed(range(len(self._members) - 1)):
            member, check, index = self._members[number], self._checks[number], self._index
            files = index(member.backup_id)
            whole = files.get(self._path_in(member, path))
            if whole is not None:
                return RolledFile(self._content(member, whole, check), increments[::-1])
            # In a Full the name means nothing: anybody may call a file so.
            changed = files.get(self._path_in(member, incremental_path(path))) if number else None
            if changed is None:
                break
            increments.append(self._content(member, changed, check))
        raise BackupUnusable(
            f"{entry.path} changes a file that none of the backups before it holds", hint="make a Full"
        )

    def _content(self, member: StoredBackup, entry: FileEntry, check: ManifestCheck) -> OrderedContent:
        item = member.item(entry)
        if not entry.size:
            item.check_without_content()
        inside = entry.path.removeprefix(self._path_in(member, ""))
        return OrderedContent(item, partial(check.note, inside))

    def _passing(
        self, entry: FileEntry, inside: str, size: int, content: Callable[[], Iterator[Buffer]]
    ) -> _PassingItem:
        """Return an item of *content*, which is looked at and gets its line in the manifest while it passes."""
        path = _manifest_path(inside)
        modified = dt.datetime.fromtimestamp(entry.mtime_ns // _NANOSECONDS, dt.UTC)

        def chunks() -> Iterator[Buffer]:
            crc = offset = 0
            for chunk in content():
                crc = crc32c(chunk, crc)
                self._check_pages(inside, offset, chunk)
                offset += len(chunk)
                yield chunk
            if path:
                line = ManifestFile(path, offset, modified, "CRC32C", crc.to_bytes(4, "little"))
                self._lines.write(self._writer.file(line))

        return _PassingItem(self._header(entry, inside, size), chunks)

    def _check_pages(self, inside: str, offset: int, chunk: Buffer) -> None:
        relation = page_file(inside.removeprefix("pgdata/")) if self._head.data_checksums else None
        whole = len(chunk) // DEFAULT_BLOCK_SIZE * DEFAULT_BLOCK_SIZE
        if relation is None or not whole:
            return
        verdict = check_pages(
            memoryview(chunk)[:whole],
            relation.first_block(blocks_per_segment=SEGMENT_BLOCKS) + offset // DEFAULT_BLOCK_SIZE,
            start_lsn=Lsn.parse(self._head.start_lsn),
            stop_lsn=Lsn.parse(self._head.stop_lsn),
        )
        self._pages += verdict.checked
        self._suspect_pages += verdict.after_start
        damaged = set(verdict.bad)
        for block in verdict.headless:
            page = BlockReference.at(inside, block)
            if page is not None and len(self._headless) < MAX_HEADLESS:
                self._headless[page] = inside
                damaged.remove(block)
        if damaged:
            self._refuse_damaged(inside, min(damaged))

    def _check_headless(self) -> None:
        """Raise BackupUnusable for a page without a head, unless replay writes it anew."""
        left = not_written_anew(self._archive, self._head, self._headless) if self._headless else None
        if left:
            first = min(left, key=lambda page: (self._headless[page], page.block))
            self._refuse_damaged(self._headless[first], first.block)
        self._suspect_pages += len(self._headless)

    def _refuse_damaged(self, inside: str, block: int) -> NoReturn:
        raise BackupUnusable(
            f"backup {self._newest.backup_id} cannot be merged: {inside} has a wrong checksum in block {block}",
            hint="mend the table at the server, and make a Full",
        )

    def _check_range(self, end: ManifestEnd) -> None:
        """Raise BackupUnusable unless the manifest is of the WAL of which the record is."""
        found = [(one.start_lsn, one.end_lsn) for one in end.wal_ranges]
        if found != [(Lsn.parse(self._head.start_lsn), Lsn.parse(self._head.stop_lsn))]:
            raise BackupUnusable(
                f"the manifest of backup {self._newest.backup_id} is not of WAL {self._head.start_lsn} to "
                f"{self._head.stop_lsn}, as its record is",
                hint="make a Full",
            )

    def _wal_item(self, entry: FileEntry) -> Item:
        item = self._newest.item(entry)
        header = ItemHeader(
            path=entry.path,
            size=entry.size,
            mtime_ns=entry.mtime_ns,
            file_mode=entry.file_mode,
            role=ItemRole.BACKUP_WAL,
        )
        return _PassingItem(header, OrderedContent(item, _ignore).chunks)

    def _manifest_chunks(self) -> Iterator[Buffer]:
        self._lines.seek(0)
        while piece := self._lines.read(CHUNK_BYTES):
            yield piece

    def _header(self, entry: FileEntry, inside: str, size: int, *, role: ItemRole = ItemRole.DATA) -> ItemHeader:
        return ItemHeader(
            path=f"{self._root}/{self._backup_id}/{inside}",
            kind=ItemKind(entry.kind),
            size=size,
            mtime_ns=entry.mtime_ns,
            file_mode=entry.file_mode,
            owner=entry.owner,
            group=entry.group,
            link=entry.link,
            role=role,
        )

    def _path_in(self, member: StoredBackup, inside: str) -> str:
        return f"{self._root}/{member.backup_id}/{inside}"

    def _inside(self, path: str) -> str | None:
        """Return where the file at virtual *path* is in its backup; None for the WAL, which is beside it."""
        inside = path.removeprefix(self._path_in(self._newest, ""))
        return None if inside == path else inside


def _manifest_path(inside: str) -> str:
    """Return how a manifest names the file at *inside*; empty for what is none of the cluster's."""
    top, _, below = inside.partition("/")
    if top == "pgdata":
        # The end of what a standby's backup needs lies there; no manifest names WAL.
        return "" if below.startswith(f"{WAL_DIRECTORY}/") else below
    if top == "tblspc":
        return f"{TABLESPACES}/{below}"
    return inside if inside in (BACKUP_LABEL, TABLESPACE_MAP) else ""


def _ignore(size: int, crc: int) -> None:
    """Need no manifest for what the vault alone has a digest of."""
