"""What a server remarks about damaged pages while it sends a base backup."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from pgkeep.pg.data_directory import TABLESPACES

# The words are in the server's language, so only what is no word is read: the path in whatever quotes, the first number
# after it, and, where a single page is named, the two checksums in hexadecimal. From sendFile in basebackup.c:
#   checksum verification failed in file "%s", block %u: calculated %X but expected %X
#   file "%s" has a total of %d checksum verification failures
_QUOTES = "\"'«»„“”‚‘’‹›「」"
_FILE_AND_NUMBER = re.compile(
    rf"[{_QUOTES}](?P<path>[^{_QUOTES}]*/[^{_QUOTES}]*)[{_QUOTES}][^0-9]*(?P<number>[0-9]+)(?P<rest>.*)", re.DOTALL
)
_TWO_CHECKSUMS = re.compile(r"\b[0-9A-F]{1,4}\b\D.*?\b[0-9A-F]{1,4}\b")
# A file that was cut while it was read ends in half a page, which is no damage:
#   could not verify checksum in file "%s", block %u: read buffer size %d and page size %d differ
_CUT_PAGE = re.compile(r"\b[0-9]+\b\D+\b(?:1024|2048|4096|8192|16384|32768)\b\D*$")
_SOURCE_FILES = ("basebackup.c",)


class Notice(Protocol):
    """A notice as libpq gives it."""

    @property
    def message_primary(self) -> str | None:
        """The message."""
        ...

    @property
    def source_file(self) -> str | None:
        """The file of the server's source that it is from."""
        ...


@dataclass(frozen=True, slots=True)
class DamagedFile:
    """
    A file with pages whose checksum was wrong when the server read them.

    Attributes:
        path: Relative to the data directory; a tablespace's files are below ``pg_tblspc/<oid>/``.
        blocks: Numbers of damaged pages within the file, ascending; the server names at most five of a file.
        count: How many pages of the file are damaged.
    """

    path: str
    blocks: tuple[int, ...]
    count: int


@dataclass
class _Found:
    blocks: list[int] = field(default_factory=list)
    total: int = 0


class ChecksumNotices:
    """Takes a server's notices and sorts out those about damaged pages."""

    def __init__(self) -> None:
        self._found: dict[str, _Found] = {}
        self._others: list[str] = []

    def take(self, notice: Notice) -> None:
        """Take one notice."""
        text = notice.message_primary or ""
        match = None
        if (notice.source_file or "").rpartition("/")[2] in _SOURCE_FILES:
            match = _FILE_AND_NUMBER.search(text)
        if match is None or _CUT_PAGE.search(match["rest"]):
            self._others.append(text)
            return
        found = self._found.setdefault(match["path"], _Found())
        number = int(match["number"])
        if _TWO_CHECKSUMS.search(match["rest"]):
            found.blocks.append(number)
        else:
            found.total = number

    def damaged(self, locations: dict[str, int]) -> tuple[DamagedFile, ...]:
        """
        Return the damaged files, in the order in which they came.

        Args:
            locations: The OID of each tablespace by its absolute path; others are passed over.
        """
        return tuple(
            DamagedFile(_relative(path, locations), tuple(sorted(found.blocks)), max(found.total, len(found.blocks)))
            for path, found in self._found.items()
        )

    def others(self) -> tuple[str, ...]:
        """Return all other notices, in order."""
        return tuple(self._others)


def _relative(path: str, locations: dict[str, int]) -> str:
    # French puts blanks inside its quotes; a path of PostgreSQL's own never begins or ends with one.
    path = path.strip().removeprefix("./")
    for location, oid in locations.items():
        if location and path.startswith(f"{location}/"):
            return f"{TABLESPACES}/{oid}/{path[len(location) + 1 :]}"
    return path
