"""
A bridge in Python: it drives ``pgkeep-backend`` as the File Daemon's plugin does, on real pipes and a real ring.

`PlainBridge` knows plain PTCOMM alone, written from its description and sharing no code with the backend; `Bridge` adds
pgkeep's extensions. Each keeps what a catalog would: names, attributes, digests of content.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab.server_user import server_user

BACKEND = (sys.executable, "-m", "pgkeep.bacula.backend")
SLOTS, SLOT_BYTES = 32, 1 << 20
WAIT_SECONDS = 60
MESSAGES = {b"A": "fatal", b"E": "error", b"Q": "job error", b"W": "warning", b"I": "info"}


class Ended(Exception):
    """The backend ended, or ended its operation with an error."""


@dataclass
class File:
    """One file of a job, as a catalog has it."""

    name: str
    stat: str = ""
    times: str = ""
    link: str = ""
    size: int = 0
    digest: str = ""
    content: bytes | None = None

    @property
    def kind(self) -> str:
        """The letter of STAT."""
        return self.stat.partition(" ")[0]

    @property
    def stated_size(self) -> int:
        """The size that was announced."""
        return int(self.stat.split(" ")[1])


@dataclass
class Job:
    """What came of one conversation."""

    files: dict[str, File] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    messages: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    config: dict[str, bytes] = field(default_factory=dict)
    plugin_objects: list[dict[str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    keep: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    stderr: str = ""
    status: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    max_rss_bytes: int = 0

    def said(self, kind: str) -> list[str]:
        """Return the messages of one kind."""
        return [text for what, text in self.messages if what == kind]


class PlainBridge:
    """A bridge of plain PTCOMM; as a context manager it ends the backend."""

    hello = "kubernetes 3"

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        keep: Callable[[str], bool] = lambda name: name.endswith(("_manifest.json", "backup_label")),
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.job = Job()
        self.keep_content = keep
        self.catalog: dict[str, File] = {}
        self.pid = 0
        self._begin = time.monotonic()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(environment or {})}
        env.pop("PGKEEP_CONFIG", None) if environment is None else None
        self.process = subprocess.Popen(
            BACKEND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=env,
            process_group=0,
            pass_fds=pass_fds,
            **server_user().popen_arguments(),
        )
        self.pid = self.process.pid
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._in = self.process.stdin.fileno()
        self._out = self.process.stdout.fileno()
        self._buffer = b""

    def __enter__(self) -> PlainBridge:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._reap()

    # Packets.

    def send(self, kind: str, payload: bytes = b"") -> None:
        """Send a packet."""
        data = b"%s%06d\n%s" % (kind.encode(), len(payload), payload)
        while data:
            data = data[os.write(self._in, data) :]

    def command(self, text: str) -> None:
        """Send a command."""
        self.send("C", text.encode() + b"\n")

    def raw(self, length: int) -> bytes:
        """Return so many bytes from the backend."""
        pieces = [self._buffer[:length]]
        self._buffer = self._buffer[length:]
        missing = length - len(pieces[0])
        deadline = time.monotonic() + WAIT_SECONDS
        while missing:
            if not select.select([self._out], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError("the backend said nothing for a minute")
            piece = os.read(self._out, max(missing, 65536))
            if not piece:
                raise Ended("the backend closed the conversation")
            pieces.append(piece[:missing])
            self._buffer += piece[missing:]
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def receive(self) -> tuple[str, bytes]:
        """Return the next packet that is no message; raise Ended for an E or A."""
        while True:
            header = self.raw(8)
            assert header[1:7].isdigit(), header
            assert header[7:] == b"\n", header
            payload = self.raw(int(header[1:7]))
            kind = header[:1]
            if kind in MESSAGES:
                self.job.messages.append((MESSAGES[kind], payload.decode().rstrip("\n")))
                if kind in (b"A", b"E"):
                    raise Ended(payload.decode())
            elif not self.handle(kind.decode(), payload):
                return kind.decode(), payload

    def handle(self, kind: str, payload: bytes) -> bool:
        """Deal with a packet that may come anywhere; tell whether it was one."""
        assert kind in "CDFT", f"plain PTCOMM has no packet {kind}"
        return False

    def expect(self, kind: str) -> bytes:
        """Return the payload of the packet that must come next."""
        found, payload = self.receive()
        assert found == kind, (kind, found, payload[:200])
        return payload

    # The opening.

    def open(self, job: Mapping[str, str], words: str, start: str) -> None:
        """Say everything up to the start command, and take its answer."""
        self.command(f"Hello {self.hello}")
        assert self.expect("C") == b"Hello Bacula\n"
        self.command("Job")
        for key, value in {**self.job_keys(), **job}.items():
            self.command(f"{key}={value}")
        self.send("F")
        self.expect("F")
        self.command("Params")
        for word in words.split():
            self.command(word)
        self.send("F")
        self.expect("F")
        self.command(start)
        self.expect("F")

    def job_keys(self) -> dict[str, str]:
        """Return the keys that this bridge adds."""
        return {
            "Namespace": "@kubernetes",
            "WorkingDir": "/tmp",
            "SysconfigPath": "/etc/bacula/",
            "ExePath": "/usr/sbin/",
        }

    # Verbs.

    def backup(self, job: Mapping[str, str], words: str, *, at: Callable[[str], None] = lambda name: None) -> Job:
        """Make a backup; *at* is called with the name of each file before its content is read."""
        self.open({"Type": "B", "Level": "F", "JobID": "1", **job}, words, "BackupStart")
        for kind, payload in self._packets_until_end():
            assert kind == "C", (kind, payload[:200])
            self._backup_command(payload.decode().rstrip("\n"), at)
        return self.finish()

    def estimate(self, job: Mapping[str, str], words: str, start: str = "EstimateStart") -> Job:
        """Take a list of files."""
        self.open({"Type": "E", "JobID": "0", "Name": "-Console-.2026-11-20_21.56.39_04", **job}, words, start)
        for kind, payload in self._packets_until_end():
            text = payload.decode().rstrip("\n")
            assert kind == "C", (kind, text)
            assert text.startswith("FNAME:"), text
            self._attributes(File(text.removeprefix("FNAME:")))
        return self.finish()

    def query(self, words: str, name: str) -> Job:
        """Ask a question."""
        job = {"Type": "E", "JobID": "0", "Name": "-Console-.2026-11-20_21.56.39_04"}
        self.open(job, f"{words} query={name}", "QueryStart")
        for kind, payload in self._packets_until_end():
            assert kind in "CD"
            self.job.lines += payload.decode().rstrip("\n").split("\n")
        self._note_memory()
        self.send("T")
        self._reap()
        return self.job

    def finish(self) -> Job:
        """End the conversation in order."""
        self.command("END")
        self.expect("F")
        self._note_memory()
        self.send("T")
        self._reap()
        return self.job

    def _packets_until_end(self) -> Iterator[tuple[str, bytes]]:
        while True:
            kind, payload = self.receive()
            if kind == "F":
                return
            yield kind, payload

    def _backup_command(self, text: str, at: Callable[[str], None]) -> None:
        word, _, rest = text.partition(":")
        if word == "FNAME":
            self._file(File(rest), at)
        elif word == "RESTOREOBJ":
            length = self.expect("C").decode()
            content = b"".join(payload for _, payload in self._packets_until_end())
            assert length == f"RESTOREOBJ_LEN:{len(content)}\n"
            self.job.objects[rest] = content
        elif word == "PLUGINOBJ":
            found = {"path": rest}
            for kind, payload in self._packets_until_end():
                assert kind == "C"
                key, _, value = payload.decode().rstrip("\n").partition(":")
                found[key.removeprefix("PLUGINOBJ_").lower()] = value
            self.job.plugin_objects.append(found)
        elif word == "FileIndex":
            self.command(str(len(self.job.order)))
        elif word == "CHECKGET":
            self._answer_checkget(rest)
        else:
            self.other_command(word, rest)

    def other_command(self, word: str, rest: str) -> None:
        """Deal with a command that plain PTCOMM does not have."""
        raise AssertionError(f"plain PTCOMM has no command {word}:{rest}")

    def _answer_checkget(self, name: str) -> None:
        self.job.asked.append(name)
        found = self.catalog.get(name)
        if found is None:
            self.command("UNAVAIL")
        else:
            self.command(f"STAT:X{found.stat[1:]}")
            self.command(f"TSTAMP:{found.times}")

    def _attributes(self, file: File) -> None:
        for kind, payload in self._packets_until_end():
            assert kind == "C"
            word, _, value = payload.decode().rstrip("\n").partition(":")
            name = {"STAT": "stat", "TSTAMP": "times", "LSTAT": "link"}[word]
            setattr(file, name, value)
        assert file.stat
        assert file.name not in self.job.files, f"{file.name} came twice"
        assert file.name.endswith("/") == (file.kind == "D")
        self.job.files[file.name] = file
        self.job.order.append(file.name)

    def _file(self, file: File, at: Callable[[str], None]) -> None:
        self._attributes(file)
        at(file.name)
        kind, payload = self.receive()
        if kind == "F":
            return
        assert (kind, payload) == ("C", b"DATA\n"), (kind, payload)
        digest = hashlib.md5()
        pieces: list[bytes] = []
        for piece in self.data():
            digest.update(piece)
            file.size += len(piece)
            if self.keep_content(file.name):
                pieces.append(bytes(piece))
        file.digest = digest.hexdigest()
        file.content = b"".join(pieces) if self.keep_content(file.name) else None

    def data(self) -> Iterator[bytes | memoryview]:
        """Yield file data to its end."""
        for kind, payload in self._packets_until_end():
            assert kind == "D", (kind, payload[:200])
            assert payload, "a D packet without a payload"
            yield payload

    def cancel(self, *, signal_number: int = signal.SIGTERM) -> float:
        """End the backend as a cancelled job does; return how long it took."""
        begin = time.monotonic()
        os.killpg(self.pid, signal_number)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(WAIT_SECONDS)
        taken = time.monotonic() - begin
        self._reap()
        return taken

    def _note_memory(self) -> None:
        """Note the backend's peak memory; ru_maxrss would be that of this process, if that is larger."""
        with contextlib.suppress(OSError):
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
            self.job.max_rss_bytes = int(peak[1]) * 1024 if peak else 0

    def _reap(self) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        if self.process.stderr is None or self.process.stderr.closed:
            return
        self.job.stderr = self.process.stderr.read().decode()
        if self.process.returncode is None:
            _, status, usage = os.wait4(self.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.job.cpu_seconds = usage.ru_utime + usage.ru_stime
        self.job.status = self.process.returncode
        self.job.seconds = time.monotonic() - self._begin
        self.process.stderr.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Bridge(PlainBridge):
    """pgkeep's own bridge: API 1001, with a ring unless that is declined."""

    hello = "pgkeep 1001"

    def __init__(self, *, ring: bool = True, copy: bool = True, **more: Any) -> None:
        self._ring_fd = os.memfd_create("ring") if ring else -1
        self._ring: mmap.mmap | None = None
        self.heartbeats = 0
        self.copies = copy
        if ring:
            os.ftruncate(self._ring_fd, SLOTS * SLOT_BYTES)
            self._ring = mmap.mmap(self._ring_fd, SLOTS * SLOT_BYTES)
            more["pass_fds"] = (self._ring_fd,)
        super().__init__(**more)

    def job_keys(self) -> dict[str, str]:
        keys = {"FDName": "lab-fd", "ClientName": "lab-fd", "FDVersion": "15.0.3", "WorkingDir": "/tmp", "Lines": "1 1"}
        if self._ring is not None:
            keys["Ring"] = f"{self._ring_fd} {SLOTS} {SLOT_BYTES}"
        return keys

    def handle(self, kind: str, payload: bytes) -> bool:
        assert kind in "CDFTHM", kind
        self.heartbeats += kind == "H"
        return kind == "H"

    def other_command(self, word: str, rest: str) -> None:
        if word == "CONFIGOBJ":
            self.job.config[rest] = b"".join(bytes(piece) for piece in self.data())
        elif word == "SEEN":
            names = b"".join(bytes(piece) for piece in self.data())
            assert names.endswith(b"\0")
            self.job.seen |= set(names.decode().split("\0")[:-1])
        elif word == "KEEP":
            self.job.keep.append(rest)
        else:
            raise AssertionError(f"no such command: {word}:{rest}")

    def data(self) -> Iterator[bytes | memoryview]:
        for kind, payload in self._packets_until_end():
            if kind == "D":
                yield payload
                continue
            assert kind == "M", (kind, payload)
            assert self._ring is not None
            slot, length = (int(word) for word in payload.split())
            start = slot * SLOT_BYTES
            yield memoryview(self._ring)[start : start + length] if self.copies else memoryview(b"")
            self.send("K", b"%d\n" % slot)

    def __exit__(self, *arguments: object) -> None:
        super().__exit__(*arguments)
        if self._ring_fd >= 0:
            os.close(self._ring_fd)
            self._ring_fd = -1
