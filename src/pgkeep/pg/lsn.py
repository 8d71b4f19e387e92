"""Log sequence numbers, timelines and system identifiers: the three identities that must never be mixed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from pgkeep.errors import FormatError

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_TIMELINE_HEX = re.compile(r"[0-9A-F]{8}")


class Lsn(int):
    """
    A byte position in the WAL of one timeline, 0 to 2**64 - 1.

    LSNs of different timelines do not compare; whoever holds two of them holds their timelines too.
    """

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        """Raise FormatError when *value* does not fit 64 bits."""
        if not 0 <= value < 1 << 64:
            raise FormatError(f"LSN out of range: {value}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Return the LSN written as ``X/X``, padded or not; raise FormatError for anything else."""
        match = _LSN.fullmatch(text.strip())
        if match is None:
            raise FormatError(f'not an LSN: expected something like 2/04000028, found "{text}"')
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:08X}"

    def __repr__(self) -> str:
        return f"Lsn({self!s})"


class Timeline(int):
    """The number of a timeline, 1 to 2**32 - 1; ``hex`` is its form in file names."""

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        """Raise FormatError when *value* is not a timeline number."""
        if not 1 <= value < 1 << 32:
            raise FormatError(f"timeline out of range: {value}")
        return super().__new__(cls, value)

    @classmethod
    def parse_hex(cls, text: str) -> Timeline:
        """Return the timeline written as 8 upper-case hexadecimal digits."""
        if _TIMELINE_HEX.fullmatch(text) is None:
            raise FormatError(f'not a timeline: expected 8 hexadecimal digits, found "{text}"')
        return cls(int(text, 16))

    @property
    def hex(self) -> str:
        """8 upper-case hexadecimal digits."""
        return f"{int(self):08X}"

    @property
    def history_file_name(self) -> str:
        """``0000000N.history``; timeline 1 has no such file."""
        return f"{self.hex}.history"


class SystemIdentifier(int):
    """The 64-bit identity that initdb gives a cluster; unsigned."""

    __slots__ = ()

    def __new__(cls, value: int) -> Self:
        """Raise FormatError when *value* does not fit 64 bits."""
        if not 0 <= value < 1 << 64:
            raise FormatError(f"system identifier out of range: {value}")
        return super().__new__(cls, value)


@dataclass(frozen=True, slots=True)
class WalPosition:
    """A place in WAL: an LSN and the timeline that it is on."""

    timeline: Timeline
    lsn: Lsn
