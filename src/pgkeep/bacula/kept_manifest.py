"""
PostgreSQL's manifest of a job's backup, kept for the job that will build on it: the daemon gives no file back.

Beside the job's record there is ``<unique name of the job>.backup_manifest.zst``, sealed. Where that was lost, the file
as Bacula restores it, under the name ``<unique name of the job>.backup_manifest``, serves as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from pgkeep.errors import BackupUnusable, FormatError, SettingsError
from pgkeep.pg.data_directory import BACKUP_MANIFEST
from pgkeep.streams.item import Buffer
from pgkeep.vault.sealed import SealedWriter, read_sealed
from pgkeep.vault.unnamed_file import UnnamedFile

RESTORED_SUFFIX = f".{BACKUP_MANIFEST}"
KEPT_SUFFIX = f"{RESTORED_SUFFIX}.zst"

_READ_BYTES = 1 << 20


class KeptManifest:
    """
    A manifest that is being kept; it gets its name when the job has its record.

    Args:
        directory: That of the records; exists.
        job: Unique name of the job.
    """

    def __init__(self, directory: Path, job: str) -> None:
        self._path = directory / f"{job}{KEPT_SUFFIX}"
        try:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._file = UnnamedFile(self._directory)
            except BaseException:
                os.close(self._directory)
                raise
        except OSError as error:
            raise self._failed(error) from error
        self._stream = open(self._file.fd, "wb", closefd=False)  # noqa: SIM115 - closed by ``close``
        self._writer = SealedWriter(cast("BinaryIO", self._stream))
        self._is_empty = True

    def write(self, content: Buffer) -> None:
        """Append *content*."""
        try:
            self._writer.write(content)
        except OSError as error:
            raise self._failed(error) from error
        self._is_empty = False

    def publish(self) -> None:
        """Give it its name, durable; nothing happens when nothing was written."""
        if self._is_empty:
            return
        try:
            self._writer.finish()
            self._stream.flush()
            os.fsync(self._file.fd)
            self._file.publish(self._path.name)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Let go of it; without a name it is gone."""
        self._stream.close()
        self._file.close()
        os.close(self._directory)

    def _failed(self, error: OSError) -> SettingsError:
        return SettingsError(f"cannot keep {self._path}: {error.strerror}")


def read_manifest(directory: Path, job: str, *, path: str) -> Iterator[bytes]:
    """
    Yield the content of the manifest of *job*.

    Args:
        directory: That of the records.
        job: Unique name of the job.
        path: What Bacula's catalog calls the file, for the message.

    Raises:
        BackupUnusable: It is neither kept nor brought back, or is damaged.
    """
    kept, restored = directory / f"{job}{KEPT_SUFFIX}", directory / f"{job}{RESTORED_SUFFIX}"
    try:
        if restored.exists():
            with open(restored, "rb") as file:
                while piece := file.read(_READ_BYTES):
                    yield piece
        else:
            with open(kept, "rb") as file:
                yield from read_sealed(file, name=kept.name)
    except FileNotFoundError as error:
        raise BackupUnusable(
            f"it is not in {directory}; the file {path} of job {job}, restored as {restored.name} there, is what lacks"
        ) from error
    except OSError as error:
        raise BackupUnusable(f"cannot read it in {directory}: {error.strerror}") from error
    except FormatError as error:
        raise BackupUnusable(error.message) from error


def remove_manifest(directory: Path, job: str) -> None:
    """Remove whatever there is of the manifest of *job*."""
    for suffix in (KEPT_SUFFIX, RESTORED_SUFFIX):
        (directory / f"{job}{suffix}").unlink(missing_ok=True)
