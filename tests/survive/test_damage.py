"""Bits that flip: on the server's disk, and in the vault."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from pgkeep.pg.control_file import ClusterState, parse_control_file
from pgkeep.pg.page import page_checksums
from tests.lab.cluster import Cluster
from tests.lab.ledger import Ledger, Mark, digest_all
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import PGKEEP, PGKEEP_WAL, Keeper, environment
from tests.survive.half_written import PAGE, SETTINGS, backup_begun, half_written, is_half_written
from tests.survive.job import Job, backup_ids


def make_table(cluster: Cluster, name: str) -> Path:
    """Make a table of some pages that the server will not write again; return its file."""
    cluster.sql(f"CREATE TABLE {name} AS SELECT n, repeat(md5(n::text), 20) AS text FROM generate_series(1, 400) AS n")
    cluster.sql(f"VACUUM (FREEZE) {name}")
    cluster.sql("CHECKPOINT")
    return cluster.data_directory / str(cluster.value(f"SELECT pg_relation_filepath('{name}')"))


def flip(path: Path, offset: int) -> None:
    """Flip one bit at *offset*, counted from the end when it is negative."""
    with path.open("r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        place = file.tell()
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize(("server", "transport"), [(15, "local"), (18, "stream")])
def test_a_page_that_is_bad_on_the_server(make_keeper: MakeKeeper, server: int, transport: str) -> None:
    """The job succeeds with a warning; record, info, verify and expire know, and keep what is clean."""
    keeper = make_keeper(major=server)
    cluster = keeper.cluster
    table = make_table(cluster, "precious")
    clean = keeper.backup("full", transport).report["backup_id"]
    mark = Ledger(cluster).mark("clean")
    flip(table, 3 * PAGE + 5000)
    outcome = keeper.backup("full", transport)
    damaged = outcome.report["backup_id"]
    inside = table.relative_to(cluster.data_directory)
    warning = f"damaged page: @postgresql/pitr/pgdata/{inside} block 3"
    assert outcome.warnings == [
        warning,
        "the backup holds damaged pages: see above; expire keeps the last backup without any",
    ]
    assert outcome.report["damaged_pages"] == 1
    assert outcome.report["warnings"] == [warning]
    info = keeper.info()
    assert info["status"] == "damaged"
    assert [backup["damaged"] for backup in info["backups"]] == [
        [],
        [{"path": f"@postgresql/pitr/pgdata/{inside}", "count": 1, "blocks": [3]}],
    ]
    assert keeper.must("expire", "--keep=1", "--json").report["removed"] == []
    assert backup_ids(keeper) == [clean, damaged]
    report = keeper.must("verify", "--json").report
    assert (report["is_clean"], report["pages_known"]) == (True, 1)
    # A Differential must not refer to the bad page for ever, and a mended page makes a clean backup again.
    flip(table, 3 * PAGE + 5000)
    mended = keeper.backup("differential", transport)
    assert mended.report["damaged_pages"] == 0
    keeper.backup("full", transport)
    keeper.restore("--target-name=clean").assert_is_at(mark)
    assert clean in [entry["backup_id"] for entry in keeper.must("expire", "--keep=1", "--json").report["removed"]]


def test_a_page_written_during_the_backup_is_counted_only(keeper: Keeper) -> None:
    """A page that fails but whose LSN lies in the backup's time is replayed, and no reason to warn."""
    cluster = keeper.cluster
    table = make_table(cluster, "torn")
    mark = Ledger(cluster).mark("before")
    with Job(keeper, "backup", *keeper.backup_options("full", "local"), at=("STOP", 1, "open", "/base/")) as job:
        job.wait_until_stopped()
        # What a reader sees of a page half-way through its write: its head is new, the rest is not.
        cluster.sql("SELECT pg_create_restore_point('moves on')")
        lsn = int(cluster.value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))
        original = table.read_bytes()
        with table.open("r+b") as file:
            file.seek(2 * PAGE)
            file.write(struct.pack("<II", lsn >> 32, lsn & 0xFFFFFFFF))
        outcome = job.go_on()
        table.write_bytes(original)
    assert outcome.status == 0, outcome.lines
    assert outcome.warnings == []
    assert outcome.report["damaged_pages"] == 0
    [held] = keeper.info()["backups"]
    assert (held["pages_after_start"], held["damaged"]) == (1, [])
    report = keeper.must("verify", "--json").report
    assert (report["is_clean"], report["pages_after_start"], report["pages_known"]) == (True, 1, 0)
    assert set(page_checksums(original, 0)) != {0}
    assert mark.name == "before"


