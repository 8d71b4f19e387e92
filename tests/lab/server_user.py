"""The account that test servers run under: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.lab.memory import free_bytes

# What some clusters and their backups take, of several tests at once.
_ROOM_BYTES = 6 << 30


@dataclass(frozen=True, slots=True)
class ServerUser:
    """
    An account of this machine.

    Attributes:
        name: Login name.
        uid: User id.
        gid: Primary group id.
        is_self: Whether this process already runs under it, so that there is nothing to change.
    """

    name: str
    uid: int
    gid: int
    is_self: bool

    def popen_arguments(self) -> dict[str, Any]:
        """Return the arguments that make ``subprocess`` start a program under this account."""
        if self.is_self:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        timeout_seconds: float = 120,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* to its end under this account; an exit status other than 0 raises with its output."""
        result = subprocess.run(
            [str(word) for word in command],
            env=dict(env) if env is not None else None,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_seconds,
            check=False,
            **self.popen_arguments(),
        )
        if check and result.returncode != 0:
            raise RuntimeError(
                f"{' '.join(str(word) for word in command)}: status {result.returncode}\n{result.stdout}"
            )
        return result

    def own(self, path: Path) -> None:
        """Give *path*, and all that it holds, to this account."""
        if self.is_self:
            return
        os.chown(path, self.uid, self.gid, follow_symlinks=False)
        for directory, directories, files in os.walk(path):
            for name in directories + files:
                os.chown(os.path.join(directory, name), self.uid, self.gid, follow_symlinks=False)

    def can_reach(self, path: Path) -> bool:
        """Whether this account may enter every directory above *path*, and read *path*."""
        if self.is_self:
            return os.access(path, os.R_OK)
        path = path.resolve()
        if not all(self._may(directory, execute=True) for directory in path.parents):
            return False
        return self._may(path, execute=path.is_dir())

    def _may(self, path: Path, *, execute: bool) -> bool:
        status = path.stat()
        need = stat.S_IXOTH if execute else stat.S_IROTH
        if status.st_uid == self.uid:
            need <<= 6
        elif status.st_gid == self.gid:
            need <<= 3
        return bool(status.st_mode & need)


@cache
def server_user() -> ServerUser:
    """Return this process's own account, or for root: the one in PGKEEP_TEST_USER, or postgres, or nobody."""
    uid = os.geteuid()
    if uid != 0:
        return ServerUser(pwd.getpwuid(uid).pw_name, uid, os.getegid(), is_self=True)
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in (os.environ.get("PGKEEP_TEST_USER", ""), "postgres", "nobody"):
        if name in known:
            return ServerUser(name, known[name].pw_uid, known[name].pw_gid, is_self=False)
    raise RuntimeError(
        "root cannot run PostgreSQL, and there is no account postgres or nobody; name one in PGKEEP_TEST_USER"
    )


@contextmanager
def server_directory(parent: Path | None = None) -> Iterator[Path]:
    """
    Yield a new directory that belongs to the server's account and that everybody may enter; remove it at the end.

    It is in memory where that has room, which spares a test half of its time in the kernel. Its path is short: a Unix
    socket's path must fit in 107 bytes.
    """
    path = Path(tempfile.mkdtemp(prefix="pgk", dir=parent or _memory_with_room() or short_temporary_directory()))
    path.chmod(0o755)
    server_user().own(path)
    try:
        yield path
    finally:
        _release_shared_memory(path)
        shutil.rmtree(path, onerror=_let_me_in)


def _memory_with_room() -> Path | None:
    """Return a directory that is in memory and has room for some clusters; None where there is none."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and os.access(memory, os.W_OK) and free_bytes(memory) >= _ROOM_BYTES
    return memory if has_room else None


def _release_shared_memory(directory: Path) -> None:
    """Remove the segments that killed servers beneath *directory* have left: without data directory nobody would."""
    orphans = _shared_memory_without_users()
    for path in directory.rglob("postmaster.pid"):
        lines = path.read_text(errors="replace").splitlines()
        segment = lines[6].split()[-1:] if len(lines) > 6 else []
        if orphans.issuperset(segment):
            for identifier in segment:
                subprocess.run(["ipcrm", "--shmem-id", identifier], check=False)


def _shared_memory_without_users() -> set[str]:
    """Return the ids of the System V segments that no process has attached."""
    table = Path("/proc/sysvipc/shm")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return {row[1] for row in rows if row[6] == "0"}


def short_temporary_directory() -> Path:
    """Return the machine's directory for temporary files, or /tmp where that is too long for a socket's path."""
    path = Path(tempfile.gettempdir())
    return path if len(str(path)) < 40 and server_user().can_reach(path) else Path("/tmp")


def _let_me_in(function: object, path: str, _error: object) -> None:
    """A test may have taken away its own permission to delete; a vanished file is as good as a deleted one."""
    try:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass
