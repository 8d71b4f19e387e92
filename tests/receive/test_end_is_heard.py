"""Whoever is told to end, ends: no word is lost between two threads, and none waits for a server that says nothing."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgkeep.cli import receive
from pgkeep.jobs.receiving import service
from pgkeep.jobs.receiving.service import ReceiveRequest, ReceiveService
from pgkeep.jobs.receiving.ship import Shipper
from pgkeep.jobs.receiving.source import SourceOptions
from pgkeep.server.connection import ConnectionTarget
from pgkeep.vault.cluster_vault import ClusterVault
from tests.receive.small_spool import QUIET, SEGMENT, SYSTEM, small_archive, small_spool
from tests.receive.test_ending import Call, Service

SOON_SECONDS = 30


class StoppedBehindTheLook(threading.Event):
    """Is set, as another thread may set it, right after it was seen not to be; what ships is woken then, and once."""

    def __init__(self) -> None:
        super().__init__()
        self.wake = lambda: None
        self.looks = 0

    def is_set(self) -> bool:
        """Tell how it was before."""
        self.looks += 1
        before = super().is_set()
        if not before:
            self.set()
            self.wake()
        return before


def test_a_shipper_hears_a_stop_between_two_of_its_lines(tmp_path: Path) -> None:
    """Told to end after it has looked whether it should, it ends now, and not when its window is over."""
    with small_spool(tmp_path) as spool:
        shipper = Shipper(spool, small_archive(tmp_path), lambda: None, **QUIET)
        stop = StoppedBehindTheLook()
        stop.wake = shipper.wake
        thread = threading.Thread(target=shipper.run, args=(stop,), daemon=True)
        thread.start()
        thread.join(SOON_SECONDS)
        assert not thread.is_alive()
        assert stop.looks > 1


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection attempt without a time limit that nobody answers holds up neither the shipping nor the end."""
    monkeypatch.setattr(service, "_GOODBYE_SECONDS", 0.1)
    monkeypatch.setattr(service, "_LAST_SECONDS", 0.1)
    archive = small_archive(tmp_path)
    warnings: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as mute:
        target = ConnectionTarget(host="127.0.0.1", port=mute.getsockname()[1], connect_timeout_seconds=0)
        receiving = ReceiveService(
            ReceiveRequest(
                cluster=cast(ClusterVault, SimpleNamespace(directory=tmp_path, archive=archive)),
                options=SourceOptions(
                    target=target,
                    slot="slot",
                    allow_unbounded_slot=False,
                    system_identifier=SYSTEM,
                    segment_size=SEGMENT,
                ),
                spool_dir=tmp_path / "spool",
                spool_bytes=8 * SEGMENT,
                window_seconds=3600,
                compression_level=1,
            ),
            say=warnings.append,
            warn=warnings.append,
            streams=lambda: None,
            ended=lambda: None,
        )
        receiving.start()
        caller, _ = mute.accept()
        # It has said who it is, and waits for the answer.
        assert caller.recv(8)
        ending = threading.Thread(target=receiving.finish, daemon=True)
        ending.start()
        ending.join(SOON_SECONDS)
        assert not ending.is_alive()
        assert "the server does not answer: ending without waiting for it any longer" in warnings
        caller.close()
    # Whoever else has called is sent away now.
    receiving._receiving.join(SOON_SECONDS)
    assert not receiving._receiving.is_alive()
    receiving._spool.close()


def test_signals_are_for_the_thread_that_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are begun with the ending signals blocked, which the kernel then gives to the one that hears them."""
    seen: list[set[signal.Signals]] = []

    class Looking(Service):
        def start(self) -> None:
            seen.append(cast(set[signal.Signals], signal.pthread_sigmask(signal.SIG_BLOCK, [])))
            reception.end(signal.SIGTERM, None)

    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(receive, "ReceiveService", Looking)
    monkeypatch.setattr(receive, "_request", lambda *_: None)
    reception: Any = receive._Reception([Call()], ExitStack())  # type: ignore[list-item]
    try:
        reception.run()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert seen[0] >= {signal.SIGTERM, signal.SIGINT}
    assert not {signal.SIGTERM, signal.SIGINT} & set(signal.pthread_sigmask(signal.SIG_BLOCK, []))
