"""Which files a backup holds, and where a restore puts them."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pgkeep.datadir.scan import ScannedFile
from pgkeep.modes.pitr_local import CLOCK_MARGIN_NS, UnchangedRule
from pgkeep.streams.record import FileEntry, Level, RecordHead
from tests.lab.cluster import Cluster
from tests.lab.ledger import Digests, digest
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper

NANOSECONDS = 1_000_000_000


def make_directory(path: Path) -> Path:
    """Make a directory that belongs to the server's account."""
    path.mkdir()
    server_user().own(path)
    return path


def rows(cluster: Cluster) -> Digests:
    """Return the digests of the cluster's tables."""
    with cluster.connect() as connection:
        return digest(connection)


def oid_of(cluster: Cluster, tablespace: str) -> int:
    """Return the OID of a tablespace."""
    return int(cluster.value("SELECT oid::int FROM pg_tablespace WHERE spcname = %s", [tablespace]))


@contextmanager
def stopped(cluster: Cluster) -> Iterator[None]:
    """Have the server stopped while the block runs."""
    cluster.stop()
    yield
    cluster.start()


def age(cluster: Cluster, seconds: int) -> None:
    """Make every file of a stopped cluster as old as that, as files of a real one are."""
    moment = time.time() - seconds
    for directory, _, files in os.walk(cluster.data_directory):
        for name in files:
            os.utime(os.path.join(directory, name), (moment, moment))


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_tablespaces_go_where_they_are_told(make_keeper: MakeKeeper, lab_directory: Path, transport: str) -> None:
    """Tablespaces outside, mapped by name and by OID, and one inside pg_tblspc come back, new content included."""
    keeper = make_keeper()
    cluster = keeper.cluster
    for name in ("fast", "Slow Disk"):
        place = make_directory(lab_directory / name)
        cluster.sql(f"CREATE TABLESPACE \"{name}\" LOCATION '{place}'")
        cluster.sql(f'CREATE TABLE "in {name}" TABLESPACE "{name}" AS SELECT generate_series(1, 3000) AS n')
    with cluster.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE inside LOCATION ''")
        connection.execute("CREATE TABLE in_inside TABLESPACE inside AS SELECT generate_series(1, 3000) AS n")
    keeper.backup("full", transport)
    cluster.sql('INSERT INTO "in fast" SELECT generate_series(1, 5000)')
    cluster.sql('TRUNCATE "in Slow Disk"')
    cluster.sql("UPDATE in_inside SET n = -n")
    cluster.sql('CREATE TABLE "second in fast" TABLESPACE fast AS SELECT generate_series(1, 100) AS n')
    keeper.backup("differential", transport)
    expected = rows(cluster)
    places = {"fast": lab_directory / "new" / "fast", "Slow Disk": lab_directory / "new" / "slow"}
    restored = keeper.restore(
        f"--tablespace-map=Slow Disk:{places['Slow Disk']},{oid_of(cluster, 'fast')}:{places['fast']}"
    )
    assert restored.digests() == expected
    with restored.connect() as connection:
        found = connection.execute(
            "SELECT spcname, pg_tablespace_location(oid) FROM pg_tablespace WHERE oid >= 16384 ORDER BY 1"
        ).fetchall()
    inside = f"pg_tblspc/{oid_of(cluster, 'inside')}"
    assert found == [("Slow Disk", str(places["Slow Disk"])), ("fast", str(places["fast"])), ("inside", inside)]
    assert rows(cluster) == expected


@pytest.mark.pg("<=15")
def test_in_place_tablespace_that_no_stream_carries(major: int, make_keeper: MakeKeeper) -> None:
    """A server whose BASE_BACKUP leaves in-place tablespaces out is not backed up over the stream, and this is said."""
    keeper = make_keeper()
    with keeper.cluster.connect() as connection:
        connection.execute("SET allow_in_place_tablespaces = on")
        connection.execute("CREATE TABLESPACE inside LOCATION ''")
        connection.execute("CREATE TABLE t TABLESPACE inside AS SELECT generate_series(1, 3000) AS n")
    outcome = keeper.run("backup", *keeper.backup_options("full", "stream"))
    where = f"{keeper.cluster.socket_directory}:{keeper.cluster.port} as postgres"
    assert (outcome.status, outcome.refusal) == (
        4,
        [
            f"error: PostgreSQL {major} at {where} does not stream the files of the in-place tablespace inside",
            "hint: use transport=local on the server's host, or PostgreSQL 16 or later",
        ],
    )
    keeper.backup("full", "local")
    assert keeper.restore().digests() == rows(keeper.cluster)


