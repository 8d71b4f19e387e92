"""What a pooler does to a connection, as far as a client can see it: the server process is not the one promised."""

from __future__ import annotations

import contextlib
import socket
import threading

_KEY_DATA = b"K\x00\x00\x00\x0c"


class FakePooler:
    """A proxy to 127.0.0.1:``port`` that promises clients a process of its own."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> FakePooler:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            with_shutdown(one)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [client, server]
            for source, target in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=(source, target), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                at = data.find(_KEY_DATA)
                if at >= 0:
                    start = at + len(_KEY_DATA)
                    data = data[:start] + (4711).to_bytes(4, "big") + data[start + 4 :]
                target.sendall(data)
        except OSError:
            pass
        with_shutdown(target)


def with_shutdown(one: socket.socket) -> None:
    """Close *one*, and wake whoever waits for it."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
