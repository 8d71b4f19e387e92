"""
What pgkeep remembers of Bacula's jobs: a copy of each one's record, by the job's unique name.

::

    <state_dir>/bacula/default/<mode>/                  or cluster_<id>/<mode>/
        <unique name of the job>.json.zst               the record, sealed
        <unique name of the job>.backup_manifest.zst    mode pitr_block: PostgreSQL's manifest, see kept_manifest.py
        <unique name of the job>.confirmed              empty: the job is known to have succeeded
        .<time>.id                                      empty: a job of that second is or was under way

That a record is here says only that the backend did its part: the daemon or the Director may have failed the job later.
The Director says which job counts when it names it as the one to build on, and so does ``pgkeep bacula confirm``.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pgkeep.bacula.file_list import FileList
from pgkeep.bacula.kept_manifest import remove_manifest
from pgkeep.errors import FormatError, SettingsError, UsageError
from pgkeep.streams.record import Level, RecordHead, RecordTail
from pgkeep.streams.record_io import RecordReader, parse_head, render_head, render_tail
from pgkeep.vault.file_index import FileIndex
from pgkeep.vault.sealed import SealedWriter, read_first_frame, read_sealed
from pgkeep.vault.unnamed_file import UnnamedFile

RECORD_SUFFIX = ".json.zst"
CONFIRMED_SUFFIX = ".confirmed"
RESERVED_SUFFIX = ".id"
RESERVED_SECONDS = 86_400
KEPT_FULLS = 3
"""Records older than the oldest of so many newest Fulls of a job are of no more use to it."""

_MAX_HEAD_BYTES = 256 << 20
_UNIQUE_PART = re.compile(r"\.\d{4}-\d{2}-\d{2}_\d{2}\.\d{2}\.\d{2}_\d+$")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The record of one job."""

    job: str
    path: Path
    head: RecordHead
    is_confirmed: bool

    def file_index(self) -> FileIndex:
        """Return an index over its file list, the whole record checked; the caller closes it."""
        with open(self.path, "rb") as file:
            reader = RecordReader(read_sealed(cast("BinaryIO", file), name=str(self.path)), name=str(self.path))
            return FileIndex(reader.lines(), name=str(self.path))

    def tail(self) -> RecordTail:
        """Return its tail, the whole record read and checked; raise FormatError or OSError where that cannot be."""
        with open(self.path, "rb") as file:
            reader = RecordReader(read_sealed(cast("BinaryIO", file), name=str(self.path)), name=str(self.path))
            for _ in reader.lines():
                pass
            return reader.tail


