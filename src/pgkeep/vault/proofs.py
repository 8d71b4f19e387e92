"""
What drills have proved: ``<cluster>/proofs/<when>.json``, one file for each drill, never changed once it is there.

A drill restores a backup for real and replays it to a target. What it reached is proved; that it failed is as well
worth knowing. A file that cannot be read says nothing of the other ones: it is told and passed over.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from pgkeep.errors import FormatError, VaultError
from pgkeep.vault.unnamed_file import UnnamedFile, inherit_owner, write_all

PROOFS_DIRECTORY = "proofs"

_SUFFIX = ".json"
_MAX_FILE_BYTES = 1 << 20


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """
    The outcome of one drill.

    Attributes:
        time: When it ended; ISO-8601 with an offset.
        backup_id: The base backup that was restored.
        target: What was asked, in words: ``time 2026-11-20 20:48:00+00:00``, ``end of the WAL``.
        reached_time: Time of the last transaction replayed, ISO-8601 with an offset; empty when there was none.
        reached_lsn: Up to where WAL was replayed; empty when nothing was.
        timeline: On which; 0 when nothing was.
        result: Whether the restored server was what it should be.
    """

    time: str
    backup_id: str
    target: str
    reached_time: str
    reached_lsn: str
    timeline: int
    result: Literal["proved", "failed"]


def add_proof(cluster_directory: Path, proof: Proof) -> Path:
    """
    Write *proof* down, durably, and return its file.

    Raises:
        FormatError: One of its times is none, or has no offset.
        VaultError: It cannot be written.
    """
    name = f"{_moment(proof.time):%Y%m%dT%H%M%S.%fZ}{_SUFFIX}"
    if proof.reached_time:
        _moment(proof.reached_time)
    directory = cluster_directory / PROOFS_DIRECTORY
    try:
        parent = os.open(cluster_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                inherit_owner(fd, parent)
                os.fsync(parent)
                with UnnamedFile(fd) as file:
                    inherit_owner(file.fd, fd)
                    write_all(file.fd, msgspec.json.format(msgspec.json.encode(proof)) + b"\n")
                    os.fsync(file.fd)
                    file.publish(name)
                os.fsync(fd)
            finally:
                os.close(fd)
        finally:
            os.close(parent)
    except OSError as error:
        raise VaultError(f"cannot write {directory / name}: {error.strerror}") from error
    return directory / name


def read_proofs(cluster_directory: Path, *, warn: Callable[[str], None]) -> list[Proof]:
    """
    Return the outcomes of all drills, oldest first.

    Args:
        cluster_directory: Of the vault.
        warn: Takes one line for each file that is damaged and therefore left out.

    Raises:
        VaultError: The directory cannot be read.
    """
    directory = cluster_directory / PROOFS_DIRECTORY
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(_SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise VaultError(f"cannot read {directory}: {error.strerror}") from error
    proofs = []
    for name in names:
        try:
            proofs.append(_read(directory / name))
        except OSError as error:
            warn(f"cannot read the proof {directory / name}: {error.strerror}")
        except FormatError as error:
            warn(f"the proof {directory / name} is damaged, and counts for nothing: {error.message}")
    return sorted(proofs, key=lambda proof: _moment(proof.time))


def newest_proved(proofs: Iterable[Proof]) -> Proof | None:
    """Return that of *proofs*, oldest first, which proved something last; None when none did."""
    return next((proof for proof in reversed(list(proofs)) if proof.result == "proved"), None)


def _read(path: Path) -> Proof:
    with path.open("rb") as file:
        content = file.read(_MAX_FILE_BYTES)
    try:
        proof = msgspec.json.decode(content, type=Proof)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(str(error)) from error
    _moment(proof.time)
    if proof.reached_time:
        _moment(proof.reached_time)
    return proof


def _moment(text: str) -> dt.datetime:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise FormatError(f'not a time: "{text}"') from error
    if moment.tzinfo is None:
        raise FormatError(f'a time without an offset: "{text}"')
    try:
        return moment.astimezone(dt.UTC)
    except OverflowError as error:
        raise FormatError(f'not a time: "{text}"') from error
