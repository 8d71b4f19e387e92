"""A signal ends ``pgkeep receive`` in order, at whatever line it arrives."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from types import FrameType
from typing import Any

import pytest

from pgkeep.cli import receive

STUCK_SECONDS = 20
WAITS_SECONDS = 0.5


class Service:
    """Receives for ever, and knows whether it was seen off."""

    has_ended = False

    def __init__(self, *_: object, **__: object) -> None:
        self.is_finished = False

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Note it."""
        self.is_finished = True


class Call:
    """Names a cluster."""

    cluster_name = "main"


def send() -> None:
    """Send SIGTERM to the main thread: a runner of tests has others, which have it not blocked and may sleep."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


class SignalAtLine:
    """Sends SIGTERM before the n-th line that it runs, those of the library included."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.came_late = False

    def send_late(self) -> None:
        """Send it now if that line has not come."""
        if self.left > 0:
            self.left, self.came_late = 0, True
            send()

    def __call__(self, _frame: FrameType, event: str, _argument: Any) -> SignalAtLine:
        """Count a line."""
        if event == "line":
            self.left -= 1
            if self.left == 0:
                send()
        return self


@pytest.fixture(autouse=True)
def _restored_signals() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in kept.items():
        signal.signal(number, handler)


def _stuck(_number: int, _frame: FrameType | None) -> None:
    raise AssertionError("the signal was lost")


def test_a_signal_is_heard_at_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost, and none meets a lock that the line it interrupts holds."""
    monkeypatch.setattr(receive, "ReceiveService", Service)
    monkeypatch.setattr(receive, "_request", lambda *_: None)
    signal.signal(signal.SIGALRM, _stuck)
    lines, is_over = 0, False
    while not is_over:
        lines += 1
        reception = receive._Reception([Call()], ExitStack())  # type: ignore[list-item]
        service: Any = reception._services["main"]
        signal.signal(signal.SIGTERM, reception.end)
        signal.setitimer(signal.ITIMER_REAL, STUCK_SECONDS)
        at = SignalAtLine(lines)
        # Where fewer lines are run than that, it waits already: there the signal finds it, too.
        late = threading.Timer(WAITS_SECONDS, at.send_late)
        late.start()
        before = sys.gettrace()
        sys.settrace(at)
        try:
            reception.run()
        finally:
            sys.settrace(before)
            late.cancel()
        is_over = at.came_late
        assert service.is_finished
    assert lines > 3
