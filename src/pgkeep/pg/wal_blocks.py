"""
Which blocks WAL writes anew: those of which a record carries the whole page, or that it makes from nothing.

What a base backup holds of such a block does not matter. Replay puts the whole page in its place without a look at it.
The layout is that of ``XLogRecordBlockHeader`` in ``src/include/access/xlogrecord.h``, read as ``DecodeXLogRecord`` in
``src/backend/access/transam/xlogreader.c`` does.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pgkeep.pg.data_directory import Fork, relation_file
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import LONG_HEADER_BYTES, MAJOR_BY_PAGE_MAGIC, parse_wal_header
from pgkeep.pg.wal_walk import (
    FIRST_IS_OVERWRITE_CONTRECORD,
    IS_LONG_HEADER,
    PAGE_HEADER,
    RECORD_HEADER,
    SHORT_HEADER_BYTES,
    XLOG_RMGR,
    XLOG_SWITCH,
    has_right_crc,
)

Buffer = bytes | bytearray | memoryview

_FORKS = (Fork.MAIN, Fork.FREE_SPACE_MAP, Fork.VISIBILITY_MAP, Fork.INIT)
_DEFAULT_TABLESPACE, _GLOBAL_TABLESPACE = 1663, 1664

_LOCATOR = struct.Struct("<III")
"""RelFileLocator: tablespace, database, relation."""
_PLACE = re.compile(
    r"pgdata/(?:base/(?P<database>[0-9]+)|global)/(?P<name>[^/]+)"
    r"|(?:tblspc|pgdata/pg_tblspc)/(?P<tablespace>[0-9]+)/PG_[^/]+/(?P<elsewhere>[0-9]+)/(?P<its_name>[^/]+)"
)

# XLR_BLOCK_ID_* and XLR_MAX_BLOCK_ID: what stands before each part of a record.
_MAX_BLOCK_ID = 32
_ORIGIN, _TOPLEVEL_XID = 253, 252
# fork_flags
_FORK_MASK, _HAS_IMAGE, _WILL_INIT, _SAME_RELATION = 0x0F, 0x10, 0x40, 0x80
# bimg_info; the bits behind the first one have changed in 15.
_HAS_HOLE = 0x01
_APPLY_BEFORE_15, _COMPRESSED_BEFORE_15 = 0x04, 0x02
_APPLY, _COMPRESSED = 0x02, 0x04 | 0x08 | 0x10


class BlockReference(NamedTuple):
    """
    One page of the cluster, as WAL names it.

    Attributes:
        tablespace: OID.
        database: OID; 0 for what all databases share.
        relation: The relation's file number.
        fork: Which fork.
        block: Number of the page within the fork.
    """

    tablespace: int
    database: int
    relation: int
    fork: Fork
    block: int

    @classmethod
    def at(cls, inside: str, block: int) -> BlockReference | None:
        """
        Return page *block* of the fork that the file at *inside* is of; None when it is no file of a relation.

        Args:
            inside: ``pgdata/…`` or ``tblspc/<oid>/…``, as a backup has it.
            block: Counted from the beginning of the fork, not of the file.
        """
        match = _PLACE.fullmatch(inside)
        relation = relation_file(match["name"] or match["its_name"]) if match else None
        if match is None or relation is None:
            return None
        if match["tablespace"]:
            place = int(match["tablespace"]), int(match["elsewhere"])
        else:
            place = (_DEFAULT_TABLESPACE, int(match["database"])) if match["database"] else (_GLOBAL_TABLESPACE, 0)
        return cls(*place, relation.number, relation.fork, block)


class BlockSearch:
    """
    Looks for blocks in WAL that is read in order: in the records that replay of a base backup applies in any case.

    Those are the ones from *start* up to *stop*. What lies before *start*, in the same segment, may have been on the
    page's way to the disk before the backup, so the page had it; what lies behind *stop*, a recovery may never reach.
    WAL ends where replay would end: at a page that is not the next one, at a wrong CRC of a record that matters, at
    what is none. Records that do not name a relation of interest cost a look at their length.

    Args:
        wanted: The blocks to look for; one or more.
        start: Where replay begins: the beginning of a record.
        stop: Where the backup is consistent: the end of a record.

    Attributes:
        left: Those that no record was found to write anew.
    """

    def __init__(self, wanted: Iterable[BlockReference], *, start: Lsn, stop: Lsn) -> None:
        self.left = set(wanted)
        self._start, self._stop = start, stop
        relations = {_LOCATOR.pack(*reference[:3]) for reference in self.left}
        self._relations = re.compile(b"|".join(re.escape(relation) for relation in sorted(relations)), re.DOTALL)
        # What the pages hold of records that have not been looked at, without page headers; padding included.
        self._stream = bytearray()
        self._is_switched = self._is_at_end = False
        self._lsn = self._major = self._page_bytes = 0

    def enter(self, lsn: Lsn) -> None:
        """Say that the segment that begins at *lsn* is next."""
        self._is_switched = False
        self._lsn, self._major = lsn, 0

    def feed(self, piece: Buffer) -> None:
        """Take the next bytes of the segment, whole pages; raise FormatError when it does not begin as one."""
        if not self._major:
            header = parse_wal_header(bytes(piece[:LONG_HEADER_BYTES]))
            self._major, self._page_bytes = MAJOR_BY_PAGE_MAGIC[header.magic], header.block_size
        for start in range(0, len(piece), self._page_bytes):
            if self._is_switched or self._is_at_end:
                return
            self._take_page(memoryview(piece)[start : start + self._page_bytes])
        self._look_at_records()

    def _take_page(self, page: memoryview) -> None:
        lsn = self._lsn
        self._lsn += len(page)
        if self._lsn <= self._start or lsn >= self._stop:
            return
        _magic, flags, _timeline, address, _remaining = PAGE_HEADER.unpack_from(page)
        if address != lsn:
            # Never written, or left from what the file was before.
            self._look_at_records()
            self._is_at_end = not self._is_switched
            return
        if flags & FIRST_IS_OVERWRITE_CONTRECORD:
            # The server crashed within a record, and gave it up.
            self._look_at_records()
            self._stream.clear()
        header_bytes = LONG_HEADER_BYTES if flags & IS_LONG_HEADER else SHORT_HEADER_BYTES
        self._stream += page[max(header_bytes, self._start - lsn) : max(header_bytes, self._stop - lsn)]

    def _look_at_records(self) -> None:
        stream, position = self._stream, 0
        named = -1
        while len(stream) - position >= RECORD_HEADER.size and not (self._is_switched or self._is_at_end):
            total, _xid, _link, info, rmgr, _crc = RECORD_HEADER.unpack_from(stream, position)
            if not RECORD_HEADER.size <= total <= self._stop - self._start:
                self._is_at_end = True
                break
            if position + total > len(stream):
                break
            if named < position:
                named = self._next_named(position)
            if named < position + total:
                self._look_at(bytes(stream[position : position + total]))
            # Behind it the segment is empty.
            self._is_switched = rmgr == XLOG_RMGR and info & 0xF0 == XLOG_SWITCH
            position += _aligned(total)
        del stream[: len(stream) if self._is_switched or self._is_at_end else position]

    def _next_named(self, position: int) -> int:
        """Return where the next relation of interest is named from *position* on; the stream's end when none is."""
        match = self._relations.search(self._stream, position)
        # A match holds the buffer: it must be gone before that changes its size.
        return match.start() if match is not None else len(self._stream)

    def _look_at(self, record: bytes) -> None:
        if not has_right_crc(record):
            self._is_at_end = True
            return
        # Not as PostgreSQL writes it: it proves nothing.
        with contextlib.suppress(struct.error, IndexError):
            self.left.difference_update(_written_anew(record, self._major))


