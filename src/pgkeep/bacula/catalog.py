"""Questions to the Director's catalog, in an accurate job."""

from __future__ import annotations

from collections.abc import Callable

from pgkeep.bacula.channel import Channel
from pgkeep.errors import WireError
from pgkeep.modes.contract import Say
from pgkeep.streams.record import FileEntry
from pgkeep.wire.file_item import parse_stat, parse_times
from pgkeep.wire.packet import PacketKind

NANOSECONDS = 1_000_000_000


class Catalog:
    """
    The files that the catalog has of the jobs that this one builds on.

    Args:
        channel: The conversation.
        warn: Takes what the user should know.

    Attributes:
        between_files: Called before a question, which must not stand among the data of a file.
    """

    def __init__(self, channel: Channel, *, warn: Say) -> None:
        self._channel = channel
        self._warn = warn
        self._is_there = True
        self.between_files: Callable[[], None] = lambda: None

    def holds(self, entry: FileEntry) -> bool:
        """Tell whether the catalog has the file of *entry*, with its size and, to the second, its time."""
        if not self._is_there:
            return True
        self.between_files()
        self._channel.command(f"CHECKGET:/{entry.path}")
        packet = self._channel.receive()
        if packet.kind is PacketKind.ERROR:
            self._is_there = False
            self._warn("the catalog cannot be asked in this job: pgkeep's own record decides alone")
            return True
        if packet.kind is not PacketKind.COMMAND:
            raise self._channel.unexpected(packet, "an answer to CHECKGET")
        if packet.text == "UNAVAIL":
            return False
        status = parse_stat(packet.text)
        times = self._channel.expect_command()
        if not times.startswith("TSTAMP:"):
            raise WireError(f'expected TSTAMP after STAT, found "{times[:80]}"')
        _, mtime, _ = parse_times(times)
        return status.size == entry.size and mtime == entry.mtime_ns // NANOSECONDS
