"""The walk of a data directory: what is in a backup, what is not, and what is said about the rest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgkeep.datadir import scan as scan_module
from pgkeep.datadir.postmaster import read_control_file
from pgkeep.datadir.scan import FoundTablespace, Scan
from pgkeep.errors import ServerError
from pgkeep.pg.data_directory import REQUIRED_DIRECTORIES, tablespace_version_directory
from pgkeep.streams.item import ItemKind
from tests.datadir.trees import ROOT, VERSION_DIRECTORY, Scanned, make_data_directory
from tests.lab.cluster import MakeCluster
from tests.lab.server_user import server_user
from tests.lab.servers import newest_installation

LEFT_OUT = [
    "postmaster.pid",
    "postmaster.opts",
    "backup_label",
    "tablespace_map",
    "recovery.signal",
    "standby.signal",
    "backup_manifest",
    "postgresql.auto.conf.tmp",
    "pg_wal/000000010000000000000001",
    "pg_wal/archive_status/000000010000000000000001.ready",
    "pg_replslot/slot/state",
    "pg_subtrans/0000",
    "pg_stat_tmp/global.stat",
    "pg_notify/0000",
    "global/pg_internal.init",
    "base/5/pg_internal.init.123",
    "base/5/t3_16384",
    "base/5/t3_16384_fsm",
    "base/pgsql_tmp/pgsql_tmp1.0",
    "base/5/pgsql_tmp5/x",
]


def test_a_backup_holds_every_file_but_what_base_backup_leaves_out(tmp_path: Path) -> None:
    """Files come under pgdata, sorted within a directory; excluded files and pg_control don't come at all."""
    held = ["base/5/1249", "base/5/1249_fsm", "base/5/16384", "base/5/16384.1", "global/1260", "postgresql.conf"]
    data_directory = make_data_directory(tmp_path / "data", [*held, *LEFT_OUT])

    scanned = Scanned(data_directory)

    assert sorted(scanned.files) == sorted(f"pgdata/{name}" for name in ["PG_VERSION", *held])
    assert scanned.warnings == []
    assert scanned.scan.vanished == 0


def test_directories_come_before_their_content_and_empty_ones_come_too(tmp_path: Path) -> None:
    """A restore can make each directory before its files, the emptied ones included."""
    scanned = Scanned(make_data_directory(tmp_path / "data", ["base/5/1249", *LEFT_OUT]))

    paths = [file.path for file in scanned.found]
    for path in paths:
        parent = path.rpartition("/")[0]
        assert parent.endswith("/pgdata") or paths.index(parent) < paths.index(path)
    assert {f"pgdata/{name}" for name in REQUIRED_DIRECTORIES} <= set(scanned.directories)


def test_only_the_init_fork_of_an_unlogged_relation_is_held(tmp_path: Path) -> None:
    """Main, fsm and vm of a relation with an init fork are rebuilt by the server."""
    files = ["base/5/16384", "base/5/16384.1", "base/5/16384_fsm", "base/5/16384_vm", "base/5/16384_init", "base/5/163"]

    scanned = Scanned(make_data_directory(tmp_path / "data", files))

    assert [name for name in scanned.files if "/5/" in name] == ["pgdata/base/5/163", "pgdata/base/5/16384_init"]


def test_tablespaces_are_followed_into_the_version_directory_only(tmp_path: Path) -> None:
    """A tablespace may be shared with another major's server; its files are not this cluster's."""
    data_directory = make_data_directory(tmp_path / "data")
    outside = tmp_path / "ts"
    for name in (f"{VERSION_DIRECTORY}/5/16400", f"{VERSION_DIRECTORY}/5/t1_16400", "PG_17_202406281/5/16400", "notes"):
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_bytes(b"x")
    (data_directory / "pg_tblspc/16390").symlink_to(outside)
    in_place = data_directory / "pg_tblspc/16391" / VERSION_DIRECTORY / "5"
    in_place.mkdir(parents=True)
    (in_place / "16401").write_bytes(b"x")

    scanned = Scanned(data_directory)

    assert scanned.scan.tablespaces == (FoundTablespace(16390, str(outside)), FoundTablespace(16391, ""))
    assert [name for name in scanned.files if name.startswith("tblspc")] == [
        f"tblspc/16390/{VERSION_DIRECTORY}/5/16400",
        f"tblspc/16391/{VERSION_DIRECTORY}/5/16401",
    ]
    assert [file.inside for file in scanned.found if file.path.endswith("16401")] == [
        f"pg_tblspc/16391/{VERSION_DIRECTORY}/5/16401"
    ]
    assert not [name for name in scanned.directories if name.startswith("pgdata/pg_tblspc/")]


