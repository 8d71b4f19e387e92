"""
The scratch directory of a drill: what is restored there is thrown away, whatever ends the drill.

It must be empty, or have the mark of an earlier drill, which names the very directory by its device and inode. While a
drill works there it holds a lock on the mark. One that was killed leaves mark, files and perhaps its server: the next
drill stops that server, which it knows by its private socket, and removes names that a drill makes, and no others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from pgkeep.datadir.beneath import Beneath
from pgkeep.datadir.durable import sync_directory
from pgkeep.datadir.instance import Instance, PrivateAccess, StopMode
from pgkeep.datadir.owner import Owner, refuse_foreign_links
from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.datadir.staging import staging_directory
from pgkeep.datadir.target import make_directories
from pgkeep.datadir.write_errors import write_errors
from pgkeep.errors import FormatError, RestoreRefused
from pgkeep.jobs.restoring.directory import SUFFIX, RestoreDirectory
from pgkeep.jobs.restoring.state import RestoreState
from pgkeep.pg.data_directory import CONTROL_FILE

MARK_FILE = "pgkeep-drill.json"
DATA, TABLESPACES = "data", "tablespaces"

_NAMES = frozenset({DATA, TABLESPACES, f"{DATA}{SUFFIX}", f"{DATA}{SUFFIX}.log", staging_directory(Path(DATA)).name})
_NOBODYS = frozenset({"lost+found"})
_MAX_MARK_BYTES = 4096
_REMOVALS = 20
_PAUSE_SECONDS = 0.25

Say = Callable[[str], None]


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a scratch directory is, by ``device:inode``, and which drill works there."""

    directory: str
    cluster: str
    began: str
    format: int = 1


