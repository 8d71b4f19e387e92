"""
The files that the daemon restores, as items.

::

    FNAME, STAT, TSTAMP, [LSTAT], F     ->  OK or SKIP
    [DATA  D...  F                      ->  OK]            nothing at all for a file without content
    COMPLETE:<bytes> or FAILED:<reason>                    extended only; a plain bridge says nothing
    ...
    FINISH                              ->  F, said by the caller when everything is settled

Where a plain bridge speaks, a file is complete when the next one, or FINISH, comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pgkeep.bacula.channel import Channel
from pgkeep.errors import FormatError, WireError
from pgkeep.jobs.streamed.restore import ItemFailed
from pgkeep.streams.item import UNKNOWN_SIZE, Buffer, ItemHeader, ItemKind
from pgkeep.wire.file_item import FileKind, FileStatus, parse_stat, parse_times
from pgkeep.wire.packet import Packet, PacketKind

NANOSECONDS = 1_000_000_000

_KINDS = {
    FileKind.REGULAR: ItemKind.FILE,
    FileKind.EMPTY: ItemKind.FILE,
    FileKind.UNKNOWN: ItemKind.FILE,
    FileKind.DIRECTORY: ItemKind.DIRECTORY,
    FileKind.SYMLINK: ItemKind.SYMLINK,
}


class RestoredFile:
    """One file of the stream; see ``jobs/streamed/restore.py`` for the contract."""

    def __init__(self, stream: RestoreStream, header: ItemHeader, status: FileStatus) -> None:
        self.header = header
        self.owner = (status.uid, status.gid)
        self.is_answered = False
        self._stream = stream

    def chunks(self) -> Iterator[Buffer]:
        """Yield the content."""
        self.is_answered = True
        yield from self._stream.content(self.header.path)

    def skip(self) -> None:
        """Say that nothing of it is wanted."""
        self.is_answered = True
        self._stream.skip()


class RestoreStream:
    """
    What comes from the first FNAME to FINISH.

    Args:
        channel: The conversation.
        path_of: Returns the virtual path of a restored name, without a slash before it; None for a file of others.

    Attributes:
        own: How many files of this line came.
        foreign: How many files of others.
    """

    def __init__(self, channel: Channel, path_of: Callable[[str], str | None]) -> None:
        self._channel = channel
        self._path_of = path_of
        self._ahead: Packet | None = None
        self.own = 0
        self.foreign = 0

    def items(self, command: str) -> Iterator[RestoredFile]:
        """Yield the files, from the one that *command* announces to FINISH."""
        while command != "FINISH":
            if not command.startswith("FNAME:"):
                raise WireError(f'expected FNAME or FINISH, found "{command[:80]}"')
            name = command.removeprefix("FNAME:")
            status = self._status(name)
            path = self._path_of(name)
            if path is None:
                self.foreign += 1
                self.skip()
            else:
                self.own += 1
                item = RestoredFile(self, _header(path, status), status)
                yield item
                if not item.is_answered:
                    for chunk in item.chunks():
                        if chunk:
                            raise FormatError(f"{path} is a {item.header.kind.value}, but content came for it")
            command = self._next_command()

    def content(self, path: str) -> Iterator[Buffer]:
        """Accept the file that was announced, and yield its content; return when it is known to be whole."""
        channel = self._channel
        channel.command("OK")
        total = 0
        packet = self._take()
        while packet.kind is PacketKind.COMMAND and packet.text in ("ACL", "XATTR", "METADATA_STREAM"):
            packet = self._pass_over()
        if packet.kind is PacketKind.COMMAND and packet.text == "DATA":
            for piece in channel.data():
                total += len(piece)
                yield piece
            channel.command("OK")
            packet = self._take()
            while packet.kind is PacketKind.COMMAND and packet.text in ("ACL", "XATTR"):
                packet = self._pass_over()
        self._end(path, total, packet)

    def skip(self) -> None:
        """Refuse the file that was announced."""
        self._channel.command("SKIP")
        packet = self._take()
        if not _is_end(packet):
            self._ahead = packet

    def _end(self, path: str, total: int, packet: Packet) -> None:
        if _is_end(packet) and self._channel.is_extended:
            keyword, _, value = packet.text.partition(":")
            if keyword == "FAILED":
                raise ItemFailed(f"{path} could not be restored: the daemon says {value or 'nothing more'}")
            if value != str(total):
                raise ItemFailed(f"{path} arrived with {total} bytes, the daemon read {value or 'none'}")
            return
        self._ahead = packet
        if self._channel.is_extended:
            raise ItemFailed(f"{path} did not arrive whole: the daemon did not say that it was complete")

    def _pass_over(self) -> Packet:
        """Take metadata that no file of pgkeep's has, and return what follows."""
        for _ in self._channel.data():
            pass
        self._channel.command("OK")
        return self._take()

    def _status(self, name: str) -> FileStatus:
        stat, times, link = FileStatus(), 0, ""
        while (packet := self._channel.receive()).kind is PacketKind.COMMAND:
            text = packet.text
            if text.startswith("STAT:"):
                stat = parse_stat(text)
            elif text.startswith("TSTAMP:"):
                times = parse_times(text)[1]
            elif text.startswith("LSTAT:"):
                link = text.removeprefix("LSTAT:")
            else:
                raise WireError(f'expected an attribute of {name}, found "{text[:80]}"')
        if packet.kind is not PacketKind.END:
            raise self._channel.unexpected(packet, f"an attribute of {name} or F")
        return FileStatus(
            kind=stat.kind,
            size=stat.size,
            uid=stat.uid,
            gid=stat.gid,
            file_mode=stat.file_mode,
            mtime=times,
            link=link,
        )

    def _next_command(self) -> str:
        packet = self._take()
        if packet.kind is not PacketKind.COMMAND:
            raise self._channel.unexpected(packet, "FNAME or FINISH")
        return packet.text

    def _take(self) -> Packet:
        packet, self._ahead = self._ahead, None
        return packet or self._channel.receive()


def _is_end(packet: Packet) -> bool:
    return packet.kind is PacketKind.COMMAND and packet.text.startswith(("COMPLETE:", "FAILED:", "FAILED"))


def _header(path: str, status: FileStatus) -> ItemHeader:
    if status.kind not in _KINDS:
        raise FormatError(f"{path} is a hard link, which no backup of pgkeep's holds")
    kind = _KINDS[status.kind]
    size = 0
    if kind is ItemKind.FILE and status.kind is not FileKind.EMPTY:
        # A stream's size was not known when it was announced.
        size = status.size if status.size > 0 else UNKNOWN_SIZE
    return ItemHeader(
        path=path.removesuffix("/") if kind is ItemKind.DIRECTORY else path,
        kind=kind,
        size=size,
        mtime_ns=status.mtime * NANOSECONDS,
        file_mode=status.file_mode,
        link=status.link,
    )