def _written_anew(record: bytes, major: int) -> Iterator[BlockReference]:
    """Yield the blocks that *record* writes anew."""
    applies, is_compressed = (_APPLY, _COMPRESSED) if major >= 15 else (_APPLY_BEFORE_15, _COMPRESSED_BEFORE_15)
    position, data_bytes = RECORD_HEADER.size, 0
    locator: tuple[int, ...] = ()
    # What follows the headers is the data of the blocks; main data, whose header comes last, ends them too.
    while len(record) - position > data_bytes:
        part = record[position]
        if part in (_ORIGIN, _TOPLEVEL_XID):
            position += 3 if part == _ORIGIN else 5
            continue
        if part > _MAX_BLOCK_ID:
            return
        flags, length = struct.unpack_from("<BH", record, position + 1)
        position += 4
        data_bytes += length
        is_anew = bool(flags & _WILL_INIT)
        if flags & _HAS_IMAGE:
            image_bytes, _hole, info = struct.unpack_from("<HHB", record, position)
            position += 5 + (2 if info & is_compressed and info & _HAS_HOLE else 0)
            data_bytes += image_bytes
            is_anew = is_anew or bool(info & applies)
        if not flags & _SAME_RELATION:
            locator = _LOCATOR.unpack_from(record, position)
            position += _LOCATOR.size
        (block,) = struct.unpack_from("<I", record, position)
        position += 4
        if is_anew and locator:
            tablespace, database, relation = locator
            yield BlockReference(tablespace, database, relation, _FORKS[flags & _FORK_MASK], block)


def _aligned(count: int) -> int:
    """Return *count* rounded up to a multiple of 8: MAXALIGN."""
    return (count + 7) & ~7
