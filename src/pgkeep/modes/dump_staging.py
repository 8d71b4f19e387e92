"""A private directory below ``tmpdir`` for the one thing that cannot be streamed: a dump in directory format."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pgkeep.errors import SettingsError
from pgkeep.streams.item import CHUNK_BYTES, Buffer

_PREFIX = "staged-"


@contextlib.contextmanager
def staging_directory(tmpdir: Path) -> Iterator[Path]:
    """
    Give a new directory below *tmpdir* and remove it on leaving; what killed jobs left there goes first.

    A directory in use is locked by its user (``flock``), so what is not locked belongs to nobody.

    Raises:
        SettingsError: *tmpdir* cannot be made or written to.
    """
    _make(tmpdir)
    with _lock(tmpdir, wait=True) as guard:
        assert guard is not None
        _sweep(tmpdir)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=tmpdir))
        held = contextlib.ExitStack()
        held.enter_context(_lock(directory, wait=True))
    with held:
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def check_space(tmpdir: Path, need_bytes: int, *, purpose: str) -> None:
    """
    Refuse when *tmpdir*'s file system has less than *need_bytes* free.

    Args:
        tmpdir: It is made when it does not exist.
        need_bytes: An estimate; a file system that fills up later is an error then.
        purpose: What takes the space, for the message.

    Raises:
        SettingsError: There is too little, or *tmpdir* cannot be made.
    """
    _make(tmpdir)
    free = shutil.disk_usage(tmpdir).free
    if free < need_bytes:
        raise SettingsError(
            f"tmpdir {tmpdir} has {size_text(free)} free, expected {size_text(need_bytes)} for {purpose}",
            hint="point tmpdir at a larger file system, or use dump_format custom, which needs no space",
        )


def write_staged(file: Path, chunks: Iterable[Buffer]) -> None:
    """Write a new *file* below ``tmpdir``; raise SettingsError when there is no room for it."""
    with open(file, "xb", buffering=0) as stream:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                try:
                    view = view[stream.write(view) :]
                except OSError as error:
                    raise SettingsError(
                        f"cannot write to tmpdir {file.parent.parent}: {error.strerror}",
                        hint="point tmpdir at a larger file system",
                    ) from error


def read_staged(file: Path) -> Iterator[bytes]:
    """Yield the content of a *file* below ``tmpdir``."""
    with open(file, "rb", buffering=0) as stream:
        while piece := stream.read(CHUNK_BYTES):
            yield piece


def size_text(size_bytes: int) -> str:
    """Return *size_bytes* with a binary unit and one decimal: ``12.3 MiB``; plain bytes below 1 KiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _make(tmpdir: Path) -> None:
    try:
        tmpdir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot use tmpdir {tmpdir}: {error.strerror}", hint="set tmpdir") from error
    if not os.access(tmpdir, os.W_OK | os.X_OK):
        raise SettingsError(f"cannot use tmpdir {tmpdir}: no right to write", hint="set tmpdir")


@contextlib.contextmanager
def _lock(directory: Path, *, wait: bool) -> Iterator[int | None]:
    """Hold *directory* locked; give None where another process holds it and *wait* is False."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def _sweep(tmpdir: Path) -> None:
    for left in tmpdir.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if left.stat(follow_symlinks=False).st_uid != os.geteuid():
                continue
            with _lock(left, wait=False) as held:
                if held is not None:
                    shutil.rmtree(left, ignore_errors=True)
