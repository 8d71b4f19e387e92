"""
A resident process that answers ``pgkeep-wal``, so that archiving and replay do not pay for an interpreter's start.

There is one service per user and set of options. The Python command starts it when it finds none, and it ends when it
has been idle for a while. Nothing depends on it: when it is not there, is of another version, or dies, the client runs
the Python command, which does the same work. It knows nothing that it does not look up again: what it says of the
archive it has just seen there.

Killing it at any moment is safe and is how it is stopped. A file being archived has no name until it is durable; a file
being delivered gets its name from the client; the lock that keeps a second service away goes with the process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import pgkeep
from pgkeep.errors import FormatError, PgkeepError
from pgkeep.jobs.archive.get import check_request, failure_status, find_held
from pgkeep.jobs.archive.push import check_cluster, ready_files
from pgkeep.jobs.archive.service_socket import ServiceConnection, ServiceRuns, listen
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.jobs.archive.wal_prefetch import AHEAD_BYTES, NoUnnamedFiles, WalPrefetch
from pgkeep.jobs.archive.wal_pusher import WalPusher
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.vault.wal_archive import CLUSTER_FILE, WalArchive
from pgkeep.wire.archive_packets import Answer, Operation, Request, Result

DEFAULT_IDLE_SECONDS = 600.0
PREFETCH_IDLE_SECONDS = 30.0
AHEAD = 16

_TICK_SECONDS = 1.0
_LOOK_SECONDS = 10.0


class ArchiveService:
    """
    Answers the client on a Unix socket, from the moment of its making until it is closed.

    Args:
        archive: The cluster's WAL archive.
        socket_path: Where to listen; its directory is made, for this user only, when it is missing.
        operations: What it does; the rest is declined.
        plan_path: The restore plan that every get obeys; read again when it changes.
        compression_level: Of zstd, for pushes.
        workers: How many files to push at once.
        ahead: How many files that wait for archiving are pushed before the server asks.
        prefetch_bytes: Most that lies ready for a replaying server; 0 fetches nothing ahead.
        watched: Files that make this service outdated when they change, beside those of the program and the cluster.
        client_uid: A user who is answered although this process is another's, as when root restores for ``postgres``.

    Raises:
        ServiceRuns: There is one already.
    """

    def __init__(
        self,
        archive: WalArchive,
        socket_path: Path,
        *,
        operations: Iterable[Operation] = tuple(Operation),
        plan_path: Path | None = None,
        compression_level: int = 1,
        workers: int = 2,
        ahead: int = AHEAD,
        prefetch_bytes: int = AHEAD_BYTES,
        watched: Iterable[Path] = (),
        client_uid: int | None = None,
    ) -> None:
        self._archive = archive
        self._socket_path = socket_path
        self._operations = frozenset(operations)
        self._plan_path = plan_path
        self._ahead = ahead
        self._allowed_uids = {os.geteuid()} | ({client_uid} if client_uid is not None else set())
        own = (Path(pgkeep.__file__), Path(__file__), archive.root.parent / CLUSTER_FILE)
        self._watched = {path: _file_identity(path) for path in (*own, *watched)}
        self._connections: set[ServiceConnection] = set()
        self._lock = threading.Lock()
        self._last_request = time.monotonic()
        self._stopping = False
        with contextlib.ExitStack() as stack:
            self._listener = listen(socket_path, stack, client_uid)
            self._wake_reader, self._wake_writer = socket.socketpair()
            stack.callback(self._wake_reader.close)
            stack.callback(self._wake_writer.close)
            self._pusher = WalPusher(archive, workers=workers, compression_level=compression_level)
            stack.callback(self._pusher.close)
            self._prefetch = WalPrefetch(archive, ahead_bytes=prefetch_bytes)
            stack.callback(self._prefetch.close)
            self._resources = stack.pop_all()

    def serve(self, *, idle_timeout_seconds: float | None = None) -> None:
        """Answer until ``stop`` is called, the program changes, or nobody has asked for *idle_timeout_seconds*."""
        next_look = 0.0
        while not self._stopping:
            readable, _, _ = select.select([self._listener, self._wake_reader], [], [], _TICK_SECONDS)
            if self._listener in readable:
                # The client may be gone again before it is accepted.
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    self._accept()
            with self._lock:
                busy = list(self._connections)
                idle = 0.0 if busy else time.monotonic() - self._last_request
            for connection in busy:
                connection.keep_alive()
            if idle > PREFETCH_IDLE_SECONDS:
                self._prefetch.drop()
            if idle_timeout_seconds is not None and idle > idle_timeout_seconds:
                break
            if idle and time.monotonic() > next_look:
                next_look = time.monotonic() + _LOOK_SECONDS
                if self._is_outdated():
                    break

    def stop(self) -> None:
        """Make ``serve`` return; called from any thread."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x")

    def close(self) -> None:
        """Stop listening, wait for what is being answered, and free everything."""
        self.stop()
        self._listener.close()
        with self._lock:
            threads = [connection.thread for connection in self._connections]
        for thread in threads:
            thread.join()
        self._resources.close()

    def __enter__(self) -> ArchiveService:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        connection = ServiceConnection(accepted, self._converse)
        if connection.peer_uid not in self._allowed_uids:
            connection.close()
            return
        with self._lock:
            self._connections.add(connection)
            self._last_request = time.monotonic()
        connection.thread.start()

    def _converse(self, connection: ServiceConnection) -> None:
        try:
            # Whoever hangs up has taken the matter into their own hands.
            with contextlib.suppress(OSError, FormatError):
                request = connection.receive()
                self._answer(connection, request)
        finally:
            with self._lock:
                self._connections.discard(connection)
                self._last_request = time.monotonic()
            connection.close()

    def _answer(self, connection: ServiceConnection, request: Request) -> None:
        if self._is_outdated():
            self.stop()
            connection.send(Answer(Result.DECLINED, message="the archive service is outdated"))
            return
        if request.operation not in self._operations:
            connection.send(Answer(Result.DECLINED, message="the archive service does not do that"))
            return
        is_get = request.operation is Operation.GET
        try:
            path = Path(request.working_directory, request.path)
            if is_get:
                self._get(connection, request.name, path)
            else:
                self._push(connection, path)
        except NoUnnamedFiles:
            connection.send(Answer(Result.DECLINED, message="the target's file system has no unnamed files"))
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - the client must hear of it, whatever it is
            status = failure_status(error) if is_get else getattr(error, "exit_status", PgkeepError.exit_status)
            connection.send(Answer(Result.FAILED, status, _message_of(error)))

    def _push(self, connection: ServiceConnection, path: Path) -> None:
        check_cluster(self._archive, path)
        if 2 * self._pusher.waiting_ahead <= self._ahead:
            self._pusher.submit_ahead(ready_files(path)[: self._ahead])
        self._pusher.push(path)
        connection.send(Answer(Result.DONE))

    def _get(self, connection: ServiceConnection, name: str, target: Path) -> None:
        plan = None if self._plan_path is None else WalPlan.read(self._plan_path)
        check_request(self._archive, target, plan)

        def deliver(held_name: str) -> bool:
            fetched = self._prefetch.fetch(held_name, target)
            if fetched is None:
                return False
            self._prefetch.fetch_ahead_of(held_name, target)
            try:
                connection.send_file(fetched.fd)
            finally:
                fetched.close()
            return True

        if not find_held(self._archive, name, plan, deliver):
            connection.send(Answer(Result.ABSENT))

    def _is_outdated(self) -> bool:
        return any(_file_identity(path) != identity for path, identity in self._watched.items())


