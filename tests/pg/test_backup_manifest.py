from __future__ import annotations

import datetime as dt
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg import data_directory as names
from pgkeep.pg.backup_manifest import (
    MAX_LINE_BYTES,
    ManifestFile,
    ManifestReader,
    ManifestWalRange,
    ManifestWriter,
    read_manifest,
)
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation

ALGORITHMS = {"NONE": 0, "CRC32C": 4, "SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64}

moments = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(9998, 1, 1), timezones=st.just(dt.UTC)).map(  # noqa: DTZ001 - Hypothesis adds the zone
    lambda moment: moment.replace(microsecond=0)
)
paths = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.binary(min_size=1).map(os.fsdecode)
lsns = st.integers(0, 2**64 - 1).map(Lsn)
ranges = st.builds(ManifestWalRange, st.integers(1, 2**32 - 1).map(Timeline), lsns, lsns)


@st.composite
def files(draw: st.DrawFn) -> ManifestFile:
    """Draw a file of any name and checksum algorithm."""
    algorithm = draw(st.sampled_from(sorted(ALGORITHMS)))
    length = ALGORITHMS[algorithm]
    return ManifestFile(
        path=draw(paths),
        size=draw(st.integers(0, 2**62)),
        modified=draw(st.none() | moments),
        algorithm=algorithm,
        checksum=draw(st.binary(min_size=length, max_size=length)),
    )


def rendered(entries: list[ManifestFile], wal_ranges: list[ManifestWalRange], *, version: int = 2) -> bytes:
    """Return a whole manifest."""
    writer = ManifestWriter(version=version, system_identifier=SystemIdentifier(4711) if version >= 2 else None)
    return writer.begin() + b"".join(map(writer.file, entries)) + writer.end(wal_ranges)


@given(st.lists(files()), st.lists(ranges), st.sampled_from([1, 2]), st.data())
def test_what_is_written_is_read_back(
    entries: list[ManifestFile], wal_ranges: list[ManifestWalRange], version: int, data: st.DataObject
) -> None:
    """A manifest survives, wherever its bytes are cut into pieces."""
    content = rendered(entries, wal_ranges, version=version)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=5)))
    reader = ManifestReader()
    found: list[ManifestFile] = []
    for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        found += reader.feed(memoryview(content)[begin:end])
    end_found = reader.finish()
    assert found == entries
    assert end_found.wal_ranges == tuple(wal_ranges)
    assert (end_found.version, end_found.system_identifier) == (version, 4711 if version >= 2 else None)
    assert (end_found.files, end_found.bytes) == (len(entries), sum(file.size for file in entries))


@given(st.binary())
def test_any_bytes_are_refused_as_a_format_error(content: bytes) -> None:
    """No bytes make the reader fail in another way."""
    good = rendered([ManifestFile("PG_VERSION", 3)], [])
    lines = good.splitlines(keepends=True)
    for number in range(len(lines) + 1):
        with pytest.raises(FormatError):
            read_manifest(b"".join([*lines[:number], content + b"\n", *lines[number:]]))


@given(st.data())
def test_a_flipped_bit_is_found(data: st.DataObject) -> None:
    """One bit changed anywhere is refused."""
    content = bytearray(GOOD)
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        read_manifest(bytes(content))


GOOD = b"""\
{ "PostgreSQL-Backup-Manifest-Version": 2,
"System-Identifier": 7710438956197483897,
"Files": [
{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-20 20:48:00 GMT", \
"Checksum-Algorithm": "CRC32C", "Checksum": "21e45895" },
{ "Encoded-Path": "626164ff", "Size": 3, "Last-Modified": "2026-11-20 20:48:00 GMT", \
"Checksum-Algorithm": "CRC32C", "Checksum": "b825884b" }
],
"WAL-Ranges": [
{ "Timeline": 1, "Start-LSN": "0/4000028", "End-LSN": "0/4000120" }
],
"""
GOOD += b'"Manifest-Checksum": "' + hashlib.sha256(GOOD).hexdigest().encode() + b'"}\n'