class ClusterState:
    """
    The records of one cluster and mode.

    Args:
        state_dir: The setting of that name.
        cluster_id: The setting of that name; empty for none.
        mode: Name of the mode.
    """

    def __init__(self, state_dir: str, *, cluster_id: str, mode: str) -> None:
        self.directory = Path(state_dir) / "bacula" / (f"cluster_{cluster_id}" if cluster_id else "default") / mode

    def beside(self, mode: str) -> ClusterState:
        """Return the records of the same cluster in another mode."""
        other = copy.copy(self)
        other.directory = self.directory.parent / mode
        return other

    def prepare(self) -> None:
        """Make the directory; raise SettingsError when that cannot be done."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.directory, os.W_OK | os.X_OK):
                raise PermissionError(0, "permission denied")
        except OSError as error:
            raise SettingsError(
                f"cannot keep records in {self.directory}: {(error.strerror or '').lower()}",
                hint="make state_dir writable for the user that runs the backend, or name another directory",
            ) from error

    def record(self, job: str) -> JobRecord | None:
        """Return the record of *job*; None when there is none that can be read."""
        path = self.directory / f"{job}{RECORD_SUFFIX}"
        try:
            with open(path, "rb") as file:
                head = parse_head(read_first_frame(file, name=str(path), max_size=_MAX_HEAD_BYTES))
        except (OSError, FormatError):
            return None
        return JobRecord(job, path, head, is_confirmed=(self.directory / f"{job}{CONFIRMED_SUFFIX}").exists())

    def records(self) -> Iterator[JobRecord]:
        """Yield all records, oldest first."""
        with contextlib.suppress(OSError):
            names = sorted(name for name in os.listdir(self.directory) if name.endswith(RECORD_SUFFIX))
            found = [self.record(name.removesuffix(RECORD_SUFFIX)) for name in names]
            yield from sorted((one for one in found if one is not None), key=lambda one: one.head.backup_id)

    def has(self, job: str) -> bool:
        """Tell whether *job* has written a record, or another Plugin line of it has."""
        return (self.directory / f"{job}{RECORD_SUFFIX}").exists()

    def newest_id(self) -> str:
        """Return the newest backup id of all records; empty when there is none."""
        return max((one.head.backup_id for one in self.records()), default="")

    def reserve_id(self, backup_id: str) -> bool:
        """Take the second of *backup_id* for this job alone; tell whether it was free."""
        path = self.directory / f".{backup_id.partition('-')[0]}{RESERVED_SUFFIX}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return False
        except OSError as error:
            raise SettingsError(f"cannot write {path}: {error.strerror}") from error
        return True

    def confirm(self, job: str) -> bool:
        """Take note that *job* succeeded; tell whether it has a record."""
        if not self.has(job):
            return False
        with contextlib.suppress(OSError):
            (self.directory / f"{job}{CONFIRMED_SUFFIX}").touch(mode=0o600)
        return True

    def begin(self, job: str, head: RecordHead, files: FileList, tail: RecordTail) -> UnnamedRecord:
        """Write the record of *job* down, durable, but without its name yet."""
        return UnnamedRecord(self.directory, job, head, files, tail)

    def prune(self, job: str) -> int:
        """Remove records that no later run of *job* can name any more; return how many."""
        self._forget_reservations()
        ours = [one for one in self.records() if _job_of(one.job) == _job_of(job)]
        fulls = [one for one in ours if one.head.level is Level.FULL]
        confirmed = [one for one in fulls if one.is_confirmed]
        # Where nobody ever confirms, Fulls are counted as they are: more of them, since some may have failed later.
        counted, kept = (confirmed, KEPT_FULLS) if len(confirmed) >= KEPT_FULLS else (fulls, 4 * KEPT_FULLS)
        if len(counted) < kept:
            return 0
        oldest = counted[-kept].head.backup_id
        removed = [one for one in ours if one.head.backup_id < oldest]
        for one in removed:
            with contextlib.suppress(OSError):
                self._remove(one.job)
        return len(removed)

    def forget(self, job: str) -> None:
        """Remove all that an earlier run of *job* has left; raise SettingsError when that cannot be done."""
        try:
            self._remove(job)
        except OSError as error:
            raise SettingsError(
                f"cannot remove the record of an earlier run of this job: {error.filename}: {error.strerror}"
            ) from error

    def _remove(self, job: str) -> None:
        for suffix in (RECORD_SUFFIX, CONFIRMED_SUFFIX):
            (self.directory / f"{job}{suffix}").unlink(missing_ok=True)
        remove_manifest(self.directory, job)

    def _forget_reservations(self) -> None:
        oldest = time.time() - RESERVED_SECONDS
        with contextlib.suppress(OSError):
            for path in self.directory.glob(f".*{RESERVED_SUFFIX}"):
                if path.stat().st_mtime < oldest:
                    path.unlink()


class UnnamedRecord:
    """A record on disk that gets its name when the daemon has said that the job is through."""

    def __init__(self, directory: Path, job: str, head: RecordHead, files: FileList, tail: RecordTail) -> None:
        self._name = f"{job}{RECORD_SUFFIX}"
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._file = UnnamedFile(self._directory)
            with open(self._file.fd, "wb", closefd=False) as stream:
                writer = SealedWriter(cast("BinaryIO", stream))
                writer.write(render_head(head))
                writer.end_frame()
                for frames in files.frames():
                    writer.append_frames(frames)
                writer.write(render_tail(tail))
                writer.finish()
            os.fsync(self._file.fd)
        except OSError as error:
            raise SettingsError(f"cannot keep the record in {directory}: {error.strerror}") from error

    def publish(self) -> None:
        """Give it its name."""
        try:
            self._file.publish(self._name)
            os.fsync(self._directory)
        except OSError as error:
            raise SettingsError(f"cannot keep the record {self._name}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of it; without a name it is gone."""
        self._file.close()
        os.close(self._directory)


def confirm_job(state_dir: str, job: str) -> list[str]:
    """
    Mark the job with the unique name *job* as successful; return the directories of the records that it has.

    Raises:
        UsageError: No record names it.
    """
    if not job or "/" in job or job in (".", ".."):
        raise UsageError(f'not the unique name of a job: "{job}"')
    confirmed = []
    for directory in sorted((Path(state_dir) / "bacula").glob("*/*")):
        cluster = directory.parent.name
        cluster_id = "" if cluster == "default" else cluster.removeprefix("cluster_")
        if ClusterState(state_dir, cluster_id=cluster_id, mode=directory.name).confirm(job):
            confirmed.append(str(directory))
    if not confirmed:
        raise UsageError(
            f'no job "{job}" has a record in {state_dir}/bacula',
            hint="give the job's unique name, as %j in RunAfterJob has it",
        )
    return confirmed


def _job_of(unique_name: str) -> str:
    """Return the name of the job resource that *unique_name* is a run of."""
    return _UNIQUE_PART.sub("", unique_name)