def service_command(
    archive: WalArchive,
    socket_path: Path,
    *,
    plan_path: Path | None = None,
    compression_level: int = 1,
    workers: int = 2,
    idle_timeout_seconds: float = DEFAULT_IDLE_SECONDS,
    watched: Iterable[Path] = (),
) -> list[str]:
    """Return the command that runs a service with these properties; see ``ArchiveService``."""
    command = [sys.executable, "-P", "-m", "pgkeep.jobs.archive.service", f"--socket={socket_path.absolute()}"]
    command += [f"--archive={archive.root}", f"--system-identifier={int(archive.system_identifier)}"]
    command += [f"--segment-size={archive.segment_size}", f"--compression-level={compression_level}"]
    command += [f"--workers={workers}", f"--idle-timeout={idle_timeout_seconds}"]
    command += [f"--watch={path.absolute()}" for path in watched]
    if plan_path is not None:
        command.append(f"--plan={plan_path.absolute()}")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a service until it has nothing to do; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pgkeep.jobs.archive.service")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--system-identifier", type=int, required=True)
    parser.add_argument("--segment-size", type=int, required=True)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--compression-level", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--idle-timeout", type=float, default=DEFAULT_IDLE_SECONDS)
    parser.add_argument("--watch", type=Path, action="append", default=[])
    options = parser.parse_args(arguments)
    os.umask(0o077)
    archive = WalArchive(
        options.archive,
        system_identifier=SystemIdentifier(options.system_identifier),
        segment_size=options.segment_size,
    )
    try:
        service = ArchiveService(
            archive,
            options.socket,
            plan_path=options.plan,
            compression_level=options.compression_level,
            workers=options.workers,
            watched=options.watch,
        )
    except ServiceRuns:
        return 0
    with service:
        service.serve(idle_timeout_seconds=options.idle_timeout)
    return 0


def _file_identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _message_of(error: Exception) -> str:
    if isinstance(error, PgkeepError):
        return f"{error.message}\nhint: {error.hint}" if error.hint else error.message
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