def changed(old: bytes, new: bytes) -> bytes:
    """Return the good manifest with one thing changed and the checksum made right again."""
    body = GOOD[: GOOD.index(b'"Manifest-Checksum"')].replace(old, new, 1)
    assert body + b"x" != GOOD
    return body + b'"Manifest-Checksum": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def test_a_servers_manifest_is_read_and_written_byte_for_byte() -> None:
    """Files, times, checksums and names that are not UTF-8 are those of the server, and so is the layout."""
    entries, end = read_manifest(GOOD)
    assert entries[0] == ManifestFile(
        "backup_label", 225, dt.datetime(2026, 11, 20, 20, 48, tzinfo=dt.UTC), "CRC32C", bytes.fromhex("21e45895")
    )
    assert entries[1].path == "bad\udcff"
    writer = ManifestWriter(version=end.version, system_identifier=end.system_identifier)
    assert writer.begin() + b"".join(map(writer.file, entries)) + writer.end(end.wal_ranges) == GOOD


def unexpected(line: int, what: str, found: str) -> str:
    """Return the message about a line that is not what it should be; *found* are its first 80 bytes."""
    return f'backup manifest line {line}: expected {what}, found "{found[:80]}"'


DAMAGE = [
    ("empty", b"", "backup manifest is cut off after line 0"),
    ("cut off in a line", GOOD[:-30], "backup manifest is cut off after line 9"),
    ("cut off after a line", b"".join(GOOD.splitlines(keepends=True)[:5]), "backup manifest is cut off after line 5"),
    ("no last line end", GOOD[:-1], "backup manifest is cut off after line 9"),
    ("more than a manifest", GOOD + b"\n", 'backup manifest line 11: expected the end, found ""'),
    (
        "a later server's",
        changed(b'Version": 2', b'Version": 3'),
        "backup manifest has version 3, supported are 1 and 2",
    ),
    (
        "no system identifier",
        changed(b'"System-Identifier": 7710438956197483897,\n', b""),
        'backup manifest line 2: expected the system identifier, found ""Files": ["',
    ),
    (
        "no files",
        changed(b'"Files": [\n', b""),
        unexpected(
            3,
            "the start of the files",
            '{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-20 20:48:00 GMT',
        ),
    ),
    (
        "a file without size",
        changed(b'"Size": 225, ', b""),
        unexpected(4, "a file", '{ "Path": "backup_label", "Last-Modified": "2026-11-20 20:48:00 GMT", "Checksum-'),
    ),
    (
        "a file with a negative size",
        changed(b'"Size": 225', b'"Size": -25'),
        unexpected(4, "a file", '{ "Path": "backup_label", "Size": -25, "Last-Modified": "2026-11-20 20:48:00 GMT'),
    ),
    (
        "a short checksum",
        changed(b"21e45895", b"21e458"),
        unexpected(4, "a file", '{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-20 20:48:00 GMT'),
    ),
    (
        "an unknown algorithm",
        changed(b"CRC32C", b"MD5"),
        unexpected(4, "a file", '{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-20 20:48:00 GMT'),
    ),
    (
        "another zone",
        changed(b"GMT", b"CET"),
        unexpected(4, "a file", '{ "Path": "backup_label", "Size": 225, "Last-Modified": "2026-11-20 20:48:00 CET'),
    ),
    (
        "a garbled WAL range",
        changed(b'"Timeline": 1', b'"Timeline": "1"'),
        unexpected(8, "a WAL range", '{ "Timeline": "1", "Start-LSN": "0/4000028", "End-LSN": "0/4000120" }'),
    ),
    (
        "many brackets",
        changed(b'"Size": 225, ', b'"Size": 225, "x": ' + b"[" * 100_000 + b", "),
        unexpected(4, "a file", '{ "Path": "backup_label", "Size": 225, "x": ' + "[" * 80),
    ),
    (
        "not UTF-8",
        changed(b"backup_label", b"backup\xfflabel"),
        (
            'backup manifest line 4: expected a file, found "{ "Path": "backup\\xfflabel", "Size": 225, '
            '"Last-Modified": "2026-11-20 20:48:00 GMT"'
        ),
    ),
    (
        "a line without end",
        GOOD[:60] + b"x" * (MAX_LINE_BYTES + 1),
        f"backup manifest has a line of more than {MAX_LINE_BYTES} bytes",
    ),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_damaged_manifest_is_refused(content: bytes, message: str) -> None:
    """Each way to spoil a manifest has its own message."""
    read_manifest(GOOD)
    with pytest.raises(FormatError) as caught:
        read_manifest(content)
    assert str(caught.value) == message


def test_a_wrong_checksum_is_refused() -> None:
    """The message names both checksums."""
    content = GOOD.replace(b"backup_label", b"backup_lable")
    body = content[: content.index(b'"Manifest-Checksum"')]
    stored = content[-67:-3].decode()
    with pytest.raises(FormatError) as caught:
        read_manifest(content)
    assert str(caught.value) == (
        f"backup manifest is damaged: its checksum is {stored}, computed {hashlib.sha256(body).hexdigest()}"
    )


@pytest.mark.pg(">=13")
def test_a_walk_by_our_names_finds_what_base_backup_sends(cluster: Cluster, lab_directory: Path) -> None:
    """
    The names kept of a data directory are those that the server puts into a backup, and the manifest's CRCs hold.

    The cluster has what the rules are about: unlogged, temporary and truncated tables, temporary files, a tablespace.
    """
    tablespace = lab_directory / "tablespace"
    tablespace.mkdir()
    server_user().own(tablespace)
    cluster.sql(f"CREATE TABLESPACE elsewhere LOCATION '{tablespace}'")
    for place in ("pg_default", "elsewhere"):
        cluster.sql(f"CREATE TABLE t_{place} TABLESPACE {place} AS SELECT generate_series(1, 1000) i")
        cluster.sql(f"CREATE UNLOGGED TABLE u_{place} (i int primary key) TABLESPACE {place}")
        cluster.sql(f"INSERT INTO u_{place} SELECT generate_series(1, 1000)")
    for litter in (
        "base/pgsql_tmp/pgsql_tmp1.0",
        "pg_notify/litter",
        "base/5/pg_internal.init.77",
        "backup_label.mine",
    ):
        path = cluster.data_directory / litter
        path.parent.mkdir(exist_ok=True)
        path.write_text("litter")
        server_user().own(path.parent if path.parent != cluster.data_directory else path)
    target = lab_directory / "copy"
    with cluster.connect() as session:
        session.execute("CREATE TEMP TABLE mine AS SELECT 1")
        session.execute("CHECKPOINT")
        server_user().run(
            [
                newest_installation().program("pg_basebackup"),
                *(f"--pgdata={target}", "-X", "none", "-c", "fast", "--no-sync", "-d", cluster.conninfo()),
                f"--tablespace-mapping={tablespace}={lab_directory / 'moved'}",
            ]
        )
        walked = set(_walk(str(cluster.data_directory), ""))
    content = (target / "backup_manifest").read_bytes()
    entries, end = read_manifest(content)
    assert end.version == (2 if cluster.major >= 17 else 1)
    named = {file.path for file in entries}
    # What BASE_BACKUP makes itself, and what it keeps of an earlier backup or recovery.
    named -= {names.BACKUP_LABEL, names.TABLESPACE_MAP, "backup_label.old", "tablespace_map.old"}
    assert walked - named == set()
    # A file of statistics or the relation map may come and go; nothing else.
    assert {path for path in named - walked if not path.startswith("pg_stat/")} == set()
    for file in entries:
        data = (target / file.path).read_bytes()
        if len(data) == file.size <= 8192:
            assert (file.path, crc32c(data).to_bytes(4, "little")) == (file.path, file.checksum)


def _walk(root: str, inside: str) -> list[str]:
    """Return the files that our rules keep, relative to the data directory."""
    found = []
    for name in names.kept_names(inside, os.listdir(os.path.join(root, inside))):
        path = f"{inside}/{name}" if inside else name
        full = os.path.join(root, path)
        if os.path.isdir(full):
            if not os.path.islink(full) or inside == names.TABLESPACES:
                found += _walk(root, path)
        else:
            found.append(path)
    return found
