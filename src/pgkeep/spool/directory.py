"""
The spool of one cluster: a directory with WAL that was received and is not yet in the vault.

::

    <spool_dir>/<cluster>/spool.json                          whose WAL it is
                         /lock                                held by the receiver
                         /complete.json                       until when all commits were received, see proof.py
                         /000000010000000000000004            complete: waits to be shipped
                         /000000010000000000000005.partial    being received
                         /00000002.history

Names are those of the server. The file behind which the receiver goes on is never removed, so that the directory alone
says how far WAL was received.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pgkeep.errors import FormatError, SettingsError, VaultBusy, VaultError
from pgkeep.pg.lsn import SystemIdentifier, Timeline
from pgkeep.pg.wal import (
    PARTIAL_SUFFIX,
    WalSegment,
    check_segment_size,
    is_history_name,
    is_partial_name,
    is_segment_name,
)
from pgkeep.spool.segment_file import SegmentFile

IDENTITY_FILE = "spool.json"
LOCK_FILE = "lock"
SMALLEST_SEGMENTS = 4
"""Least room of a spool: one segment is received, one tells the end of what was, two are on their way."""


@dataclass(frozen=True, slots=True)
class SpooledSegment:
    """A segment in the spool, and whether all of it is there."""

    segment: WalSegment
    is_complete: bool

    @property
    def name(self) -> str:
        """The file's name."""
        return self.segment.name if self.is_complete else self.segment.name + PARTIAL_SUFFIX


def segments_among(names: Iterable[str], *, segment_size: int) -> list[SpooledSegment]:
    """Return the segments among the *names* of a spool's files, by timeline and then in order, each once."""
    found: dict[WalSegment, bool] = {}
    for name in names:
        if is_segment_name(name) or is_partial_name(name):
            with contextlib.suppress(FormatError):
                segment = WalSegment.parse(name.removesuffix(PARTIAL_SUFFIX), size=segment_size)
                found[segment] = found.get(segment, False) or is_segment_name(name)
    return [
        SpooledSegment(segment, is_complete)
        for segment, is_complete in sorted(found.items(), key=lambda item: (item[0].timeline, item[0].number))
    ]


class Spool:
    """
    An open spool; safe to use by one thread that receives and one that ships.

    Args:
        path: Its directory, made if need be.
        system_identifier: Of the cluster.
        segment_size: Bytes.
        max_bytes: What it may take of the disk.

    Raises:
        VaultBusy: Another receiver has it.
        SettingsError: It is another cluster's, or *max_bytes* is too little.
        VaultError: It cannot be made or read.
    """

    def __init__(self, path: Path, *, system_identifier: SystemIdentifier, segment_size: int, max_bytes: int) -> None:
        self.path = path
        self.segment_size = check_segment_size(segment_size)
        self.max_bytes = max_bytes
        if max_bytes < SMALLEST_SEGMENTS * segment_size:
            raise SettingsError(
                f"spool_max is {max_bytes} bytes, expected at least {SMALLEST_SEGMENTS} segments of {segment_size}"
            )
        with contextlib.ExitStack() as stack:
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync(path.parent)
                self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, self.directory)
                lock = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=self.directory)
                stack.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._check_identity(system_identifier)
            except BlockingIOError:
                raise VaultBusy(
                    f"another pgkeep receive uses the spool {path}", hint="one is enough for a cluster"
                ) from None
            except OSError as error:
                raise VaultError(f"cannot use the spool {path}: {error.strerror}") from error
            self._resources = stack.pop_all()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another receiver have it."""
        self._resources.close()

    def segments(self) -> list[SpooledSegment]:
        """Return the segments, by timeline and then in order; a complete one hides its partial."""
        return segments_among(os.listdir(self.directory), segment_size=self.segment_size)

    def histories(self) -> list[Timeline]:
        """Return the timelines whose history file is here, in order."""
        return sorted(Timeline.parse_hex(name[:8]) for name in os.listdir(self.directory) if is_history_name(name))

    def history(self, timeline: Timeline) -> bytes | None:
        """Return the history file of *timeline*; None when it is not here."""
        try:
            return (self.path / timeline.history_file_name).read_bytes()
        except FileNotFoundError:
            return None

    @property
    def used_bytes(self) -> int:
        """What the files take."""
        used = 0
        with os.scandir(self.directory) as entries:
            for entry in entries:
                # The other thread may remove one between the listing and the look at it.
                with contextlib.suppress(FileNotFoundError):
                    used += entry.stat(follow_symlinks=False).st_size
        return used

    def has_room(self, segment: WalSegment) -> bool:
        """Tell whether *segment* can be received without passing the spool's bound."""
        if (self.path / (segment.name + PARTIAL_SUFFIX)).exists():
            return True
        return self.used_bytes + segment.size <= self.max_bytes

    def begin(self, segment: WalSegment) -> SegmentFile:
        """Begin, or go on, to receive *segment*; raise OSError where the disk has no room."""
        return SegmentFile(self.directory, segment)

    def put_history(self, name: str, content: bytes) -> None:
        """Hold a history file, durably."""
        self._write(name, content)

    def remove(self, name: str) -> None:
        """Remove a file that is in the vault."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.directory)

    def _check_identity(self, system_identifier: SystemIdentifier) -> None:
        mine = {"format": 1, "system_identifier": str(int(system_identifier)), "segment_size": self.segment_size}
        try:
            held = json.loads((self.path / IDENTITY_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            self._write(IDENTITY_FILE, (json.dumps(mine) + "\n").encode())
            return
        except ValueError as error:
            raise VaultError(f"{self.path / IDENTITY_FILE} is damaged: {error}") from error
        if held != mine:
            raise SettingsError(
                f"the spool {self.path} is for system identifier {held.get('system_identifier')}, "
                f"the vault's cluster has {system_identifier}",
                hint="give each cluster a spool of its own",
            )

    def _write(self, name: str, content: bytes) -> None:
        temporary = f".{name}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self.directory)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        os.fsync(self.directory)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
