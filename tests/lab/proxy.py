"""A TCP proxy in front of a server, which can be cut, stalled, and told to fail after so many bytes."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BUFFER_BYTES = 64 * 1024
# Linger on, for no time: closing sends a reset, as a firewall or a dying host does.
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False, slots=True)
class _Pair:
    """The two ends of a connection, and how many of its two directions still flow."""

    client: socket.socket
    server: socket.socket
    directions: int = 2

    def reset(self) -> None:
        _reset(self.client)
        _reset(self.server)


class Proxy:
    """
    Passes connections to 127.0.0.1:``port`` on to a server.

    Attributes:
        port: Where clients connect to.
        connections: How many have been accepted.
        bytes_to_client: How many bytes have been passed on from the server.
        bytes_to_server: How many bytes have been passed on to the server.
    """

    def __init__(self, target: tuple[str, int] | Path) -> None:
        """Start to listen; *target* is a host and a port, or a Unix socket."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.bytes_to_client = 0
        self.bytes_to_server = 0
        self._state = threading.Lock()
        self._open: set[_Pair] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = False
        self._cut_at: int | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        with self._state:
            for pair in self._open:
                pair.reset()
        self._flowing.set()

    def cut_after(self, size_bytes: int) -> None:
        """Reset every connection once *size_bytes* more have gone to the clients; once."""
        with self._state:
            self._cut_at = self.bytes_to_client + size_bytes

    def redirect(self, target: tuple[str, int] | Path) -> None:
        """Reset every connection; new ones lead to *target*, as when an address moves to another server."""
        self._target = target
        self.cut()

    def refuse(self) -> None:
        """Reset every connection, and each new one at once, until `resume`."""
        self._refusing = True
        self.cut()

    def stall(self) -> None:
        """Keep connections open, and pass nothing on until `resume`, as when a network drops every packet."""
        self._flowing.clear()

    def resume(self) -> None:
        """End `stall` and `refuse`."""
        self._refusing = False
        self._flowing.set()

    def close(self) -> None:
        """Reset everything, listen no more, and wait for the threads."""
        self._closed = True
        # Closing a socket does not wake the thread that accepts on it; shutting it down does.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # Once nobody accepts, no connection is added behind the back of the cut.
        self._threads[0].join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._refusing or self._closed:
                _reset(client)
                continue
            try:
                server = self._connect()
            except OSError:
                _reset(client)
                continue
            pair = _Pair(client, server)
            with self._state:
                self._open.add(pair)
            self._spawn(self._pass_on, pair, server, client, "bytes_to_client")
            self._spawn(self._pass_on, pair, client, server, "bytes_to_server")

    def _connect(self) -> socket.socket:
        if isinstance(self._target, Path):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._target))
            return server
        return socket.create_connection(self._target)

    def _pass_on(self, pair: _Pair, source: socket.socket, target: socket.socket, counter: str) -> None:
        """Copy from *source* to *target* until one side ends; the other then learns of it in the same way."""
        try:
            while data := source.recv(_BUFFER_BYTES):
                self._flowing.wait()
                allowed = self._count(counter, len(data))
                target.sendall(data[:allowed])
                if allowed < len(data):
                    self.cut()
                    break
            else:
                target.shutdown(socket.SHUT_WR)
        except OSError:
            pair.reset()
        self._retire(pair)

    def _count(self, counter: str, size: int) -> int:
        """Count *size* more bytes; return how many of them may pass."""
        with self._state:
            if counter == "bytes_to_client" and self._cut_at is not None:
                left = self._cut_at - self.bytes_to_client
                if size > left:
                    self._cut_at = None
                    size = left
            setattr(self, counter, getattr(self, counter) + size)
            return size

    def _retire(self, pair: _Pair) -> None:
        """Close both ends when the second of their two directions is over."""
        with self._state:
            pair.directions -= 1
            if pair.directions == 0:
                self._open.discard(pair)
                pair.client.close()
                pair.server.close()


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # A thread may be waiting in recv: shutting down wakes it, and closing sends the reset.
        end.shutdown(socket.SHUT_RD)
    end.close()
