"""pg_dump's archive of one database on its way: the definitions, then the rows that no worker copies."""

from __future__ import annotations

from collections.abc import Iterator

from pgkeep.errors import FormatError, ToolError
from pgkeep.pg.archive_head import ArchiveHead
from pgkeep.streams.item import Buffer


class DividedArchive:
    """
    An archive that is read in two parts, one after the other.

    Args:
        output: What pg_dump writes; each piece is valid until the next.
        task: What pg_dump does, for messages.
    """

    def __init__(self, output: Iterator[Buffer], *, task: str) -> None:
        self._output = output
        self._task = task
        self._behind = b""

    def head(self) -> Iterator[Buffer]:
        """
        Yield the head; its first piece comes when pg_dump has asked the server for everything.

        Raises:
            ToolError: pg_dump writes what nobody here knows.
        """
        head = ArchiveHead()
        for piece in self._output:
            try:
                size = head.take(piece)
            except FormatError as error:
                raise ToolError(
                    f"{self._task}: {error.message}", hint="use the pg_dump of the server's own version"
                ) from error
            if size is not None:
                self._behind = bytes(memoryview(piece)[size:])
                yield memoryview(piece)[:size]
                return
            yield piece
        raise ToolError(f"{self._task}: its archive ends after {head.entries} definitions, which are not all")

    def rows(self) -> Iterator[Buffer]:
        """Yield what is behind the head; nothing when pg_dump copies no row."""
        if self._behind:
            yield self._behind
        yield from self._output
