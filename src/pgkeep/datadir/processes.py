"""The processes of this host, as ``/proc`` shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_SERVER_NAMES = frozenset({"postgres", "postmaster"})
_INTERPRETERS = ("python", "pypy", "sh", "bash", "dash", "perl", "ruby")


@dataclass(frozen=True, slots=True)
class Process:
    """
    A process at the moment of the look.

    Attributes:
        pid: Its number.
        words: Its command line; a process may have put a title of its own in its place.
    """

    pid: int
    words: tuple[str, ...]

    @property
    def names(self) -> frozenset[str]:
        """What the program may be called: the file's own name, or that of the script that an interpreter runs."""
        if not self.words:
            return frozenset()
        first = os.path.basename(self.words[0]).rstrip(":")
        return frozenset({first, self._script if first.startswith(_INTERPRETERS) else first})

    @property
    def _script(self) -> str:
        """The name of the script or module that an interpreter runs; empty for a command on its command line."""
        for word in self.words[1:]:
            if word == "-c":
                return ""
            if not word.startswith("-"):
                path = Path(word)
                return path.parent.name if path.name == "__main__.py" else path.name
        return ""

    def option(self, *flags: str) -> str:
        """Return the value of the first of *flags* on the command line: ``-f VALUE`` or ``--file=VALUE``; or empty."""
        for index, word in enumerate(self.words):
            if word in flags:
                return self.words[index + 1] if index + 1 < len(self.words) else ""
            flag, found, value = word.partition("=")
            if found and flag in flags:
                return value
        return ""

    def variable(self, name: str) -> str:
        """Return a variable of its environment; empty when there is none, or when we may not know."""
        try:
            content = (_PROC / str(self.pid) / "environ").read_bytes()
        except OSError:
            return ""
        for entry in content.split(b"\0"):
            key, found, value = entry.partition(b"=")
            if found and os.fsdecode(key) == name:
                return os.fsdecode(value)
        return ""

    def path(self, text: str) -> Path:
        """Return *text*, a path on its command line, as an absolute path."""
        path = Path(text)
        if path.is_absolute():
            return path
        directory = self.working_directory
        return directory / path if directory is not None else path.absolute()

    @property
    def working_directory(self) -> Path | None:
        """Where it works; None when it is gone, or when we may not know."""
        try:
            return Path(os.readlink(_PROC / str(self.pid) / "cwd"))
        except OSError:
            return None

    def __str__(self) -> str:
        return f"process {self.pid}, {' '.join(self.words)[:120]}"


def all_processes() -> Iterator[Process]:
    """Yield every process that sees the files that we see; those of containers see others under the same names."""
    own = _mount_namespace(os.getpid())
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (process := read_process(int(entry.name))) is not None:
            namespace = _mount_namespace(process.pid)
            if not namespace or namespace == own:
                yield process


def running_data_directories() -> set[Path]:
    """Return the data directories in which servers run on this host, as far as we may look."""
    found = set()
    for process in all_processes():
        if process.names & _SERVER_NAMES:
            # A server's processes work in its data directory.
            directory = process.working_directory
            if directory is not None and (directory / "global/pg_control").exists():
                found.add(directory)
    return found


def read_process(pid: int) -> Process | None:
    """Return one process; None when it is gone, or a thread of the kernel."""
    try:
        content = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    words = tuple(os.fsdecode(word) for word in content.rstrip(b"\0").split(b"\0"))
    return Process(pid, words) if any(words) else None


def ancestors(pid: int) -> Iterator[Process]:
    """Yield the parent of process *pid*, its parent, and so on."""
    while (pid := _parent(pid)) > 1:
        process = read_process(pid)
        if process is None:
            return
        yield process


def own_unit() -> str:
    """Return the systemd service that we run in, whose end is that of whatever we start; empty for none."""
    try:
        return unit_in((_PROC / "self" / "cgroup").read_text(errors="replace"))
    except OSError:
        return ""


def unit_in(cgroup: str) -> str:
    """Return the service that the text of a ``cgroup`` file names; empty for none, such as in somebody's session."""
    for line in cgroup.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # Version 2 is hierarchy 0; version 1 has one of systemd's own.
        if hierarchy == "0" or controllers == "name=systemd":
            services = [part for part in path.split("/") if part.endswith(".service")]
            # Beneath a user's manager there are units of the user's own.
            return "" if any(part.startswith("user@") for part in services) else (services or [""])[-1]
    return ""


def _parent(pid: int) -> int:
    try:
        # The name in parentheses may hold anything, parentheses included; what follows the last one is plain.
        return int((_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _mount_namespace(pid: int) -> str:
    try:
        return os.readlink(_PROC / str(pid) / "ns" / "mnt")
    except OSError:
        return ""
