"""
The audit file of a restore: every line that it said, with its time, for whoever asks afterwards what was done.

``restore-<id>.log`` in ``log_dir``, readable by its owner only. Where that cannot be written the restore directory
takes it. Lines that come before there is a place for them wait in memory; a restore that is refused in phase 1 has its
file in ``log_dir`` or nowhere.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pgkeep.errors import PgkeepError

AUDIT_NAME = re.compile(r"restore-[^/]+\.log")

Say = Callable[[str], None]


class AuditFile:
    """
    A voice that is written down: ``say`` and ``warn`` pass on what they are told, and keep it.

    Args:
        name: The restore's id.
        log_directory: Where the file belongs.
        say: Takes one line for the log.
        warn: Takes one warning.
    """

    def __init__(self, name: str, log_directory: Path, *, say: Say, warn: Say) -> None:
        """Look at nothing yet."""
        self.name = name
        self._log_directory = log_directory
        self._say = say
        self._warn = warn
        self._descriptor = -1
        self._waiting: list[str] = []
        self.path: Path | None = None

    def say(self, text: str) -> None:
        """Say one line, and keep it."""
        self.note(text)
        self._say(text)

    def warn(self, text: str) -> None:
        """Give one warning, and keep it."""
        self.note(f"warning: {text}")
        self._warn(text)

    def note(self, text: str) -> None:
        """Keep *text*, which is said elsewhere."""
        moment = f"{dt.datetime.now(dt.UTC):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
        for line in text.splitlines() or [""]:
            self._waiting.append(f"{moment} {line}\n")
        self._flush()

    def begin(self, fallback: Path | None) -> None:
        """Open the file, in *fallback* where ``log_dir`` cannot be written, and say where it is."""
        if self.path is not None:
            return
        problem = self._open(self._log_directory)
        if problem and fallback is not None and not self._open(fallback):
            self.say(f"audit file: {self.path}, since log_dir {self._log_directory} cannot be written: {problem}")
        elif not problem:
            self.say(f"audit file: {self.path}")
        elif fallback is not None:
            self.warn(f"no audit file: {self._log_directory}: {problem}")

    @contextlib.contextmanager
    def kept(self) -> Iterator[AuditFile]:
        """Keep the error that ends the block, and close the file behind it."""
        try:
            yield self
        except PgkeepError as error:
            self.note(f"error: {error.message}")
            if error.hint:
                self.note(f"hint: {error.hint}")
            raise
        except BaseException as error:
            self.note(f"ended by {type(error).__name__}")
            raise
        finally:
            if self.path is None and isinstance(sys.exc_info()[1], PgkeepError):
                self._open(self._log_directory)
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _open(self, directory: Path) -> str:
        """Open the file in *directory*; return what is in the way, empty when nothing is."""
        path = directory / f"restore-{self.name}.log"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            if directory == self._log_directory:
                directory.mkdir(mode=0o750, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            return error.strerror or type(error).__name__
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_nlink != 1:
            os.close(descriptor)
            return f"{path} is somebody else's"
        self._descriptor, self.path = descriptor, path
        self._flush()
        return ""

    def _flush(self) -> None:
        if self._descriptor < 0:
            return
        # A full disk of logs is no reason to lose a restore.
        with contextlib.suppress(OSError):
            os.write(self._descriptor, "".join(self._waiting).encode(errors="surrogateescape"))
        self._waiting.clear()