def test_copy_beside_the_original_needs_a_map(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """A copy of the cluster never shares a tablespace's directory with the original."""
    keeper = make_keeper()
    place = make_directory(lab_directory / "fast")
    keeper.cluster.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    keeper.backup("full", "local")
    oid = oid_of(keeper.cluster, "fast")
    assert keeper.refuse(f"--pgdata-dir={lab_directory}/copy") == (
        8,
        [
            f"error: tablespace {oid} would go to its original place {place}, but the data directory does not",
            f"hint: name a place: --tablespace-map {oid}:/directory",
        ],
    )
    assert keeper.refuse(f"--pgdata-dir={lab_directory}/copy", "--tablespace-map=quick:/srv/quick") == (
        2,
        ['error: the backup has no tablespace "quick": it has fast'],
    )
    assert keeper.refuse(f"--pgdata-dir={lab_directory}/copy", f"--tablespace-map=fast:/srv/a,{oid}:/srv/b") == (
        2,
        [f"error: two places for tablespace {oid}: /srv/a and /srv/b", "hint: name it once, by OID or by name"],
    )


def test_tablespace_made_after_the_base(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """A replay that would make a tablespace in the running original's directory is refused before it begins."""
    keeper = make_keeper()
    keeper.backup("full", "local")
    mark = keeper.backup("incremental", "local").report["wal_stop"]
    place = make_directory(lab_directory / "late")
    keeper.cluster.sql(f"CREATE TABLESPACE late LOCATION '{place}'")
    keeper.cluster.sql("CREATE TABLE t TABLESPACE late AS SELECT generate_series(1, 3000) AS n")
    keeper.backup("incremental", "local")
    before = rows(keeper.cluster)
    oid = oid_of(keeper.cluster, "late")
    error = f'the replay would make tablespace {oid} "late" in {place}, which exists on this host and is not part of'
    hint = (
        "restore from a newer Full or Differential, or to a moment before the tablespace was made, or on another host"
    )
    assert keeper.refuse(f"--pgdata-dir={lab_directory}/copy", "--start") == (
        8,
        [f"error: {error} this restore", f"hint: {hint}"],
    )
    keeper.restore(f"--target-lsn={mark}")
    assert rows(keeper.cluster) == before


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_files_that_go_and_come(make_keeper: MakeKeeper, transport: str) -> None:
    """What was truncated, dropped, dropped and made again, or rewritten since the Full is right in a Differential."""
    keeper = make_keeper()
    cluster = keeper.cluster
    for name in ("truncated", "dropped", "made_again", "rewritten", "shrunk", "untouched"):
        cluster.sql(f"CREATE TABLE {name} AS SELECT n, md5(n::text) FROM generate_series(1, 5000) AS n")
    with stopped(cluster):
        age(cluster, 3600)
    full = keeper.backup("full", transport).report
    cluster.sql("TRUNCATE truncated")
    cluster.sql("DROP TABLE dropped, made_again")
    cluster.sql("CREATE TABLE made_again AS SELECT n AS other FROM generate_series(1, 77) AS n")
    cluster.sql("UPDATE rewritten SET n = -n")
    cluster.sql("VACUUM FULL rewritten")
    # The end of a table's file is cut off: the same name, and it is smaller.
    cluster.sql("DELETE FROM shrunk WHERE n > 100")
    cluster.sql("VACUUM shrunk")
    differential = keeper.backup("differential", transport).report
    assert differential["base"] == full["backup_id"]
    assert differential["stored_bytes"] < full["stored_bytes"]
    if transport == "local":
        assert differential["sent_files"] < full["sent_files"] / 2
    expected = rows(cluster)
    restored = keeper.restore()
    assert restored.digests() == expected
    assert restored.report["backup_id"] == differential["backup_id"]
    # Files of tables that are gone would be there for ever.
    relations = {"base", "global"}
    listing = {
        path.name
        for top in relations
        for path in (restored.data_directory / top).rglob("[0-9]*")
        if path.is_file() and path.suffix != ".init"
    }
    with restored.connect() as connection:
        gone = connection.execute(
            "SELECT name FROM unnest(%s::text[]) AS name "
            "WHERE name ~ '^[0-9]+$' AND name::oid >= 16384 AND pg_filenode_relation(0, name::oid) IS NULL",
            [sorted(listing)],
        ).fetchall()
    assert gone == []


def test_change_that_modification_time_does_not_show(make_keeper: MakeKeeper) -> None:
    """A file that changed behind an equal size and time is sent when that time is not older than the checkpoint."""
    keeper = make_keeper()
    cluster = keeper.cluster
    with stopped(cluster):
        age(cluster, 3600)
    cluster.sql("CREATE TABLE fresh AS SELECT 'before' AS word")
    cluster.sql("CREATE TABLE old AS SELECT 'before' AS word")
    cluster.sql("CHECKPOINT")
    files = {
        name: cluster.data_directory / cluster.value("SELECT pg_relation_filepath(%s)", [name])
        for name in ("fresh", "old")
    }
    # The one cannot be told from a file that is written again within the same step of the clock. The other says that it
    # was written long ago, which hides any change: it shows that these files are judged by nothing but their times.
    now_ns = time.time_ns()
    os.utime(files["fresh"], ns=(now_ns, now_ns + 60 * NANOSECONDS))
    os.utime(files["old"], ns=(now_ns, now_ns - 3600 * NANOSECONDS))
    keeper.backup("full", "local")
    before = {name: file.stat() for name, file in files.items()}
    for name in files:
        cluster.sql(f"UPDATE {name} SET word = 'after!'")
    cluster.sql("CHECKPOINT")
    for name, file in files.items():
        os.utime(file, ns=(before[name].st_atime_ns, before[name].st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (before[name].st_size, before[name].st_mtime_ns)
    outcome = keeper.backup("differential", "local")
    assert any("unchanged" in line for line in outcome.lines)
    restored = keeper.restore(f"--backup-id={outcome.report['backup_id']}", "--target-immediate")
    assert restored.value("SELECT word FROM fresh") == "after!"
    assert restored.value("SELECT word FROM old") == "before"


class _Held:
    """A backup that holds one file."""

    def __init__(self, checkpoint: dt.datetime, entry: FileEntry) -> None:
        self.head = RecordHead(
            backup_id="20261120T204800Z-F",
            cluster="main",
            mode="pitr",
            level=Level.FULL,
            checkpoint_time=checkpoint.isoformat(),
        )
        self._entry = entry

    def file(self, path: str) -> FileEntry | None:
        return self._entry if path == self._entry.path else None


@pytest.mark.parametrize(
    ("age_ns", "size", "moved_ns", "is_unchanged"),
    [
        (CLOCK_MARGIN_NS + 1, 8192, 0, True),
        (CLOCK_MARGIN_NS, 8192, 0, False),
        (0, 8192, 0, False),
        (-NANOSECONDS, 8192, 0, False),
        (CLOCK_MARGIN_NS + 1, 16384, 0, False),
        (CLOCK_MARGIN_NS + 1, 8192, 1, False),
        (3600 * NANOSECONDS, 8192, -1, False),
    ],
)
def test_two_conditions(age_ns: int, size: int, moved_ns: int, is_unchanged: bool) -> None:
    """A file is unchanged when size and time are equal, and the time lies before the base's checkpoint by a margin."""
    checkpoint = dt.datetime(2026, 11, 20, 20, 48, 0, tzinfo=dt.UTC)
    mtime_ns = int(checkpoint.timestamp()) * NANOSECONDS - age_ns
    path = "@postgresql/pitr/pgdata/base/5/16384"
    held = _Held(checkpoint, FileEntry(path=path, kind="file", size=8192, mtime_ns=mtime_ns - moved_ns))
    status = SimpleNamespace(st_size=size, st_mtime_ns=mtime_ns)
    found = ScannedFile(path, "base/5/16384", "/srv/base/5/16384", cast("os.stat_result", status))
    assert UnchangedRule(held).is_unchanged(found) is is_unchanged


def test_times_mean_nothing_after_another_transport(keeper: Keeper) -> None:
    """A local Differential upon a streamed Full sends every file and says so; equal content is stored once even so."""
    keeper.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS n")
    with stopped(keeper.cluster):
        age(keeper.cluster, 3600)
    full = keeper.backup("full", "stream").report
    outcome = keeper.backup("differential", "local")
    [warning] = outcome.warnings
    assert warning.startswith(f"every file is sent: backup {full['backup_id']} was read from ")
    assert warning.endswith(" by transport stream, so its modification times mean nothing here")
    assert outcome.report["stored_bytes"] < full["stored_bytes"] / 2
    assert keeper.restore().digests() == rows(keeper.cluster)