def test_a_tablespace_inside_the_data_directory_is_held_once(tmp_path: Path) -> None:
    """Its files come as the tablespace's, not again as the data directory's."""
    data_directory = make_data_directory(tmp_path / "data", [f"inner/{VERSION_DIRECTORY}/5/16400"])
    (data_directory / "pg_tblspc/16390").symlink_to(data_directory / "inner")

    scanned = Scanned(data_directory)

    assert [name for name in scanned.files if "16400" in name] == [f"tblspc/16390/{VERSION_DIRECTORY}/5/16400"]
    assert "pgdata/inner" in scanned.directories


def test_a_required_tablespace_that_is_not_mounted_ends_the_walk(tmp_path: Path) -> None:
    """An unmounted file system looks like an empty directory; BASE_BACKUP would leave it out without a word."""
    data_directory = make_data_directory(tmp_path / "data")
    (tmp_path / "ts").mkdir()
    (data_directory / "pg_tblspc/16390").symlink_to(tmp_path / "ts")

    with pytest.raises(ServerError) as raised:
        Scanned(data_directory, required_tablespaces=[16390])

    assert raised.value.message == (
        f"tablespace 16390 is not on disk: expected the directory {tmp_path}/ts/{VERSION_DIRECTORY}"
    )
    assert Scanned(data_directory).warnings == [
        f"not in the backup: tablespace 16390 has no directory {tmp_path}/ts/{VERSION_DIRECTORY}"
    ]


def test_a_linked_wal_directory_is_held_as_an_empty_directory(tmp_path: Path) -> None:
    """What is in a pg_wal elsewhere is WAL like any other."""
    data_directory = make_data_directory(tmp_path / "data")
    shutil.move(data_directory / "pg_wal", tmp_path / "wal")
    (tmp_path / "wal/000000010000000000000001").write_bytes(b"x")
    (data_directory / "pg_wal").symlink_to(tmp_path / "wal")

    scanned = Scanned(data_directory)

    assert {"pgdata/pg_wal", "pgdata/pg_wal/archive_status"} <= set(scanned.directories)
    assert [file.header().kind for file in scanned.found if file.path.endswith("/pg_wal")] == [ItemKind.DIRECTORY]
    assert not [name for name in scanned.files if "pg_wal" in name]


