"""The head of pg_dump's archives."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.archive_head import ArchiveHead
from tests.lab.cluster import Cluster
from tests.lab.installation import Installation
from tests.lab.servers import newest_installation

_TABLES = """
CREATE TABLE "odd ""name" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text DEFAULT 'ü');
INSERT INTO "odd ""name" (v) SELECT repeat('PGDMP', g) FROM generate_series(1, 100) g;
CREATE TABLE part (id int) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (MINVALUE) TO (0);
CREATE VIEW seen AS SELECT * FROM part;
CREATE FUNCTION nothing() RETURNS int LANGUAGE sql AS 'SELECT 1';
COMMENT ON VIEW seen IS 'a comment';
SELECT lo_from_bytea(4711, 'large');
"""


@pytest.fixture
def archive(shared_cluster: Cluster, installation: Installation) -> Iterator[tuple[Installation, bytes]]:
    """The programs that wrote it, and an archive with entries of many kinds."""
    programs = installation if installation.has_client_programs else newest_installation()
    shared_cluster.sql("CREATE DATABASE archived")
    try:
        shared_cluster.sql(_TABLES, dbname="archived")
        where = [f"--host={shared_cluster.socket_directory}", f"--port={shared_cluster.port}", "--username=postgres"]
        command = [str(programs.bin_dir / "pg_dump"), "--format=custom", "--compress=0", *where, "archived"]
        yield programs, subprocess.run(command, check=True, capture_output=True).stdout
    finally:
        shared_cluster.sql("DROP DATABASE archived")


def test_head_is_an_archive_of_its_own(archive: tuple[Installation, bytes]) -> None:
    """However the archive comes, its head ends at one place; pg_restore lists all entries of what is before it."""
    programs, whole = archive
    ends = {step: _end(whole, step) for step in (1, 7, 1000, len(whole))}
    assert len(set(ends.values())) == 1
    end, entries = ends[1]
    assert b"PGDMPPGDMP" not in whole[:end]
    listed = _listed(programs, whole[:end])
    assert listed == _listed(programs, whole)
    # pg_restore does not list settings of the whole archive, such as its encoding.
    assert f"TOC Entries: {entries}" in listed
    damaged = subprocess.run(
        [programs.bin_dir / "pg_restore", "--list"], input=whole[: end - 1], capture_output=True, check=False
    )
    assert damaged.returncode


def test_what_is_no_archive() -> None:
    """Another format, and a version that nobody here knows, are refused with what was found."""
    with pytest.raises(FormatError, match=r"^not an archive of pg_dump in custom format: b'-- dump off'$"):
        ArchiveHead().take(b"-- dump off")
    with pytest.raises(FormatError, match=r"^pg_dump wrote an archive of version 1\.17, expected 1\.14 to 1\.16$"):
        ArchiveHead().take(struct.pack("5s6B", b"PGDMP", 1, 17, 0, 4, 8, 1))


@given(st.binary(max_size=200), st.sampled_from([b"", struct.pack("5s6B", b"PGDMP", 1, 16, 0, 4, 8, 1)]))
def test_any_bytes(rest: bytes, start: bytes) -> None:
    """Any bytes are a head, the beginning of one, or refused."""
    try:
        size = ArchiveHead().take(start + rest)
    except FormatError:
        return
    assert size is None or 0 < size <= len(start + rest)


def _end(whole: bytes, step: int) -> tuple[int, int]:
    """Return where the head of *whole* ends, and how many entries it has, when *step* bytes come at a time."""
    head = ArchiveHead()
    for offset in range(0, len(whole), step):
        size = head.take(whole[offset : offset + step])
        if size is not None:
            return offset + size, head.entries
    raise AssertionError("the head does not end")


def _listed(programs: Installation, content: bytes) -> str:
    done = subprocess.run([programs.bin_dir / "pg_restore", "--list"], input=content, capture_output=True, check=True)
    return done.stdout.decode()
