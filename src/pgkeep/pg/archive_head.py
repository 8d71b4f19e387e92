"""
Where the head of a pg_dump archive ends: in custom format all definitions come before the first row.

What is before that place is an archive by itself, whose definitions pg_restore loads and which has no rows.

Source: PostgreSQL ``src/bin/pg_dump/pg_backup_archiver.c``, ``WriteHead``, ``WriteToc``, ``WriteInt``, ``WriteStr``;
``pg_backup_custom.c``, ``_WriteExtraToc``.
"""

from __future__ import annotations

import struct

from pgkeep.errors import FormatError

_HEAD = struct.Struct("5s6B")
_MAGIC = b"PGDMP"
_CUSTOM = 1
_OLDEST, _NEWEST = (1, 14), (1, 16)
"""Of the archives that pg_dump 12 to 18 write."""
_HAS_ALGORITHM = (1, 15)
_HAS_RELKIND = (1, 16)
_NUMBER = struct.Struct("<BI")
"""Whether it is below 0, and how large it is; a text is a number and so many bytes, or less than 0 for none."""
_MOMENT_NUMBERS = 7
_HEAD_TEXTS = 3
_TEXTS_BEFORE_SECTION = 4
_TEXTS_BEHIND_SECTION = 6
_LAST_TEXTS = 2


class ArchiveHead:
    """
    The head of an archive, looked at while it comes.

    Attributes:
        entries: How many of the table of contents have passed.
    """

    def __init__(self) -> None:
        self.entries = 0
        self._unread = bytearray()
        self._version = (0, 0)
        self._offset_bytes = 0
        self._expected = -1

    def take(self, more: bytes | bytearray | memoryview) -> int | None:
        """
        Return how many bytes of *more* belong to the head when it ends there; None when it goes on.

        Raises:
            FormatError: It is no archive in custom format, or one of a version that nobody here knows.
        """
        before = len(self._unread)
        self._unread += more
        at = 0
        try:
            if self._expected < 0:
                at = self._after_beginning()
            while self.entries < self._expected:
                at = self._after_entry(at)
                self.entries += 1
        except struct.error:
            # There is less than that yet.
            del self._unread[:at]
            return None
        return at - before

    def _after_beginning(self) -> int:
        """Return where what comes before the entries ends, and keep what it says."""
        content = self._unread
        magic, major, minor, _, number_bytes, offset_bytes, form = _HEAD.unpack_from(content, 0)
        if (magic, number_bytes, form) != (_MAGIC, _NUMBER.size - 1, _CUSTOM):
            raise FormatError(f"not an archive of pg_dump in custom format: {bytes(content[: _HEAD.size])!r}")
        version = (major, minor)
        if not _OLDEST <= version <= _NEWEST:
            raise FormatError(f"pg_dump wrote an archive of version {major}.{minor}, expected 1.14 to 1.16")
        # How it is compressed: an algorithm, before that a level.
        at = _HEAD.size + (1 if version >= _HAS_ALGORITHM else _NUMBER.size)
        at = self._after_texts(at + _MOMENT_NUMBERS * _NUMBER.size, _HEAD_TEXTS)
        _, count = _NUMBER.unpack_from(content, at)
        self._version, self._offset_bytes, self._expected = version, offset_bytes, count
        return at + _NUMBER.size

    def _after_entry(self, at: int) -> int:
        """Return where the entry at *at* ends; raise struct.error when that has not come."""
        # Its own number, and whether it has rows, come first.
        at = self._after_texts(at + 2 * _NUMBER.size, _TEXTS_BEFORE_SECTION)
        at = self._after_texts(at + _NUMBER.size, _TEXTS_BEHIND_SECTION)
        if self._version >= _HAS_RELKIND:
            at += _NUMBER.size
        at = self._after_texts(at, _LAST_TEXTS)
        # Dependencies, as texts, up to one that is none; then where its rows are.
        while not _NUMBER.unpack_from(self._unread, at)[0]:
            at = self._after_texts(at, 1)
        at += _NUMBER.size + 1 + self._offset_bytes
        if at > len(self._unread):
            raise struct.error
        return at

    def _after_texts(self, at: int, count: int) -> int:
        for _ in range(count):
            is_none, length = _NUMBER.unpack_from(self._unread, at)
            at += _NUMBER.size + (0 if is_none else length)
        return at