@pytest.mark.parametrize("server", [15, 18])
def test_a_page_read_half_way_through_its_first_write(make_keeper: MakeKeeper, server: int) -> None:
    """The server sends it without a look; verify finds it, unless the backup's WAL writes it anew."""
    keeper = make_keeper(major=server, settings=SETTINGS)
    cluster = keeper.cluster
    # More than what fits between the server and a reader that does not read.
    cluster.sql("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 60) AS text FROM generate_series(1, 40000) AS n")
    make_table(cluster, "torn")
    path = half_written(cluster, "torn", block=2)
    with backup_begun(keeper, *keeper.backup_options("full", "stream")):
        cluster.sql("UPDATE torn SET text = 'new' WHERE ctid = '(2,1)'")
        assert is_half_written(path, block=2)
    report = keeper.must("verify", "--json").report
    assert (report["is_clean"], report["pages_after_start"]) == (True, 1)
    assert keeper.restore().digests() == digest_all(cluster)["postgres"]

    # Without such a record the page is damaged, and nobody else would say so.
    half_written(cluster, "torn", block=2)
    damaged = keeper.backup("full", "stream")
    assert damaged.report["damaged_pages"] == 0
    outcome = keeper.run("verify", f"--backup-id={damaged.report['backup_id']}", "--json")
    assert outcome.status == 12, outcome.lines
    [finding] = outcome.report["findings"]
    assert finding["path"] == f"@postgresql/pitr/pgdata/{path.relative_to(cluster.data_directory)}"
    assert (finding["what"], finding["blocks"]) == ("1 pages have a wrong checksum, the first is block 2", [2])


def test_half_a_page_of_a_free_space_map_is_no_damage(keeper: Keeper) -> None:
    """The server takes such a page for an empty one, and need not have WAL of it."""
    cluster = keeper.cluster
    make_table(cluster, "item")
    cluster.sql("DELETE FROM item WHERE n % 2 = 0")
    cluster.sql("VACUUM (FREEZE) item")
    path = half_written(cluster, "item", block=0, fork="_fsm")
    keeper.backup("full", "stream")
    assert is_half_written(path, block=0)
    report = keeper.must("verify", "--json").report
    assert (report["is_clean"], report["pages_after_start"]) == (True, 1)
    restored = keeper.restore()
    assert restored.digests() == digest_all(cluster)["postgres"]
    with restored.connect() as connection:
        connection.execute("INSERT INTO item SELECT n, 'new' FROM generate_series(1, 1000) AS n")
    assert restored.value("SELECT count(*) FROM item") == 1200


def test_a_backup_that_nobody_may_look_into(keeper: Keeper) -> None:
    """One backup with other rights is named, and the others are listed and restored all the same."""
    ids = [keeper.backup("full", "local").report["backup_id"] for _ in range(2)]
    mark = Ledger(keeper.cluster).mark("end")
    keeper.backup("incremental", "local")
    closed = keeper.vault / keeper.name / "backups" / ids[1]
    closed.chmod(0)
    try:
        info = keeper.info()
        assert (info["status"], info["backups"][0]["backup_id"]) == ("damaged", ids[0])
        [unreadable] = info["unreadable"]
        assert unreadable["backup_id"] == ids[1]
        assert unreadable["reason"].endswith("cannot read manifest.json.zst: Permission denied")
        assert keeper.must("expire", "--keep=1", "--json").report["removed"] == []
        keeper.restore(f"--backup-id={ids[0]}").assert_is_at(mark)
    finally:
        closed.chmod(0o700)
    assert keeper.info()["status"] == "ok"