class Scratch:
    """
    The scratch directory at *path*, which is absolute and need not exist.

    Attributes:
        path: Without links.
        data_directory: Where the cluster goes.
    """

    def __init__(self, path: Path) -> None:
        """Touch nothing; raise RestoreRefused where a link on the way leads root elsewhere."""
        refuse_foreign_links(path)
        self.path = Path(os.path.realpath(path))
        self.data_directory = self.path / DATA

    def tablespace(self, oid: int) -> Path:
        """Return where a tablespace goes."""
        return self.path / TABLESPACES / str(oid)

    def check_apart(self, others: Iterable[Path]) -> None:
        """Raise RestoreRefused when the directory is one of *others*, lies within one, or has one within it."""
        for above in (self.path, *self.path.parents):
            if os.path.lexists(above / CONTROL_FILE):
                raise RestoreRefused(
                    f"the scratch directory {self.path} lies in the data directory {above}", hint=_ELSEWHERE
                )
        for other in (Path(os.path.realpath(other)) for other in others):
            if self.path.is_relative_to(other) or other.is_relative_to(self.path):
                raise RestoreRefused(
                    f"the scratch directory {self.path} and {other} are not apart, expected a directory of its own",
                    hint=_ELSEWHERE,
                )

    @contextlib.contextmanager
    def held(self, *, cluster: str, began: str, owner: Owner | None, say: Say) -> Iterator[None]:
        """
        Hold the directory for one drill: it is emptied before the block, and after it whatever happens.

        Args:
            cluster: Whose drill it is, for people.
            began: When it began; ISO-8601.
            owner: Who runs the restored server; None for whoever runs pgkeep.
            say: Takes one line for the log.

        Raises:
            RestoreRefused: The directory is not empty and not a drill's, or another drill works there.
        """
        with write_errors(f"use the scratch directory {self.path}", again="run the drill again"):
            make_directories(self.path, None)
            if owner is not None and not set(os.listdir(self.path)) - _NOBODYS:
                # Through it, no more: only who owns the cluster beneath it gets into that.
                self.path.chmod(self.path.stat().st_mode | 0o011)
            descriptor = self._locked()
        try:
            if self._is_marked(descriptor):
                self._clear(say)
            with write_errors(f"mark the scratch directory {self.path}", again="run the drill again"):
                self._write_mark(descriptor, cluster, began)
            try:
                yield
            finally:
                self._clear(say=lambda _: None)
                # The mark goes last: what a kill leaves before that is known again.
                os.unlink(self.path / MARK_FILE)
        finally:
            os.close(descriptor)

    def _locked(self) -> int:
        """Return a descriptor of the mark, which this process holds from now on; it may be new, and empty."""
        mark = self.path / MARK_FILE
        others = sorted(set(os.listdir(self.path)) - _NOBODYS)
        if others and MARK_FILE not in others:
            raise self._foreign(others)
        descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The drill that held it may have removed it meanwhile.
            is_there = os.path.lexists(mark) and os.path.samestat(os.lstat(mark), os.fstat(descriptor))
        except BlockingIOError:
            is_there = False
        if not is_there:
            os.close(descriptor)
            raise RestoreRefused(
                f"another drill works in {self.path}", hint="wait for its end, or name another scratch directory"
            )
        return descriptor

    def _is_marked(self, descriptor: int) -> bool:
        """Tell whether a drill was killed here; raise RestoreRefused for a mark that is not that of this directory."""
        content = os.pread(descriptor, _MAX_MARK_BYTES, 0)
        names = set(os.listdir(self.path)) - _NOBODYS - {MARK_FILE}
        if not names:
            # A new one, or one that was killed while it wrote the mark: there is nothing to clear.
            return False
        try:
            mark = msgspec.json.decode(content, type=_Mark)
        except msgspec.MsgspecError:
            raise self._foreign(sorted(names)) from None
        if mark.directory != self._identity or os.fstat(descriptor).st_uid != os.geteuid() or names - _NAMES:
            raise self._foreign(sorted(names - _NAMES or names))
        return True

    def _write_mark(self, descriptor: int, cluster: str, began: str) -> None:
        mark = _Mark(directory=self._identity, cluster=cluster, began=began)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(mark) + b"\n", 0)
        os.fsync(descriptor)
        sync_directory(self.path)

    @property
    def _identity(self) -> str:
        status = os.stat(self.path)
        return f"{status.st_dev}:{status.st_ino}"

    def _foreign(self, names: list[str]) -> RestoreRefused:
        return RestoreRefused(
            f"the scratch directory {self.path} holds what no drill has left there: {', '.join(names[:3])}",
            hint="name an empty directory, or one that is yet to be made",
        )

    def _clear(self, say: Say) -> None:
        """Stop the server that a drill has started here, and remove everything but the mark."""
        state = self._state()
        # A server that is just being started takes its lock file first, and without the control file gets no further.
        # What the state knows of the server goes after the cluster: a kill in between is found out again.
        names = set(os.listdir(self.path)) & _NAMES
        with write_errors(f"empty the scratch directory {self.path}", again="run the drill again"):
            beneath = Beneath(self.path)
            try:
                self._check_server(state)
                if DATA in names:
                    beneath.remove_tree(f"{DATA}/{CONTROL_FILE}")
                self._stop_server(state)
                if state is not None and state.access:
                    PrivateAccess(Path(state.access)).remove()
                for name in sorted(names, key=lambda name: name.startswith(f"{DATA}{SUFFIX}")):
                    _remove(beneath, name)
            finally:
                beneath.close()
            sync_directory(self.path)
        if names:
            say(f"removed what a drill has left in {self.path}")

    def _state(self) -> RestoreState | None:
        # What is damaged, or not yet written, names no server.
        with contextlib.suppress(FormatError):
            return RestoreDirectory(self.data_directory).read()
        return None

    def _check_server(self, state: RestoreState | None) -> bool:
        """Tell whether the server of a drill runs here; raise RestoreRefused for another one."""
        postmaster = running_postmaster(self.data_directory) if self.data_directory.is_dir() else None
        if postmaster is None:
            return False
        if state is None or postmaster.socket_directory not in ("", state.access):
            raise RestoreRefused(
                f"a server runs in {self.data_directory} that no drill has started: process {postmaster.pid}",
                hint="stop it, and run the drill again",
            )
        return True

    def _stop_server(self, state: RestoreState | None) -> None:
        if self._check_server(state) and state is not None:
            Instance(self.data_directory, bin_directory=Path(state.bin_directory), log_path=state.log_path).stop(
                StopMode.IMMEDIATE
            )


_ELSEWHERE = "name an empty directory elsewhere, best on a disk of its own"


def _remove(beneath: Beneath, name: str) -> None:
    """Remove a tree in which processes of a server that was killed may write their last."""
    pause = threading.Event()
    for left in reversed(range(_REMOVALS)):
        try:
            beneath.remove_tree(name)
            return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or not left:
                raise
            pause.wait(_PAUSE_SECONDS)
