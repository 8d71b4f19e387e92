"""What phase 1 knows from the WAL itself: where replay stops, and what would be reached in another way."""

from __future__ import annotations

import re
import subprocess

from pgkeep.pg.lsn import Lsn, SystemIdentifier
from pgkeep.vault.wal_archive import WalArchive
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import PGKEEP, Keeper, Outcome, Restored, environment
from tests.restore.test_targets import wal_files
from tests.restore.test_timelines import adopt


def test_a_target_that_lies_on_another_timeline(keeper: Keeper) -> None:
    """What was done on a timeline that was left is refused on the new one, with the option that leads there."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    early = ledger.mark("early")
    ledger.transfer(5)
    abandoned = ledger.mark("abandoned")
    keeper.backup("incremental", "local")
    with adopt(keeper, keeper.restore(f"--target-lsn={early.lsn}")) as promoted:
        Ledger(promoted).transfer(5)
        keeper.backup("incremental", "local", cluster=promoted)
    where = f"--pgdata-dir={keeper.directory}/copy"
    for option in (f"--target-xid={abandoned.xid}", "--target-name=abandoned"):
        status, [error, hint] = keeper.refuse(where, "--target-timeline=2", option)
        assert (status, " the WAL held, from " in error) == (8, True), error
        assert hint.startswith("hint: it can be reached on another timeline: --target-timeline=1; "), hint
        restored = keeper.restore("--target-timeline=1", option)
        restored.assert_is_at(abandoned)
        restored.stop()


def test_a_transaction_that_was_rolled_back(keeper: Keeper) -> None:
    """Replay stops at a rollback as well, and the plan says that it is one."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("before")
    with keeper.cluster.connect() as connection, connection.transaction(force_rollback=True):
        connection.execute("CREATE TABLE never AS SELECT 1 AS n")
        xid = connection.execute("SELECT txid_current()").fetchone()[0]
    ledger.transfer(5)
    keeper.backup("incremental", "local")
    plan = keeper.plan(f"--pgdata-dir={keeper.directory}/copy", f"--target-xid={xid}")
    assert re.fullmatch(f"note: transaction {xid} was rolled back at .*: replay stops there", plan[-1]), plan
    keeper.restore(f"--target-xid={xid}").assert_is_at(mark)


def test_a_subtransaction(keeper: Keeper) -> None:
    """The id of a savepoint ends with no record of its own: refused, since no server would stop there."""
    Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with keeper.cluster.connect() as connection:
        connection.execute("CREATE TABLE t (n xid)")
        with connection.transaction(), connection.transaction():
            connection.execute("INSERT INTO t VALUES (pg_current_xact_id()::xid)")
        [(top, sub)] = connection.execute("SELECT n, xmin FROM t").fetchall()
    assert top != sub
    keeper.backup("incremental", "local")
    where = f"--pgdata-dir={keeper.directory}/copy"
    status, [error, hint] = keeper.refuse(where, f"--target-xid={sub}")
    assert (status, error.startswith(f"error: transaction {sub} does not end in the WAL held")) == (8, True), error
    assert hint.endswith("; a subtransaction ends with the transaction that it belongs to")
    assert keeper.plan(where, f"--target-xid={top}")


def test_a_restore_point_that_was_made_twice(keeper: Keeper) -> None:
    """Replay stops at the first one behind the base; the plan says so, and how to get to the other."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(3)
    first = ledger.mark("first")
    keeper.cluster.sql("SELECT pg_create_restore_point('release')")
    ledger.transfer(3)
    second = ledger.mark("second")
    newest = keeper.cluster.value("SELECT pg_create_restore_point('release')::text")
    keeper.backup("incremental", "local")
    restored = keeper.restore("--target-name=release")
    restored.assert_is_at(first)
    [note] = [line for line in restored.outcome.lines if "more than once" in line]
    match = re.fullmatch(
        r'note: restore point "release" is there more than once: replay stops at the first, at (\S+); for the newest: '
        r"--target-lsn=(\S+)",
        note,
    )
    assert match is not None, note
    assert Lsn.parse(match[1]) < Lsn.parse(match[2]) < Lsn.parse(newest)
    restored.stop()
    keeper.restore(f"--target-lsn={match[2]}").assert_is_at(second)


def test_a_backup_whose_wal_is_lost(make_keeper: MakeKeeper) -> None:
    """A base that cannot become consistent is refused with the segment that it lacks; the one before it is not."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    first = keeper.backup("full", "local").report
    mark = ledger.mark("between")
    keeper.wait_until_archived()
    second = keeper.backup("full", "local").report
    segment = keeper.cluster.value("SELECT pg_walfile_name(%s)", [second["start_lsn"]])
    [path] = (keeper.vault / keeper.name / "wal").rglob(f"{segment}.zst")
    path.unlink()
    assert keeper.refuse(f"--pgdata-dir={keeper.directory}/copy") == (
        8,
        [
            (
                f"error: WAL segment {segment} is missing: backup {second['backup_id']} needs the WAL from "
                f"{Lsn.parse(second['start_lsn'])} to {Lsn.parse(second['stop_lsn'])} to become consistent"
            ),
            "hint: bring the segment back with pgkeep archive-push, or take another backup: --backup-id=ID",
        ],
    )
    restored = keeper.restore(f"--backup-id={first['backup_id']}", f"--target-lsn={mark.lsn}")
    restored.assert_is_at(mark)


