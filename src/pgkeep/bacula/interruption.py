"""
The end that somebody else decides: a signal, or the death of the bridge.

The main thread gets an exception wherever it is; what it holds (a session in backup mode, a child) ends as it leaves.
Should it not leave in time, because an exception was lost or a call does not return, the process ends by itself: what
the server did for it ends with its connections, and children die with their parent.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import queue
import select
import signal
import termios
import threading
from types import FrameType

from pgkeep.errors import JobCancelled

LEAVE_SECONDS = 8.0
"""How long the main thread may take to leave; the bridge waits a little longer before it kills."""

INSIST_SECONDS = 4.0
"""When it is told once more."""

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
_PAUSE_SECONDS = 0.1


class Interrupted(JobCancelled, KeyboardInterrupt):
    """
    A signal came.

    It is a KeyboardInterrupt too, since that is what makes psycopg cancel the query that it waits for: a server that
    makes a checkpoint for ``pg_backup_start`` would not notice that its client is gone.
    """


class Interruption:
    """
    Listens for the end, from ``begin`` to ``end``, in the main thread.

    Attributes:
        reason: Why the job is to end; empty as long as it is not.
        is_for_silence: Whether it was ``end_for``, after which the bridge still listens.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.reason = ""
        self.is_for_silence = False
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._is_over = threading.Event()
        self._is_leaving = threading.Event()
        self._has_raised = False
        self._insists = False
        # A handler may neither start a thread nor set an Event: the thread that it interrupts may be doing just that.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def begin(self) -> None:
        """Take the signals, and watch the bridge's ends of the pipes."""
        threading.Thread(target=self._see_to_it, name="end", daemon=True).start()
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in _SIGNALS:
            signal.signal(number, self._take_signal)
        threading.Thread(target=self._watch_pipes, name="pipes", daemon=True).start()

    def end_for(self, reason: str) -> None:
        """End the job from another thread, because nothing happens any more."""
        if not self.reason and not self._is_over.is_set():
            self.reason, self.is_for_silence = reason, True
            self._asked.put(None)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def leave(self) -> None:
        """Say that the exception has arrived and the main thread is on its way out."""
        self._is_leaving.set()

    def end(self) -> None:
        """Listen no more; later signals are without effect."""
        self._is_over.set()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _take_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what the interpreter calls
        if self._is_over.is_set() or self._is_leaving.is_set():
            return
        # Once is enough: what it holds is being let go, and must not be disturbed in that.
        if self._has_raised and not self._insists:
            return
        self._has_raised, self._insists = True, False
        if not self.reason:
            self.reason = "the daemon is gone" if number == signal.SIGHUP else "the job was cancelled"
            self._asked.put(None)
        raise Interrupted(self.reason)

    def _see_to_it(self) -> None:
        self._asked.get()
        # An exception raised in a place that swallows it (a destructor) is raised again.
        if self._is_over.wait(INSIST_SECONDS):
            return
        self._insists = True
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        if self._is_over.wait(LEAVE_SECONDS - INSIST_SECONDS):
            return
        os._exit(JobCancelled.exit_status)

    def _watch_pipes(self) -> None:
        poll = select.poll()
        poll.register(self._read_fd, 0)
        poll.register(self._write_fd, 0)
        while not self._is_over.is_set():
            if not poll.poll(1000):
                continue
            # What was sent before the end is read first: a T, mostly.
            if self._unread_bytes() == 0 or self._is_over.wait(2.0):
                break
        if not self._is_over.wait(_PAUSE_SECONDS) and not self.reason:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGHUP)

    def _unread_bytes(self) -> int:
        count = array.array("i", [0])
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._read_fd, termios.FIONREAD, count)
        return count[0]
