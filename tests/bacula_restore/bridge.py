"""
The restore half of the bridges: what a daemon sends when it restores jobs that the same bridges backed up.

`merge` does what Bacula's tree does: of a path that several jobs saved, the newest version is restored, and the files
come in the order of the jobs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bacula_backend.bridge import SLOT_BYTES, SLOTS, Bridge, Ended, File, Job, PlainBridge


@dataclass
class Restoring:
    """
    What is restored.

    Attributes:
        files: In the order in which they come; a path may come twice.
        objects: The restore objects, with the number of the job.
        failed: Names that the daemon gives up on, with the bytes that still come of them.
        stop_before: The name before which the daemon dies; empty for none.
    """

    files: list[File]
    objects: list[tuple[int, bytes]]
    failed: dict[str, int] = field(default_factory=dict)
    stop_before: str = ""

    def without(self, *names: str) -> Restoring:
        """Return the same without some files; each must be there."""
        assert set(names) <= {file.name for file in self.files}
        return dataclasses.replace(self, files=[file for file in self.files if file.name not in names])

    def only(self, *prefixes: str) -> Restoring:
        """Return the same with the files of some prefixes only."""
        return dataclasses.replace(self, files=[file for file in self.files if file.name.startswith(prefixes)])

    def with_file(self, name: str, /, **changes: Any) -> Restoring:
        """Return the same with another content, status or name of one file."""
        assert any(file.name == name for file in self.files), name
        return dataclasses.replace(
            self,
            files=[dataclasses.replace(file, **changes) if file.name == name else file for file in self.files],
        )

    def file(self, name: str) -> File:
        """Return one file."""
        [found] = [file for file in self.files if file.name == name]
        return found

    def first(self, prefix: str, *, larger_than: int = 0) -> File:
        """Return the first regular file below *prefix*."""
        return next(
            file
            for file in self.files
            if file.name.startswith(prefix) and file.kind == "F" and len(file.content or b"") > larger_than
        )


def merge(jobs: Sequence[Job]) -> Restoring:
    """Return what Bacula restores of *jobs*, oldest first."""
    newest = {name: number for number, job in enumerate(jobs) for name in job.order}
    files = [job.files[name] for number, job in enumerate(jobs) for name in job.order if newest[name] == number]
    objects = [(number + 1, content) for number, job in enumerate(jobs) for content in job.objects.values()]
    return Restoring(files, objects)


@dataclass
class Answer:
    """What came of one restore."""

    job: Job
    answers: dict[str, str]
    error: str = ""

    @property
    def phases(self) -> list[str]:
        """The lines of the phases."""
        return [line for line in self.job.said("info") if line.startswith("RESTORE PHASE")]


class PlainRestoreBridge(PlainBridge):
    """Plain PTCOMM."""

    def __init__(self, **more: Any) -> None:
        super().__init__(keep=lambda name: True, **more)
        self.answers: dict[str, str] = {}

    def restore(
        self,
        restoring: Restoring,
        words: str,
        *,
        where: str = "/",
        replace: str = "a",
        options: str = "",
        regex_where: str = "",
        name: str = "Restore.2026-11-20_22.00.00_09",
        more: Mapping[str, str] | None = None,
    ) -> Answer:
        """Restore everything, and return what the backend said; an error of its does not raise."""
        job = {"Type": "R", "Name": name, "JobID": "9", "Replace": replace}
        if regex_where:
            job["RegexWhere"] = regex_where
        else:
            job["Where"] = "" if where == "/" else where
        try:
            self._restore(restoring, {**job, **(more or {})}, words, "" if where == "/" else where, options)
        except Ended as ended:
            self._reap()
            return Answer(self.job, self.answers, str(ended))
        except BrokenPipeError:
            while True:
                try:
                    self.receive()
                except Ended as ended:
                    self._reap()
                    return Answer(self.job, self.answers, str(ended))
        return Answer(self.job, self.answers)

    def _restore(self, restoring: Restoring, job: Mapping[str, str], words: str, where: str, options: str) -> None:
        self.begin(job, words, options)
        for number, content in restoring.objects:
            self.send_object(number, content)
        self.announce(restoring)
        for file in restoring.files:
            if restoring.stop_before == file.name:
                assert self.process.stdin is not None
                self.process.stdin.close()
                self.process.wait()
                raise Ended("the daemon died")
            self.send_file(file, where + file.name, restoring.failed.get(file.name))
        self.command("FINISH")
        self.expect("F")
        self.finish()

    def begin(self, job: Mapping[str, str], words: str, options: str) -> None:
        """Say everything up to RestoreStart; a plain bridge mixes the menu's options among the line's words."""
        lines = [line for line in options.splitlines() if line and not line.startswith("#")]
        mixed = [line.replace('"', "") for line in lines]
        self.open(job, " ".join([words, *mixed]), "RestoreStart")

    def send_object(self, number: int, content: bytes) -> None:
        """Send a restore object."""
        self.command("RESTOREOBJ:pgkeep")
        self.command(f"RESTOREOBJ_LEN:{len(content)}")
        for offset in range(0, len(content), 500_000):
            self.send("D", content[offset : offset + 500_000])
        self.send("F")
        assert self.expect("C") == b"OK\n"

    def announce(self, restoring: Restoring) -> None:
        """Say what will come; plain PTCOMM cannot."""

    def send_file(self, file: File, name: str, cut: int | None) -> None:
        """Send one file."""
        self.command(f"FNAME:{name}")
        self.command(f"STAT:{file.stat} 0")
        self.command(f"TSTAMP:{file.times}")
        if file.link:
            self.command(f"LSTAT:{file.link}")
        self.send("F")
        answer = self.expect("C").decode().rstrip("\n")
        self.answers[name] = answer
        if answer != "OK":
            assert answer == "SKIP", answer
            return
        content = (file.content or b"")[: cut if cut is not None else None]
        if content:
            self.command("DATA")
            self.send_content(content)
            self.send("F")
            assert self.expect("C") == b"OK\n"
        self.end_file(len(content), has_failed=cut is not None)

    def send_content(self, content: bytes) -> None:
        """Send file data."""
        for offset in range(0, len(content), 65_536):
            self.send("D", content[offset : offset + 65_536])

    def end_file(self, size: int, *, has_failed: bool) -> None:
        """Say that the file is complete; plain PTCOMM cannot."""


class RestoreBridge(PlainRestoreBridge, Bridge):
    """pgkeep's own bridge."""

    hello = Bridge.hello

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self._free = list(range(SLOTS))
        self.expects = True

    def handle(self, kind: str, payload: bytes) -> bool:
        if kind == "K":
            self._free.append(int(payload))
            return True
        return super().handle(kind, payload)

    def begin(self, job: Mapping[str, str], words: str, options: str) -> None:
        if not options:
            self.open(job, words, "RestoreStart")
            return
        self.command(f"Hello {self.hello}")
        self.expect("C")
        for block, lines in (
            ("Job", [f"{k}={v}" for k, v in {**self.job_keys(), **job}.items()]),
            ("Params", words.split()),
        ):
            self.command(block)
            for line in lines:
                self.command(line)
            self.send("F")
            self.expect("F")
        self.command("RESTOREOPTIONS:RestoreOptions")
        self.send("D", options.encode())
        self.send("F")
        assert self.expect("C") == b"OK\n"
        self.command("RestoreStart")
        self.expect("F")

    def send_object(self, number: int, content: bytes) -> None:
        self.command("RESTOREOBJ:pgkeep")
        self.command(f"RESTOREOBJ_LEN:{len(content)}")
        self.command(f"RESTOREOBJ_JOB:{number}")
        self.send("D", content)
        self.send("F")
        assert self.expect("C") == b"OK\n"

    def announce(self, restoring: Restoring) -> None:
        if not self.expects:
            return
        self.command("EXPECT")
        entries = b"".join(_expected(restoring.files))
        for offset in range(0, len(entries), 1000):
            self.send("D", entries[offset : offset + 1000])
        self.send("F")
        assert self.expect("C") == b"OK\n"

    def send_content(self, content: bytes) -> None:
        if self._ring is None:
            super().send_content(content)
            return
        for offset in range(0, len(content), SLOT_BYTES):
            piece = content[offset : offset + SLOT_BYTES]
            if len(piece) < 16 << 10:
                self.send("D", piece)
                continue
            while not self._free:
                header = self.raw(8)
                payload = self.raw(int(header[1:7]))
                if header[:1] == b"A":
                    raise Ended(payload.decode())
                assert header[:1] in (b"K", b"H"), header
                self.handle(header[:1].decode(), payload)
            slot = self._free.pop(0)
            self._ring[slot * SLOT_BYTES : slot * SLOT_BYTES + len(piece)] = piece
            self.send("M", b"%d %d\n" % (slot, len(piece)))

    def end_file(self, size: int, *, has_failed: bool) -> None:
        self.command("FAILED:the volume is damaged" if has_failed else f"COMPLETE:{size}")


def _expected(files: Iterable[File]) -> Iterator[bytes]:
    for file in files:
        yield f"{len(file.content or b'')} {file.times.split()[1]} 0 {file.name}".encode() + b"\0"