def test_a_tablespace_whose_place_is_missing(make_keeper: MakeKeeper) -> None:
    """On a host that lacks the place of a later tablespace the restore says so first, and works when it is made."""
    keeper = make_keeper()
    keeper.backup("full", "local")
    place = keeper.directory / "late"
    place.mkdir()
    server_user().own(place)
    keeper.cluster.sql(f"CREATE TABLESPACE late LOCATION '{place}'")
    keeper.cluster.sql("CREATE TABLE t TABLESPACE late AS SELECT generate_series(1, 1000) AS n")
    keeper.backup("incremental", "local")
    keeper.cluster.stop()
    place.rename(place.with_name("elsewhere"))
    status, [error, _] = keeper.refuse(f"--pgdata-dir={keeper.directory}/copy", "--start")
    assert status == 8
    assert re.fullmatch(
        rf'error: the replay would make tablespace \d+ "late" in {place}, which does not exist on this host', error
    ), error
    place.mkdir()
    server_user().own(place)
    assert keeper.restore().value("SELECT sum(n) FROM t") == 500500


def test_wal_that_cannot_be_read_on(make_keeper: MakeKeeper) -> None:
    """A segment with the right seal and wrong content is no end of the WAL: what lies behind it is refused."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    early = ledger.mark("early")
    keeper.wait_until_archived()
    ledger.transfer(100)
    keeper.wait_until_archived()
    damaged = wal_files(keeper)[-1]
    late = ledger.mark("late")
    for _ in range(2):
        ledger.transfer(1)
        keeper.wait_until_archived()
    identity = int(keeper.cluster.value("SELECT system_identifier FROM pg_control_system()"))
    root = keeper.vault / keeper.name / "wal"
    archive = WalArchive(root, system_identifier=SystemIdentifier(identity), segment_size=16 << 20)
    content = b"".join(bytes(piece) for piece in archive.read(damaged))
    [path] = root.rglob(f"{damaged}.zst")
    path.unlink()
    archive.put(damaged, [content[:8192] + bytes(len(content) - 8192)])
    server_user().own(path)
    where = f"--pgdata-dir={keeper.directory}/copy"
    hints = set()
    for target in (
        [],
        [f"--target-time={late.time.isoformat()}"],
        [f"--target-xid={late.xid}"],
        ["--target-name=late"],
    ):
        status, [error, hint] = keeper.refuse(where, *target)
        assert (status, error.startswith("error: WAL cannot be read beyond ")) == (8, True), error
        hints.add(hint)
    [hint] = hints
    match = re.fullmatch(r"hint: to recover to there: (--target-lsn=\S+)", hint)
    assert match is not None, hint
    restored = keeper.restore(match[1])
    with restored.connect() as connection:
        ledger.check(connection)
        assert [name for (name,) in connection.execute("SELECT name FROM ledger_mark")] == ["early"]
    restored.stop()
    keeper.restore(f"--target-lsn={early.lsn}").assert_is_at(early)


def test_a_restore_in_place_by_root(make_keeper: MakeKeeper) -> None:
    """What the caller, mostly root, brings into the vault on the way can be read by the server, which starts alone."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(5)
    late = ledger.mark("late")
    keeper.cluster.stop()
    words = [f"--vault={keeper.vault}", f"--bin-dir={keeper.cluster.installation.bin_dir}", f"--target-lsn={late.lsn}"]
    log = f"--log-dir={keeper.directory}/log"
    done = subprocess.run(
        [str(PGKEEP), "restore", keeper.name, *words, log, "--overwrite-existing", "--no-start"],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outcome = Outcome(done.returncode, done.stdout, done.stderr.splitlines())
    restored = Restored(keeper.cluster.installation, keeper.cluster.data_directory, 0, outcome)
    keeper.restored.append(restored)
    # The first server's log was opened for it by the lab.
    server_user().own(keeper.cluster.log_file)
    restored.start()
    restored.wait_until_promoted()
    restored.assert_is_at(late)
    assert {path.stat().st_uid for path in keeper.vault.rglob("*")} == {server_user().uid}
