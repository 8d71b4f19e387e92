"""What the daemon announces of a restore before the first file comes: the records' heads, and the list of files."""

from __future__ import annotations

import contextlib

from pgkeep.bacula.channel import Channel
from pgkeep.bacula.objects import OBJECT_BESIDE, RESTORE_OBJECT, parse_head_object, parse_heads_below
from pgkeep.errors import FormatError, WireError
from pgkeep.jobs.recovery.promised_wal import CDP_MODE
from pgkeep.jobs.streamed.selection import Selection
from pgkeep.streams.record import RecordHead, RecordTail
from pgkeep.wire.packet import PacketKind

MAX_OBJECT_BYTES = 1 << 20
MAX_NAME_BYTES = 64 << 10


class Announced:
    """
    What has been announced so far.

    Attributes:
        heads: Of the backups of this line.
        others: Of the backups of other lines.
        selection: The files of this line that will come; None where none are named.
        beside: The files of mode cdp that will come for another line; None before the list came.
        has_base: Whether the label of a base backup is among all files.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.heads: list[tuple[RecordHead, RecordTail]] = []
        self.others: list[RecordHead] = []
        self.selection: Selection | None = None
        self.beside: Selection | None = None
        self.has_base = False
        self._below: dict[str, tuple[RecordHead, RecordTail]] = {}
        self._others_below: dict[str, RecordHead] = {}

    def leave_only(self, root: str) -> None:
        """Forget the heads of backups that lie elsewhere than beneath *root*."""
        self.heads = [(head, tail) for head, tail in self.heads if head.details.get("root") == root]

    def take_object(self, name: str) -> None:
        """Take the restore object *name*, whose command has just come."""
        content = bytearray()
        length = -1
        while (packet := self._channel.receive()).kind is not PacketKind.END:
            if packet.kind is PacketKind.DATA:
                content += packet.payload
                if len(content) > MAX_OBJECT_BYTES:
                    raise WireError(f"a restore object of more than {MAX_OBJECT_BYTES} bytes")
            elif packet.kind is PacketKind.COMMAND and packet.text.startswith("RESTOREOBJ_LEN:"):
                text = packet.text.removeprefix("RESTOREOBJ_LEN:")
                length = int(text) if text.isascii() and text.isdigit() else -1
            elif packet.kind is not PacketKind.COMMAND or not packet.text.startswith("RESTOREOBJ_JOB:"):
                raise self._channel.unexpected(packet, "the content of a restore object")
        if len(content) != length:
            raise WireError(f"the restore object {name} has {len(content)} bytes, announced were {length}")
        if name == RESTORE_OBJECT:
            self.heads.append(parse_head_object(bytes(content)))
            self._below.update({head.backup_id: (head, tail) for head, tail in parse_heads_below(bytes(content))})
        elif name == OBJECT_BESIDE:
            # What another line cannot read, that line says.
            with contextlib.suppress(FormatError):
                self.others.append(parse_head_object(bytes(content))[0])
                self._others_below.update({head.backup_id: head for head, _ in parse_heads_below(bytes(content))})

    def take_expected(self, *, root: str, prefix: str) -> None:
        """
        Take the list of what will come.

        Args:
            root: Virtual path of the mode's directory.
            prefix: What stands above the modes.
        """
        selection = Selection(root)
        beside = self.beside = Selection(f"{prefix}/{CDP_MODE}")
        rest, is_empty = b"", True
        for piece in self._channel.data():
            *entries, rest = (rest + bytes(piece)).split(b"\0")
            for entry in entries:
                is_empty = False
                fields = entry.decode("utf-8", "surrogateescape").split(" ", 3)
                if len(fields) < 4 or not fields[0].lstrip("-").isdigit() or not fields[1].lstrip("-").isdigit():
                    raise WireError(f'an entry of EXPECT is "<size> <mtime> <delta> <name>", found {entry[:80]!r}')
                for one in (selection, beside):
                    one.add(fields[3].lstrip("/").removesuffix("/"), int(fields[0]), int(fields[1]))
                self.has_base |= fields[3].endswith("/backup_label")
            if len(rest) > MAX_NAME_BYTES:
                raise WireError("an entry of EXPECT has no end")
        if rest:
            raise WireError(f"an entry of EXPECT has no end: {rest[:80]!r}")
        # When the catalog has lost the names of the files (File Retention), whole jobs come and none is announced.
        self.selection = selection if not is_empty else None
        self._take_below(root, selection.records)

    def _take_below(self, root: str, records: set[str]) -> None:
        """Add what other heads say of backups whose record comes and whose own object is lost; see ``objects.py``."""
        known = {head.backup_id for head, _ in self.heads}
        for backup_id in sorted(records & self._below.keys() - known):
            head, tail = self._below[backup_id]
            if head.details.get("root") == root:
                self.heads.append((head, tail))
        if self.has_base:
            # Whether it is that base which comes, its own line judges.
            named = {head.backup_id for head in self.others}
            self.others += [self._others_below[one] for one in sorted(self._others_below.keys() - named)]
