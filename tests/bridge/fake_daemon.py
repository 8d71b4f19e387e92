"""
The stand-in for the File Daemon, driven from here.

``bridge/tests/daemon.c`` loads the plugin, built with sanitizers or run under valgrind, and makes the daemon's calls;
``bridge/tests/backend.py`` is the backend, scripted by each test.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
BRIDGE = ROOT / "bridge"
BACKEND = BRIDGE / "tests" / "backend.py"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
WAIT_SECONDS = 120

SLOTS, SLOT_BYTES = 32, 1 << 20
"""The ring that the bridge makes."""

FATAL, ERROR, WARNING, INFO = 4, 5, 6, 7
COMMAND = "pgkeep: mode=pitr"

VARIABLES = {
    2: "lab-fd",
    5: "lab-client",
    6: "Nightly.2026-11-20_21.56.35_03",
    18: "15.0.3 (25 March 2025)",
    20: "",
    28: "/etc/bacula/",
}


def build(directory: Path, *, sanitized: bool) -> tuple[Path, Path]:
    """Return the plugin and the daemon, built in *directory*."""
    cc = shutil.which("cc")
    assert cc, "a C compiler is needed"
    care = ["-g", "-O1", *SANITIZERS] if sanitized else ["-g", "-O1"]
    plugin, daemon = directory / "pgkeep-fd.so", directory / "daemon"
    sources = sorted(map(str, BRIDGE.glob("*.c")))
    subprocess.run(
        [cc, *FLAGS, *care, "-shared", "-fPIC", "-fvisibility=hidden", "-o", plugin, *sources], check=True, timeout=300
    )
    subprocess.run(
        [cc, *FLAGS, *care, "-o", daemon, BRIDGE / "tests" / "daemon.c", "-ldl", "-lpthread"], check=True, timeout=300
    )
    return plugin, daemon


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class FakeDaemon:
    """
    One daemon, and one job in it.

    Args:
        directory: A new one, for everything.
        plugin: The built plugin.
        daemon: The built daemon.
        prefix: Program to run it under, with its options.
        settings: Lines of pgkeep-fd.conf beside those that every test needs.
        interface: The interface version that the daemon says it has.
    """

    def __init__(
        self,
        directory: Path,
        plugin: Path,
        daemon: Path,
        *,
        prefix: tuple[str, ...] = (),
        interface: int | None = None,
    ) -> None:
        self.directory = directory
        self.script = directory / "script"
        self.plugins = directory / "plugins"
        self.out = directory / "out"
        self.work = directory / "work"
        self.answers: list[list[str]] = []
        for path in (self.plugins, self.out, self.work):
            path.mkdir()
        # This very Python: what a path finds may be a script that adds to the environment.
        self.backend = directory / "backend"
        self.backend.write_text(f"#!{sys.executable}\n{BACKEND.read_text()}")
        self.backend.chmod(0o755)
        self.configure(f"backend = {self.backend}", f"config = {self.script}", "kill_after = 2", "timeout = 20")
        command = [*prefix, str(daemon), str(plugin), str(self.out), *([str(interface)] if interface else [])]
        environment = {
            **os.environ,
            "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "LD_LIBRARY_PATH": "/nowhere",
        }
        stderr = (directory / "stderr").open("wb")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
        )
        stderr.close()
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.loaded = self._next_line()
        self.information = self._next_line() if self.loaded[1] == "0" else []
        if not self.information:
            return
        for number, text in {
            **VARIABLES,
            13: str(self.work),
            14: str(self.plugins),
            17: f"{directory}/bin/",
        }.items():
            self.order("text", number, text)
        self.order("number", 1, 7)
        self.order("number", 4, ord("B"))
        self.order("number", 9, 0)
        self.order("new")
        self.order("event", 1, "JobId=7 Job=x")

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _next_line(self) -> list[str]:
        line = self._lines.get(timeout=WAIT_SECONDS)
        if line is None:
            status = self.process.wait(timeout=WAIT_SECONDS)
            raise AssertionError(f"the daemon ended with {status}: {(self.directory / 'stderr').read_text()}")
        words = line.rstrip("\n").split("\t")
        if words[0] == "message":
            self.answers.append(words)
            return self._next_line()
        return words

    def order(self, *words: object) -> list[list[str]]:
        """Give an order and return what was answered to it, messages apart."""
        assert self.process.stdin
        text = "\t".join(str(word).replace("%", "%25").replace("\t", "%09").replace("\n", "%0a") for word in words)
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        found = []
        while (answer := self._next_line())[0] != "done":
            found.append(answer)
            self.answers.append(answer)
        return found

    def configure(self, *lines: str) -> None:
        """Write pgkeep-fd.conf."""
        (self.plugins / "pgkeep-fd.conf").write_text("".join(f"{line}\n" for line in lines))

    def add_settings(self, *lines: str) -> None:
        """Add lines to pgkeep-fd.conf; each replaces the one with its key."""
        kept = {line.split("=")[0].strip(): line for line in (self.plugins / "pgkeep-fd.conf").read_text().splitlines()}
        kept.update({line.split("=")[0].strip(): line for line in lines})
        self.configure(*kept.values())

    def say(self, script: str) -> None:
        """Let the next backend do *script*."""
        self.script.write_text(textwrap.dedent(script))

    def backup(self, script: str, *, level: str = "F", command: str = COMMAND) -> None:
        """Run a whole backup job with one line."""
        self.say(script)
        self.order("value-event", 12, ord(level))
        self.order("event", 20, command)
        self.order("event", 3)
        self.order("backup", command)
        self.order("end-backup")

    def begin_restore(self, script: str) -> None:
        """Come to where the first file of a restore would."""
        self.say(script)
        self.order("number", 4, ord("R"))
        self.order("number", 24, ord("a"))
        self.order("text", 15, "/target")
        self.order("features")
        self.order("expected-end")
        self.order("event", 5)

    def restore_file(
        self,
        name: str,
        content: bytes | None = None,
        *,
        command: str = COMMAND,
        kind: int = 3,
        stream: int = 1,
        link: str = "",
        give_up_after: int = -1,
    ) -> list[list[str]]:
        """Bring one file."""
        path = self.directory / "content"
        if content is not None:
            path.write_bytes(content)
        size = len(content or b"")
        return self.order(
            "restore", command, kind, stream, name, link, size, path if content is not None else "-", give_up_after
        )

    def close(self) -> None:
        """Free the context, end the daemon, and look that it left no descriptor, memory, process or file."""
        if self.information:
            [freed] = self.order("free")
            assert freed == ["freed", self.loaded[2], "0"], "descriptors or memory of the daemon are left"
        assert self.process.stdin
        self.process.stdin.close()
        status = self.process.wait(timeout=WAIT_SECONDS)
        assert status == 0, f"{status}: {(self.directory / 'stderr').read_text()}"
        assert not list(self.work.iterdir())
        for pid in self.pids():
            # Without an init that reaps them, orphans stay as zombies.
            deadline = time.monotonic() + 5
            while _runs(pid):
                assert time.monotonic() < deadline, f"the process {pid} still runs"
                time.sleep(0.01)

    def kill(self) -> None:
        """End the daemon whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=WAIT_SECONDS)
        self._reader.join()
        assert self.process.stdin
        assert self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    @property
    def events(self) -> list[str]:
        """What the backends noted."""
        path = Path(f"{self.script}.events")
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []

    def await_event(self, text: str) -> None:
        """Wait until a backend noted *text*."""
        deadline = time.monotonic() + WAIT_SECONDS
        while text not in self.events:
            assert time.monotonic() < deadline, f"no {text!r} in {self.events}"
            time.sleep(0.01)

    def pids(self) -> list[int]:
        """Return the process numbers of all backends so far, and of what they noted as their own children."""
        return [int(line.split()[1]) for line in self.events if line.startswith(("pid ", "child "))]

    @property
    def seen(self) -> list[str]:
        """What the backends noted, without their numbers."""
        return [line for line in self.events if not line.startswith(("pid ", "child "))]

    @property
    def messages(self) -> list[tuple[int, str]]:
        """Type and text of each job message; every one begins with the prefix and ends with a newline."""
        found = []
        for words in self.answers:
            if words[0] == "message":
                assert words[2].startswith("pgkeep: "), words
                assert words[2].endswith("%0a"), words
                found.append((int(words[1]), words[2].removeprefix("pgkeep: ").removesuffix("%0a")))
        return found

    @property
    def files(self) -> list[list[str]]:
        """Number, type, name, link, size, uid, gid, mode, mtime, LinkFI and no_read of each file that was saved."""
        return [words[1:] for words in self.answers if words[0] == "file"]

    @property
    def saved(self) -> dict[str, bytes]:
        """Names and contents of the files that were saved."""
        return {
            words[2]: path.read_bytes() if (path := self.out / f"data-{words[0]}").exists() else b""
            for words in self.files
        }

    @property
    def status(self) -> str:
        """The job's status letter at its end."""
        return next(words[1] for words in reversed(self.answers) if words[0] in ("backup-ended", "restore-ended"))
