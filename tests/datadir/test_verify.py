"""Comparing a laid-down directory with a record, and removing what the record does not name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from pgkeep.datadir.target import MARKER, Target
from pgkeep.datadir.unlisted import remove_unlisted
from pgkeep.datadir.verify import VerifyReport, verify_files
from pgkeep.streams.record import FileEntry
from tests.datadir.trees import ROOT, VERSION_DIRECTORY, Scanned, make_data_directory

FILES = {
    "base/5/16384": b"a" * 8192,
    "base/5/16385": b"b" * 16384,
    "base/5/16386": b"",
    "postgresql.conf": b"port = 5432\n",
}


@pytest.fixture
def target(tmp_path: Path) -> Target:
    """A directory with some files, a tablespace outside and one in place."""
    data = make_data_directory(tmp_path / "data", FILES)
    for place in (tmp_path / "ts", data / "pg_tblspc/16391"):
        (place / VERSION_DIRECTORY / "5").mkdir(parents=True)
        (place / VERSION_DIRECTORY / "5/16400").write_bytes(b"c" * 8192)
    (data / "pg_tblspc/16390").symlink_to(tmp_path / "ts")
    (data / MARKER).touch()
    return Target(
        data_directory=data, version_directory=VERSION_DIRECTORY, tablespaces={16390: tmp_path / "ts", 16391: None}
    )


def entries(target: Target) -> Iterator[FileEntry]:
    """Yield what a record of *target* as it stands would list."""
    for found in Scanned(target.data_directory).found:
        if found.path.endswith(MARKER):
            continue
        if found.is_directory:
            yield FileEntry(path=found.path, kind="directory")
        else:
            content = Path(found.real_path).read_bytes()
            yield FileEntry(path=found.path, size=len(content), digest=blake3(content).hexdigest())


def compare(target: Target, listed: list[FileEntry]) -> VerifyReport:
    """Compare."""
    return verify_files(target, listed, root=ROOT)


def flip(path: Path) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_place_of(path: Path, make: Callable[[Path], None]) -> None:
    """Remove a file and make something else there."""
    path.unlink()
    make(path)


B = f"{ROOT}/pgdata/base/5"
A_DIGEST = blake3(FILES["base/5/16384"]).hexdigest()
FLIPPED_DIGEST = blake3(b"a" * 4096 + b"`" + b"a" * 4095).hexdigest()
# Name, what to do to the data directory, the whole message.
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing", lambda data: (data / "base/5/16384").unlink(), f"{B}/16384 is missing"),
    (
        "shorter",
        lambda data: os.truncate(data / "base/5/16385", 8192),
        f"{B}/16385 is of another size: expected 16384 bytes, found 8192",
    ),
    (
        "longer",
        lambda data: (data / "base/5/16386").write_bytes(b"x"),
        f"{B}/16386 is of another size: expected 0 bytes, found 1",
    ),
    (
        "one bit",
        lambda data: flip(data / "base/5/16384"),
        f"{B}/16384 is of other content: expected digest {A_DIGEST}, found {FLIPPED_DIGEST}",
    ),
    (
        "a directory",
        lambda data: in_place_of(data / "base/5/16386", Path.mkdir),
        f"{B}/16386 is of another kind: expected a file",
    ),
    (
        "a link",
        lambda data: in_place_of(data / "base/5/16386", lambda path: path.symlink_to("16385")),
        f"{B}/16386 is of another kind: Too many levels of symbolic links",
    ),
    (
        "a pipe",
        lambda data: in_place_of(data / "base/5/16386", os.mkfifo),
        f"{B}/16386 is of another kind: expected a file",
    ),
    ("no directory", lambda data: (data / "pg_notify").rmdir(), f"{ROOT}/pgdata/pg_notify is missing"),
    (
        "in the tablespace",
        lambda data: (data.parent / f"ts/{VERSION_DIRECTORY}/5/16400").unlink(),
        f"{ROOT}/tblspc/16390/{VERSION_DIRECTORY}/5/16400 is missing",
    ),
]


@pytest.mark.parametrize(("hurt", "message"), [row[1:] for row in DAMAGES], ids=[row[0] for row in DAMAGES])
def test_damage_is_found_and_named(target: Target, hurt: Callable[[Path], object], message: str) -> None:
    """Each row is clean before it is hurt; after that it is the one difference."""
    listed = list(entries(target))
    clean = compare(target, listed)
    assert (clean.is_clean, clean.files) == (True, len(listed))
    assert clean.bytes == sum(entry.size for entry in listed)

    hurt(target.data_directory)

    report = compare(target, listed)
    assert [str(difference) for difference in report.differences] == [message]
    assert report.difference_count == 1


def test_files_that_the_restore_changed_may_be_left_out(target: Target) -> None:
    """postgresql.auto.conf gets the recovery settings."""
    listed = list(entries(target))
    (target.data_directory / "postgresql.conf").write_bytes(b"changed")

    assert not compare(target, listed).is_clean
    assert verify_files(target, listed, root=ROOT, ignore=frozenset({"pgdata/postgresql.conf"})).is_clean


def test_the_list_of_differences_is_bounded(target: Target) -> None:
    """All are counted."""
    listed = [FileEntry(path=f"{B}/{number}", size=1) for number in range(20_000, 23_000)]

    report = compare(target, listed)

    assert (report.difference_count, len(report.differences)) == (3_000, 1_000)


def test_unlisted_files_and_directories_go_and_the_rest_stays(target: Target) -> None:
    """Old segments, dropped databases and tables; not WAL, links, recovery files, or what every cluster has."""
    data = target.data_directory
    listed = [entry.path for entry in entries(target)]
    kept = {path.relative_to(data.parent) for path in data.parent.rglob("*")}
    extra_kept = ["pg_wal/000000010000000000000002", "backup_label", "recovery.signal", "global/pg_control.pgkeep"]
    gone = [
        "base/5/16384.1",
        "base/9/1249",
        f"pg_tblspc/16391/{VERSION_DIRECTORY}/5/16499",
        f"../ts/{VERSION_DIRECTORY}/9/16500",
        "old.conf",
    ]
    for name in [*extra_kept, *gone]:
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"x")
    (data.parent / "ts/notes").write_bytes(b"not ours")
    (data / "stray-link").symlink_to("/etc/passwd")

    removed = remove_unlisted(target, iter(listed), root=ROOT)

    assert removed == len(gone) + 1
    found = {path.relative_to(data.parent) for path in data.parent.rglob("*")}
    assert found == kept | {Path("data", name) for name in extra_kept} | {Path("ts/notes")}
    assert compare(target, [entry for entry in entries(target) if entry.path in listed]).is_clean
    assert remove_unlisted(target, iter(listed), root=ROOT) == 0


def test_a_link_to_another_directory_is_removed_not_entered(target: Target, tmp_path: Path) -> None:
    """What it leads to is not the target's."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    (target.data_directory / "base/7").symlink_to(victim)

    remove_unlisted(target, [entry.path for entry in entries(target) if "/base/7" not in entry.path], root=ROOT)

    assert not (target.data_directory / "base/7").is_symlink()
    assert (victim / "precious").exists()