def test_links_are_followed_where_a_server_needs_what_they_lead_to(tmp_path: Path) -> None:
    """A linked file and a linked directory of the server's are held by content; others are named."""
    data_directory = make_data_directory(tmp_path / "data", ["base/1/1249"])
    (tmp_path / "real.conf").write_text("port = 5433\n")
    (data_directory / "postgresql.conf").symlink_to(tmp_path / "real.conf")
    shutil.move(data_directory / "base/1", tmp_path / "one")
    (data_directory / "base/1").symlink_to(tmp_path / "one")
    (tmp_path / "logs").mkdir()
    (data_directory / "log").symlink_to(tmp_path / "logs")
    (data_directory / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(data_directory / "pipe")

    scanned = Scanned(data_directory)

    assert "pgdata/postgresql.conf" in scanned.files
    assert "pgdata/base/1/1249" in scanned.files
    assert sorted(scanned.warnings) == [
        "not in the backup: dangling is a link that leads nowhere: No such file or directory",
        f"not in the backup: log is a link to the directory {tmp_path}/logs",
        "not in the backup: pipe is neither a file nor a directory",
    ]


def test_a_directory_that_contains_itself_ends_the_walk(tmp_path: Path) -> None:
    """A loop of links would make a backup without end."""
    data_directory = make_data_directory(tmp_path / "data")
    (data_directory / "base/5").mkdir()
    (data_directory / "base/5/again").symlink_to(data_directory / "base")

    with pytest.raises(ServerError, match="data directory contains itself: "):
        Scanned(data_directory)


def test_a_name_that_is_not_utf8_is_named_in_a_warning(tmp_path: Path) -> None:
    """Virtual paths are text; PostgreSQL itself makes no such name."""
    data_directory = make_data_directory(tmp_path / "data")
    Path(os.fsdecode(os.fsencode(data_directory) + b"/caf\xe9")).write_bytes(b"x")

    scanned = Scanned(data_directory)

    assert scanned.files == ["pgdata/PG_VERSION"]
    assert scanned.warnings == [
        f"not in the backup: the name of {os.fsencode(data_directory) + b'/caf' + bytes([0xE9])!r} is not UTF-8"
    ]


def test_files_and_directories_that_vanish_under_the_walk_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DROP DATABASE during a backup is not an error."""
    data_directory = make_data_directory(tmp_path / "data", ["base/5/1", "base/5/2", "base/6/1"])
    monkeypatch.setattr(scan_module, "NAMES_PER_BATCH", 8)
    walk = Scan(data_directory, root=ROOT, version_directory=VERSION_DIRECTORY, warn=pytest.fail)

    paths = []
    for file in walk.files():
        paths.append(file.path)
        if file.inside == "base/5/1":
            (data_directory / "base/5/2").unlink()
        if file.inside == "base/6":
            shutil.rmtree(data_directory / "base/6")

    assert f"{ROOT}/pgdata/base/5/1" in paths
    assert f"{ROOT}/pgdata/base/5/2" not in paths
    # base/5/2, and base/6, which is listed twice: for unlogged relations and for its files.
    assert walk.vanished == 3


def test_an_unreadable_directory_ends_the_walk(tmp_path: Path) -> None:
    """What cannot be read would be missing from the backup."""
    data_directory = make_data_directory(tmp_path / "data")
    (data_directory / "pg_tblspc").rmdir()

    with pytest.raises(ServerError) as raised:
        Scanned(data_directory)

    assert raised.value.message == f"cannot read {data_directory}/pg_tblspc: No such file or directory"


@pytest.mark.parametrize("batch", [1, 3, 65_536])
def test_the_batch_in_which_names_are_sorted_changes_nothing_but_the_order(
    tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any batch size yields every name once."""
    names = [f"base/5/{number}" for number in range(16_384, 16_484)]
    monkeypatch.setattr(scan_module, "NAMES_PER_BATCH", batch)

    scanned = Scanned(make_data_directory(tmp_path / "data", names))

    assert sorted(scanned.files) == sorted(["pgdata/PG_VERSION", *(f"pgdata/{name}" for name in names)])


_MANY_FILES = """
import resource, sys
from pathlib import Path
from pgkeep.datadir.read import ReadReport, open_file
from pgkeep.datadir.scan import Scan
report = ReadReport()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = 0
for file in Scan(Path(sys.argv[1]), root="r", version_directory="PG_18_202506291", warn=print).files():
    if not file.is_directory:
        opened = open_file(file, report=report)
        opened.close()
        count += 1
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_two_hundred_thousand_files_in_one_directory_cost_little_memory(tmp_path: Path) -> None:
    """The walk holds a batch of names, not all of them."""
    data_directory = make_data_directory(tmp_path / "data")
    (data_directory / "base/5").mkdir()
    for number in range(1, 200_001):
        # Hard links are made faster than files, and are as many names; a file has at most 65,000 of them on ext4.
        if number % 50_000 == 1:
            linked = data_directory / f"base/5/x{number}"
            linked.write_bytes(b"")
        os.link(linked, data_directory / f"base/5/{number}")

    finished = subprocess.run(
        [sys.executable, "-c", _MANY_FILES, str(data_directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )

    count, grown_mb = map(int, finished.stdout.split())
    assert count == 200_000 + 4 + len(["PG_VERSION"])
    assert grown_mb < 20


def test_the_walk_finds_what_base_backup_sends(make_cluster: MakeCluster, major: int) -> None:
    """Of an idle server the walk and pg_basebackup give the same files, tablespaces and unlogged tables included."""
    cluster = make_cluster()
    outside = cluster.data_directory.parent / "ts"
    outside.mkdir()
    server_user().own(outside)
    cluster.sql(f"CREATE TABLESPACE outside LOCATION '{outside}'")
    cluster.sql("CREATE TABLE logged TABLESPACE outside AS SELECT generate_series(1, 1000) AS n")
    cluster.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) AS n")
    cluster.sql("CREATE INDEX ON unlogged (n)")
    copy = cluster.data_directory.parent / "copy"
    moved = cluster.data_directory.parent / "moved"
    server_user().run(
        [
            newest_installation().program("pg_basebackup"),
            *("-D", copy, "-T", f"{outside}={moved}", "-X", "none", "-c", "fast", "--no-sync", "--no-manifest"),
            *("-d", cluster.conninfo()),
        ]
    )

    control = read_control_file(cluster.data_directory)
    version_directory = tablespace_version_directory(major, control.catalog_version)
    warnings: list[str] = []
    walk = Scan(cluster.data_directory, root=ROOT, version_directory=version_directory, warn=warnings.append)

    found = {file.path for file in walk.files() if not file.is_directory}
    sent = set()
    for place, prefix in ((copy, "pgdata"), (moved, f"tblspc/{walk.tablespaces[0].oid}")):
        for directory, _, names in os.walk(place):
            sent |= {f"{ROOT}/{prefix}/{Path(directory, name).relative_to(place)}" for name in names}
    # These the protocol adds, or pgkeep sends in its own way.
    sent -= {f"{ROOT}/pgdata/{name}" for name in ("backup_label", "tablespace_map", "global/pg_control")}
    assert found == sent
    assert warnings == []


def test_virtual_paths_are_made_of_safe_components(tmp_path: Path) -> None:
    """No component is empty, a dot or two dots."""
    scanned = Scanned(make_data_directory(tmp_path / "data", ["base/5/1249", "odd name/..x"]))

    for file in scanned.found:
        assert not re.search(r"(^|/)(\.{0,2})(/|$)", file.path)