@pytest.fixture
def two_fulls(make_keeper: MakeKeeper) -> tuple[Keeper, dict[str, Mark], list[str]]:
    """Two Fulls with archived WAL behind each, the marks ``first``, ``second`` and ``last``, and the Fulls' ids."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    marks, ids = {}, []
    for name in ("first", "second", "last"):
        if name != "last":
            ids.append(keeper.backup("full", "local").report["backup_id"])
        ledger.transfer(30)
        marks[name] = ledger.mark(name)
        keeper.wait_until_archived()
    assert keeper.must("verify", "--json").report["is_clean"]
    return keeper, marks, ids


def assert_is_found(keeper: Keeper, name: str) -> None:
    """Assert that verify names what was damaged, and ends as a failed check does."""
    outcome = keeper.run("verify", "--json")
    assert outcome.status == 12, outcome.lines
    findings = outcome.report["findings"]
    assert any(name in finding["file"] + finding["what"] for finding in findings), findings


def test_a_flipped_bit_in_a_backup(two_fulls: tuple[Keeper, dict[str, Mark], list[str]]) -> None:
    """Verify finds it; restore never passes it off as whole; the backup before it still serves."""
    keeper, marks, [first, second] = two_fulls
    directory = keeper.vault / "main/backups" / second
    last = f"--target-lsn={marks['last'].lsn}"
    for name, offset in (
        ("volume-00.tar.zst", (directory / "volume-00.tar.zst").stat().st_size // 2),
        ("volume-01.tar.zst", -9),
        ("manifest.json.zst", 300),
    ):
        flip(directory / name, offset)
        assert_is_found(keeper, name)
        refused = keeper.restore(last, f"--backup-id={second}", status=7)
        assert refused.postmaster() == []
        assert not (refused.data_directory / "global/pg_control").exists()
        if name.startswith("manifest"):
            assert [entry["backup_id"] for entry in keeper.info()["unreadable"]] == [second]
            # Nobody asked for the one that cannot be read.
            restored = keeper.restore(last)
            assert restored.report["backup_id"] == first
            restored.assert_is_at(marks["last"])
        flip(directory / name, offset)
    flip(directory / "RESTORE.md", 100)
    assert_is_found(keeper, "RESTORE.md")
    keeper.restore(last).assert_is_at(marks["last"])


def test_a_flipped_bit_in_the_archive(two_fulls: tuple[Keeper, dict[str, Mark], list[str]]) -> None:
    """Verify finds it, phase 1 refuses to go there, and a server that asks for it stops before the target."""
    keeper, marks, _ = two_fulls
    alone = keeper.restore(start=False)
    damaged = max((keeper.vault / "main/wal").rglob("*.zst"))
    flip(damaged, damaged.stat().st_size // 2)
    name = damaged.name.removesuffix(".zst")
    assert_is_found(keeper, name)
    for program in (PGKEEP, PGKEEP_WAL):
        target = keeper.directory / "delivered"
        command = [program, "archive-get", f"--vault={keeper.vault}", "--cluster=main", name, target]
        assert 125 < server_user().run(command, env=environment(), check=False).returncode < 256
        assert not target.exists()
    status, [refusal] = keeper.refuse(f"--pgdata-dir={keeper.directory}/there", f"--target-lsn={marks['last'].lsn}")
    assert status == 5
    assert refusal.startswith(f"error: the archive's copy of {name} cannot be used: {name} is damaged: ")
    # Prepared while it was whole, and without pgkeep to watch it, the server stops by itself.
    pg_ctl = [keeper.cluster.installation.program("pg_ctl"), "-D", alone.data_directory, "-t", "60", "-w", "start"]
    assert server_user().run(pg_ctl, env=environment(), check=False).returncode != 0
    assert alone.postmaster() == []
    control = parse_control_file((alone.data_directory / "global/pg_control").read_bytes())
    assert control.state is ClusterState.IN_ARCHIVE_RECOVERY
    keeper.restore(f"--target-lsn={marks['first'].lsn}").assert_is_at(marks["first"])
