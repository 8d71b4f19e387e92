"""The socket of the archive service: who may listen at it, who may talk to it, and what goes over it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from pgkeep.errors import ArchiveError, PgkeepError
from pgkeep.wire.archive_packets import (
    REQUEST_HEAD_BYTES,
    WORKING,
    Answer,
    Request,
    Result,
    parse_request,
    text_length,
)

_REQUEST_SECONDS = 10.0
# struct ucred: pid, uid, gid
_PEER = struct.Struct("3i")


class ServiceRuns(PgkeepError):
    """Another service listens at the same socket."""


class ServiceConnection:
    """
    One client: its request, and the words back to it.

    Args:
        accepted: The connected socket; closed by ``close``.
        converse: What ``thread`` will run.
    """

    def __init__(self, accepted: socket.socket, converse: Callable[[ServiceConnection], None]) -> None:
        accepted.setblocking(True)
        accepted.settimeout(_REQUEST_SECONDS)
        self._socket = accepted
        self._sending = threading.Lock()
        self._is_answered = False
        _, self.peer_uid, self._peer_gid = _PEER.unpack(
            accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        )
        self.thread = threading.Thread(target=converse, args=(self,), name="wal-request", daemon=True)

    def receive(self) -> Request:
        """Return the client's request."""
        head = self._read(REQUEST_HEAD_BYTES)
        return parse_request(head, self._read(text_length(head)))

    def send(self, answer: Answer, files: Sequence[int] = ()) -> None:
        """Send the last word."""
        with self._sending:
            self._is_answered = True
            sent = socket.send_fds(self._socket, [answer.render()], list(files))
            self._socket.sendall(answer.render()[sent:])

    def send_file(self, fd: int) -> None:
        """Send the last word and the file *fd*, for the client to name."""
        if self.peer_uid != os.geteuid():
            os.fchown(fd, self.peer_uid, self._peer_gid)
        self.send(Answer(Result.DONE), [fd])

    def keep_alive(self) -> None:
        """Say that the work goes on."""
        with self._sending, contextlib.suppress(OSError):
            if not self._is_answered:
                self._socket.send(WORKING, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Hang up."""
        with self._sending:
            self._is_answered = True
            self._socket.close()

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                break
            data += piece
        return data


def start_service(socket_path: Path, command: Sequence[str]) -> subprocess.Popen[bytes] | None:
    """
    Start *command*, a service for *socket_path*, apart from this process; return None when there is one.

    It holds none of the caller's files open: the server waits for the end of its log's pipe.
    """
    if _is_locked(socket_path):
        return None
    return subprocess.Popen(
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=True,
        start_new_session=True,
    )


def listen(path: Path, stack: contextlib.ExitStack, client_uid: int | None) -> socket.socket:
    """Return a listening socket at *path*; the lock beside it is held until the process ends or *stack* is closed."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700)
    _check_directory(path.parent)
    lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ServiceRuns(f"an archive service listens at {path} already") from None
    # Under the lock a socket that is there can only be a dead service's.
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.callback(listener.close)
    listener.bind(str(path))
    stack.callback(_unlink, path)
    path.chmod(0o600)
    if client_uid is not None:
        os.chown(path, client_uid, -1)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def _check_directory(directory: Path) -> None:
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ArchiveError(
            f"{directory} is not a directory that only this user can write to",
            hint="remove it, or set PGKEEP_RUNTIME_DIR",
        )


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(_lock_path(path), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
