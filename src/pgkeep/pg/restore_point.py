"""Named restore points in WAL: found by their record, without reading the WAL record by record."""

from __future__ import annotations

import struct

from pgkeep.errors import FormatError

MAX_NAME_BYTES = 63

# XLogRecord, then the short main-data header, then xl_restore_point: time and a 64-byte name
# (src/include/access/xlogrecord.h, xlog_internal.h; XLOG_RESTORE_POINT in src/include/catalog/pg_control.h).
_RECORD = struct.Struct("<IIQBB2xIBB")
RECORD_BYTES = 24 + 2 + 8 + 64
"""Length of such a record, in bytes."""

_NAME_OFFSET = _RECORD.size + 8
_MAIN_DATA_SHORT = 0xFF
_XLOG_RMGR = 0
_XLOG_RESTORE_POINT = 0x70


def find_restore_point(wal: bytes, name: str) -> list[int]:
    """
    Return the offsets in *wal* of the records of restore points called *name*, in order; may be empty.

    Args:
        wal: Whole pages of WAL, as long as the caller likes.
        name: At most 63 bytes in UTF-8.

    Returns:
        Offsets of the records' first bytes. A record that a page boundary divides is not found: the caller must have
        another way on.

    Raises:
        FormatError: *name* is too long to be a restore point's.
    """
    encoded = name.encode()
    if not 1 <= len(encoded) <= MAX_NAME_BYTES:
        raise FormatError(f"a restore point's name has 1 to {MAX_NAME_BYTES} bytes, found {len(encoded)}")
    field = encoded.ljust(64, b"\0")
    found = []
    position = wal.find(field)
    while position >= 0:
        start = position - _NAME_OFFSET
        if start >= 0:
            length, _xid, _prev, info, rmgr, _crc, data_id, data_length = _RECORD.unpack_from(wal, start)
            if (
                length == RECORD_BYTES
                and rmgr == _XLOG_RMGR
                and info & 0xF0 == _XLOG_RESTORE_POINT
                and data_id == _MAIN_DATA_SHORT
                and data_length == 8 + 64
            ):
                found.append(start)
        position = wal.find(field, position + 1)
    return found
