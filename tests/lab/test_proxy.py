"""The proxy passes everything on until it is told otherwise."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.lab.cluster import Cluster, wait_for
from tests.lab.proxy import Proxy


@pytest.fixture
def proxy(shared_cluster: Cluster) -> Iterator[Proxy]:
    """A proxy in front of a server's Unix socket."""
    with Proxy(shared_cluster.socket_directory / f".s.PGSQL.{shared_cluster.port}") as proxy:
        yield proxy


def connect(proxy: Proxy) -> psycopg.Connection[tuple[object, ...]]:
    """Return a connection through *proxy*."""
    return psycopg.connect(host="127.0.0.1", port=proxy.port, dbname="postgres", user="postgres", autocommit=True)


def test_passes_everything_on(proxy: Proxy) -> None:
    """A megabyte comes through the proxy whole, and is counted."""
    with connect(proxy) as connection:
        row = connection.execute("SELECT repeat('x', 1000000)").fetchone()
        assert row == ("x" * 1_000_000,)
    assert proxy.bytes_to_client > 1_000_000
    assert proxy.connections == 1


def test_cut_ends_connections_and_takes_new_ones(proxy: Proxy) -> None:
    """A cut connection is dead at once; the next one works."""
    connection = connect(proxy)
    proxy.cut()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with connect(proxy) as connection:
        connection.execute("SELECT 1")


def test_cuts_after_so_many_bytes(proxy: Proxy) -> None:
    """The connection dies in the middle of a result, at the byte that was said, once."""
    with connect(proxy) as connection:
        passed = proxy.bytes_to_client
        proxy.cut_after(300_000)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT repeat('x', 1000000)")
    assert proxy.bytes_to_client == passed + 300_000
    with connect(proxy) as connection:
        connection.execute("SELECT repeat('x', 1000000)")


def test_stall_and_resume(proxy: Proxy) -> None:
    """While it is stalled nothing arrives and nothing breaks; after that everything arrives."""
    answer: list[object] = []
    with connect(proxy) as connection:
        proxy.stall()
        asking = threading.Thread(target=lambda: answer.append(connection.execute("SELECT 1").fetchone()))
        asking.start()
        asking.join(0.2)
        assert asking.is_alive()
        proxy.resume()
        asking.join(10)
    assert answer == [(1,)]


def test_refuses(proxy: Proxy) -> None:
    """A refusing proxy lets nobody in until it is told to resume."""
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        connect(proxy)
    proxy.resume()
    connect(proxy).close()


def test_a_dead_server_is_passed_on() -> None:
    """A client of a target that does not listen is reset, and the proxy lives on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    with Proxy(address) as proxy:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", proxy.port)) as client, pytest.raises(ConnectionResetError):
                client.recv(1)
        wait_for(lambda: proxy.connections == 2, "both were taken")
