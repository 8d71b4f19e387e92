"""Ends what a test started when the test's own process ends, whatever ends that."""

from __future__ import annotations

import signal
import subprocess


class Guardian:
    """
    Watches over processes until it is dismissed.

    It reads a pipe from this process, which closes even by kill -9; then it sends *how* to each of *pids*.
    """

    def __init__(self, *pids: int, how: signal.Signals) -> None:
        numbers = " ".join(map(str, pids))
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", f"cat >/dev/null; kill -{how.value} {numbers} 2>/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Let the processes live on."""
        self._watcher.kill()
        self._watcher.wait()
        assert self._watcher.stdin is not None
        self._watcher.stdin.close()
