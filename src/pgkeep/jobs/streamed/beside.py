"""
WAL that comes for another Plugin line than the base backup does, in the same restore.

The daemon gives the files of each line to a process of its own. The one for the WAL puts it into a directory that both
know and hold, and the one for the base backup takes it from there when all files of the restore have come. Whatever
becomes of that one, it leaves a mark behind: nobody waits for the WAL any more. Where the one for the WAL gives up, it
leaves another one: nothing more will come.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pgkeep.errors import BackupUnusable, RestoreRefused
from pgkeep.jobs.restoring.private_wal import PrivateWal
from pgkeep.jobs.streamed.restore import ArrivingItem
from pgkeep.pg.wal import is_partial_name
from pgkeep.streams.item import Buffer, ItemHeader, ItemKind

DIRECTORY = "restored-wal"
_OVER, _GIVEN_UP = ".over", ".given-up"
_FORGOTTEN_SECONDS = 2 * 86_400
_PIECE_BYTES = 1 << 20
_LATE_SECONDS = 60.0
"""How long the last files may take from the daemon's pipe to their place."""
_LOOK_SECONDS = 0.05


class WalBeside:
    """
    The WAL of one restore and cluster, on its way from one process to the other.

    Args:
        state_dir: The setting of that name, which both processes have.
        restore: What tells this restore from others: its job's number.
        cluster: The last part of the virtual path above the modes.
    """

    def __init__(self, state_dir: Path, *, restore: str, cluster: str) -> None:
        self.directory = state_dir / DIRECTORY / f"{restore}.{cluster.replace('/', '_')}"
        self._over = self.directory.with_name(self.directory.name + _OVER)
        self._given_up = self.directory.with_name(self.directory.name + _GIVEN_UP)
        self._held = -1

    def begin(self) -> None:
        """Make the directory and hold it, as long as this process runs; what killed restores left behind goes."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._held = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._held, fcntl.LOCK_SH)
        except OSError as error:
            raise RestoreRefused(f"cannot make {self.directory} for the restored WAL: {error.strerror}") from error
        for path in self.directory.parent.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - _FORGOTTEN_SECONDS:
                    path.unlink() if path.suffix in (_OVER, _GIVEN_UP) else _remove_unheld(path)

    def keep(self, items: Iterable[ArrivingItem], *, root: str) -> int:
        """Keep the WAL files of the mode's directory *root* among *items*; return how many came."""
        count = 0
        for item in items:
            path = item.header.path
            is_wal = item.header.kind is ItemKind.FILE and path.startswith(f"{root}/wal/")
            if not is_wal or self._over.exists():
                item.skip()
                continue
            self._write(path.rpartition("/")[2], item)
            count += 1
        if self._over.exists():
            shutil.rmtree(self.directory, ignore_errors=True)
        return count

    def hand_over(self, expected: Iterable[str], wal: PrivateWal) -> int:
        """
        Put what came into *wal*; return how many files that are.

        Args:
            expected: The names that must be there, at least the last ones.
            wal: Of the restore.

        Raises:
            BackupUnusable: Something that was promised did not come.
            ArchiveError: It is not what it claims to be.
        """
        wanted = set(expected)
        deadline = time.monotonic() + _LATE_SECONDS
        while missing := sorted(wanted - set(self._names())):
            if self._given_up.exists():
                raise BackupUnusable(
                    f"{len(missing)} WAL files of mode cdp did not arrive: {', '.join(missing[:5])}; the Plugin line "
                    "that takes them has given up, and said why",
                    hint="mend what it names, and restore again",
                )
            # The daemon does not wait until a file has its name.
            if time.monotonic() > deadline:
                raise BackupUnusable(
                    f"{len(missing)} WAL files of mode cdp did not arrive: {', '.join(missing[:5])}",
                    hint="restore again; the Plugin lines of base backup and WAL need the same state_dir",
                )
            time.sleep(_LOOK_SECONDS)
        names = self._names()
        # A whole segment comes after what was sent of it before, which it replaces.
        for name in sorted(names, key=lambda name: (not is_partial_name(name), name)):
            path = self.directory / name
            # Its own time says when it was received, which proves nothing; the jobs' records do.
            header = ItemHeader(path=f"wal/{name}", size=path.stat().st_size, mtime_ns=0)
            wal.take(_Kept(header, path))
            # Both places may be on one file system, which has room for it once.
            path.unlink()
        return len(names)

    def end(self) -> None:
        """Remove what came, and leave the mark that nothing more is wanted, whether or not the other has begun."""
        _leave(self._over)
        self._given_up.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.let_go()

    def give_up(self) -> None:
        """Leave the mark that nothing more comes, unless nobody waits for it any more."""
        if not self._over.exists():
            _leave(self._given_up)

    def let_go(self) -> None:
        """Hold the directory no longer."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _names(self) -> list[str]:
        """Return the names of the files that have come whole."""
        try:
            return sorted(name for name in os.listdir(self.directory) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def _write(self, name: str, item: ArrivingItem) -> None:
        temporary = self.directory / f".{name}"
        try:
            with open(temporary, "wb") as file:
                file.writelines(item.chunks())
            temporary.rename(self.directory / name)
        except OSError as error:
            if self._over.exists():
                # The other process has given up meanwhile, and has removed the directory.
                raise RestoreRefused("the base backup is not restored: its Plugin line said why") from error
            raise RestoreRefused(f"cannot keep WAL in {self.directory}: {error.strerror}") from error


def _leave(mark: Path) -> None:
    # Without it the other process waits a while in vain.
    with contextlib.suppress(OSError):
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch(mode=0o600)


def _remove_unheld(directory: Path) -> None:
    """Remove *directory*, unless a restore holds it: that may wait for a volume for as long as it takes."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    finally:
        os.close(fd)


class _Kept:
    """A file that came, as an item."""

    def __init__(self, header: ItemHeader, path: Path) -> None:
        self.header = header
        self._path = path

    def chunks(self) -> Iterator[Buffer]:
        """Yield its content."""
        with open(self._path, "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
