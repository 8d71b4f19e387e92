"""bconsole, driven line by line as somebody sitting before it would."""

from __future__ import annotations

import os
import pty
import re
import selectors
import signal
import subprocess
import termios
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

# The last line of an answer after which the console waits: its own prompt, the file selection's, or a question.
PROMPT = re.compile(r"(?:^\*|^\$ ?|[:?)] ?)\Z", re.MULTILINE)
# A line of a report may end like a question; the console has more to say then, and says it without a pause.
QUIET_SECONDS = 0.2
_MOMENT_SECONDS = 0.01
TIMEOUT_SECONDS = 200


class Console:
    """
    One session; ``ask`` sends a line and returns what came until the console waits for the next one.

    It sits at a terminal of its own, without echo: through pipes bconsole would not show its prompts.

    Attributes:
        transcript: What was printed, with the lines that were typed where they were typed.
        greeting: What it said first.
    """

    def __init__(self, command: list[str], *, env: dict[str, str], **popen_arguments: Any) -> None:
        """Start *command* and wait for its first prompt."""
        self.transcript = ""
        self._terminal, theirs = pty.openpty()
        _make_quiet(theirs)
        try:
            self._process = subprocess.Popen(
                command, env=env, cwd="/", stdin=theirs, stdout=theirs, stderr=theirs, **popen_arguments
            )
        finally:
            os.close(theirs)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._terminal, selectors.EVENT_READ)
        self.greeting = self._read(TIMEOUT_SECONDS)

    def ask(self, line: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
        """Type *line*; return the answer, with the prompt that ends it."""
        # What came behind a prompt, such as news of a job, is no answer to what is asked now.
        while self._selector.select(0) and (late := self._receive()):
            self.transcript += late
        self.transcript += f"{line}\n"
        os.write(self._terminal, f"{line}\n".encode())
        return self._read(timeout_seconds)

    def ask_all(self, lines: Iterable[str]) -> str:
        """Type *lines*, each when the console waits for it; return all the answers."""
        return "".join([self.ask(line) for line in lines])

    def close(self) -> None:
        """End the session."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        os.close(self._terminal)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, timeout_seconds: float) -> str:
        """Return what comes until the console waits for a line, or ends."""
        answer = ""
        deadline = time.monotonic() + timeout_seconds
        while True:
            asks = PROMPT.search(answer) is not None
            # Unless it is the beginning of a line of stars.
            if asks and answer.endswith("\n*") and not self._selector.select(_MOMENT_SECONDS):
                break
            patience = QUIET_SECONDS if asks else deadline - time.monotonic()
            if patience <= 0 or not self._selector.select(patience):
                if asks:
                    break
                raise TimeoutError(f"bconsole did not come back after {timeout_seconds} s\n{answer[-4000:]}")
            chunk = self._receive()
            if not chunk:
                break
            answer += chunk
        self.transcript += answer
        return answer

    def _receive(self) -> str:
        """Return what is there; empty when the console has ended."""
        try:
            chunk = os.read(self._terminal, 65536)
        except OSError:
            # Linux says so when nobody has the other side open any more.
            return ""
        return chunk.decode(errors="replace").replace("\r\n", "\n")


def _make_quiet(terminal: int) -> None:
    """No echo, and no end of the line at 4096 characters."""
    attributes = termios.tcgetattr(terminal)
    attributes[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
