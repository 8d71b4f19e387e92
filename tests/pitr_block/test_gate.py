"""The gate before a Differential or Incremental: each reason not to build on a base, on a server in that state."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable

import pytest

from pgkeep.errors import ServerError, SettingsError
from pgkeep.modes.pitr_block import check_server
from pgkeep.server import queries
from pgkeep.server.connection import ConnectionTarget, Server
from pgkeep.streams.record import Level
from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.server_user import server_user
from tests.lab.snapshot import put_snapshot_back, take_snapshot
from tests.pitr_block.conftest import SUMMARIZING
from tests.pitr_block.scene import backup, backup_options, planned
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper

pytestmark = pytest.mark.pg(">= 17")


def where(cluster: Cluster) -> str:
    """Return how messages call the server."""
    return f"{cluster.socket_directory}:{cluster.port} as postgres"


def made(keeper: Keeper, level: str = "full", **more: Cluster) -> str:
    """Make a backup and return its id."""
    return str(backup(keeper, level, **more).report["backup_id"])


def set_summarizing(cluster: Cluster, *, to: str) -> None:
    """Switch the summarizer on or off, and wait until it has begun or ended."""
    cluster.sql(f"ALTER SYSTEM SET summarize_wal = {to}")
    cluster.reload()
    wait_for(
        lambda: bool(
            cluster.value(
                "SELECT count(*) = %s FROM pg_stat_activity WHERE backend_type = 'walsummarizer'", [int(to == "on")]
            )
        ),
        f"the summarizer is {to}",
    )


def test_summaries_that_are_not_there(major: int, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without summaries, or with a gap in them, a job is made as a Full and says what to set, or fails as asked."""
    cluster = keeper.cluster
    base = made(keeper)
    start = keeper.info()["backups"][0]["start_lsn"]
    assert planned(keeper).is_incremental
    # Switched off.
    set_summarizing(cluster, to="off")
    off = f"summarize_wal is off at {where(cluster)}"
    assert planned(keeper).reason == f"{off}, so nobody knows which blocks have changed"
    with pytest.raises(SettingsError) as refused:
        planned(keeper, fail_without_base=True)
    assert refused.value.message == f"Incremental refused: {off}, so nobody knows which blocks have changed"
    assert refused.value.hint == (
        "ALTER SYSTEM SET summarize_wal = on, SELECT pg_reload_conf(), and make a Full; or set on_missing_base=full"
    )
    assert planned(keeper, Level.FULL).warned == [
        f"{off}: until it is on, every Differential and Incremental is made as a Full"
    ]
    # Switched on again when WAL has gone that nobody had summarized.
    for _ in range(3):
        cluster.switch_wal()
        cluster.sql("CHECKPOINT")
    set_summarizing(cluster, to="on")
    found = planned(keeper).reason
    assert found.startswith("no WAL summaries from 0/"), found
    needed = f" on timeline 1, needed since backup {base} starts at {start}"
    cause = "summarize_wal was off or wal_level minimal meanwhile, or somebody has removed them"
    assert found.endswith(f"{needed}: {cause}"), found
    # As if the backup were so old that the server has removed them by itself.
    monkeypatch.setattr(queries, "server_time", lambda _: dt.datetime.now(dt.UTC) + dt.timedelta(days=31))
    too_old = planned(keeper).reason
    assert too_old.endswith(f"{needed}; the server keeps them for 30 days (wal_summary_keep_time)"), too_old
    monkeypatch.undo()
    outcome = keeper.must("backup", *backup_options(keeper, "incremental"))
    assert outcome.report["level"] == "Full"
    assert outcome.warnings[0] == f"making a Full instead of the Incremental asked for: {found}"
    assert outcome.report["warnings"] == outcome.warnings
    assert planned(keeper).is_incremental


def too_soon(keeper: Keeper, kept: str, wanted: str) -> str:
    """Return the warning about a server that keeps summaries for *kept* where *wanted* is needed."""
    return (
        f"wal_summary_keep_time is {kept} at {where(keeper.cluster)}, shorter than pitr_block_summary_days, {wanted}: "
        "a backup whose base is older finds no summaries and is made as a Full"
    )


def test_summaries_that_go_too_soon(keeper: Keeper) -> None:
    """A server that keeps summaries for less than pitr_block_summary_days gives a warning, and one for ever none."""
    made(keeper)
    assert planned(keeper, summary_days=30).warned == []
    assert planned(keeper, summary_days=31).warned == [too_soon(keeper, "30 days", "31 days")]
    keeper.cluster.sql("ALTER SYSTEM SET wal_summary_keep_time = '90min'")
    keeper.cluster.reload()
    wait_for(lambda: planned(keeper, summary_days=1).warned != [], "the setting has arrived")
    assert planned(keeper, Level.FULL, summary_days=1).warned == [too_soon(keeper, "90 min", "1 day")]
    keeper.cluster.sql("ALTER SYSTEM SET wal_summary_keep_time = 0")
    keeper.cluster.reload()
    wait_for(lambda: planned(keeper, summary_days=365).warned == [], "the setting has arrived")


def test_another_state_of_the_cluster(major: int, keeper: Keeper) -> None:
    """Checksums switched, and a new timeline, make a Full of an Incremental."""
    cluster = keeper.cluster
    base = made(keeper)
    cluster.stop()
    server_user().run([cluster.installation.program("pg_checksums"), "--disable", "-D", cluster.data_directory])
    cluster.start()
    assert planned(keeper).reason == f"data checksums are off, they were on at backup {base}"
    base = made(keeper, "incremental")
    assert base.endswith("-F")
    cluster.stop()
    server_user().run([cluster.installation.program("pg_checksums"), "--enable", "-D", cluster.data_directory])
    # An archive recovery that finds nothing ends at once, on a timeline of its own.
    (cluster.data_directory / "recovery.signal").touch()
    server_user().own(cluster.data_directory / "recovery.signal")
    cluster.configure({"restore_command": "/bin/false"})
    cluster.start()
    wait_for(lambda: not cluster.value("SELECT pg_is_in_recovery()"), "recovery is over")
    version = cluster.value("SHOW server_version").partition(" ")[0]
    assert planned(keeper).reason == (
        f"the server went from timeline 1 to 2 since backup {base}, and after a promotion the WAL summaries of "
        f"PostgreSQL {version} can be wrong"
    )
    made(keeper)
    assert planned(keeper).is_incremental


def test_another_cluster(make_keeper: MakeKeeper, make_cluster: MakeCluster) -> None:
    """A server that was initialised anew, or put back to an earlier state, does not go on from the old backups."""
    keeper = make_keeper(settings=SUMMARIZING)
    base = made(keeper)
    other = make_cluster("other", settings=SUMMARIZING)
    identifiers = [
        cluster.value("SELECT system_identifier FROM pg_control_system()") for cluster in (keeper.cluster, other)
    ]
    assert planned(keeper, cluster=other).reason == (
        f"backup {base} is of another cluster: system identifier {identifiers[0]}, the server's is {identifiers[1]}"
    )
    cluster = keeper.cluster
    take_snapshot(cluster)
    cluster.sql("CREATE TABLE later AS SELECT generate_series(1, 100000) AS n")
    base = made(keeper)
    last = keeper.info()["backups"][-1]
    put_snapshot_back(cluster)
    found = planned(keeper).reason
    assert found.startswith(f"backup {base} ends at {last['stop_lsn']}, but the server's WAL at 0/"), found
    assert found.endswith(": its files were put back to an earlier state"), found
    # When as much has been written as there was, summaries cover all of it; they are of other WAL.
    is_there = "SELECT pg_current_wal_flush_lsn() > %s::pg_lsn"
    cluster.sql("CREATE TABLE other (text text)")
    while not cluster.value(is_there, [last["stop_lsn"]]):
        cluster.sql("INSERT INTO other SELECT repeat('x', 500) FROM generate_series(1, 1000)")
    expected = (
        f"backup {base} starts at {last['start_lsn']}, but no checkpoint of the server's WAL does: "
        "its files were put back to an earlier state"
    )
    assert planned(keeper).reason == expected
    cluster.sql("CHECKPOINT")
    assert planned(keeper).reason == expected


def test_nothing_between_base_and_increment(keeper: Keeper) -> None:
    """Where nothing has happened since the base, and all summaries have gone, an Incremental builds on it."""
    made(keeper)
    assert planned(keeper).is_incremental
    cluster = keeper.cluster
    gone = "SELECT summarized_lsn = %s::pg_lsn FROM pg_get_wal_summarizer_state()"
    wait_for(lambda: cluster.value(gone, [keeper.info()["backups"][0]["start_lsn"]]), "the base's start is summarized")
    for file in (cluster.data_directory / "pg_wal/summaries").iterdir():
        file.unlink()
    assert planned(keeper).is_incremental


def test_a_damaged_summary(major: int, keeper: Keeper) -> None:
    """The server tells of it when the backup begins; the job fails, says what helps, and that does help."""
    made(keeper)
    cluster = keeper.cluster
    cluster.sql("CREATE TABLE later AS SELECT 1 AS n")
    cluster.sql("CHECKPOINT")
    until = cluster.value("SELECT redo_lsn FROM pg_control_checkpoint()")
    wait_for(
        lambda: cluster.value("SELECT summarized_lsn >= %s::pg_lsn FROM pg_get_wal_summarizer_state()", [until]),
        "the table is in a summary",
    )
    newest = max((cluster.data_directory / "pg_wal/summaries").iterdir(), key=lambda path: path.name)
    content = bytearray(newest.read_bytes())
    # Its checksum.
    content[-1] ^= 1
    newest.write_bytes(content)
    outcome = keeper.run("backup", *backup_options(keeper, "incremental"))
    assert outcome.status == 4
    error, hint = outcome.refusal
    assert error.startswith(
        f'error: PostgreSQL at {where(cluster)} refused: file "pg_wal/summaries/{newest.name}" has wrong checksum: '
    )
    assert hint == "hint: make a Full, for which the server reads no WAL summaries"
    made(keeper)
    assert backup(keeper, "incremental").report["level"] == "Incremental"


def _lose_record(keeper: Keeper, backup_id: str) -> None:
    shutil.rmtree(keeper.vault / keeper.name / "backups" / backup_id)


def _damage_volumes(keeper: Keeper, backup_id: str) -> None:
    for volume in (keeper.vault / keeper.name / "backups" / backup_id).glob("volume-*"):
        content = bytearray(volume.read_bytes())
        for offset in range(40, len(content) - 60, 1000):
            content[offset] ^= 0xFF
        volume.write_bytes(content)


def test_broken_chain(keeper: Keeper) -> None:
    """Nothing to build on, a manifest that cannot be read, a member of the chain that is gone: each is a Full."""
    assert planned(keeper).reason == "there is no backup to build on"
    full, first, second = made(keeper), made(keeper, "incremental"), made(keeper, "incremental")
    assert planned(keeper).is_incremental
    hurts: list[tuple[Callable[[Keeper, str], None], str, str]] = [
        (_damage_volumes, second, f"the manifest of backup {second} cannot be used: backup {second} is damaged: "),
        (_lose_record, first, f"backup {second} needs backup {first}, which is not there"),
    ]
    for hurt, backup_id, reason in hurts:
        hurt(keeper, backup_id)
        assert planned(keeper).reason.startswith(reason)
    differential = planned(keeper, Level.DIFFERENTIAL)
    assert differential.plan is not None
    assert differential.plan.base is not None
    assert differential.plan.base.head.backup_id == full
    assert "Differential refused: there is no backup to build on" in refusal_without(keeper, full)


def refusal_without(keeper: Keeper, backup_id: str) -> str:
    """Return how a Differential that must not become a Full is refused when *backup_id* is gone."""
    _lose_record(keeper, backup_id)
    options = backup_options(keeper, "differential")
    outcome = keeper.run("backup", *options, "--on-missing-base=fail")
    assert (outcome.status, outcome.stdout) == (3, "")
    return "\n".join(outcome.refusal)


def test_standby_without_a_restartpoint(major: int, keeper: Keeper) -> None:
    """A standby is backed up when it has made a restartpoint after the end of the base, and not before."""
    primary = keeper.cluster
    standby = primary.create_standby(keeper.directory / "standby")
    with standby:
        standby.start()
        # The base's end lies behind the checkpoint that the standby knows of.
        base = made(keeper)
        stop = keeper.info()["backups"][0]["stop_lsn"]
        standby.wait_for_replay(stop)
        with pytest.raises(ServerError) as refused:
            planned(keeper, cluster=standby, timeout_seconds=1)
        found = standby.value("SELECT redo_lsn FROM pg_control_checkpoint()")
        high, _, low = found.partition("/")
        assert refused.value.message == (
            f"the last restartpoint of the standby at {where(standby)} is {high}/{int(low, 16):08X}, backup {base} "
            f"ends at {stop}: no incremental backup can start there"
        )
        assert refused.value.hint == (
            "run CHECKPOINT on the primary, or wait for its next checkpoint, then run the backup again"
        )
        primary.sql("CREATE TABLE one AS SELECT 1 AS n")
        primary.sql("CHECKPOINT")
        outcome = backup(keeper, "incremental", cluster=standby)
        assert (outcome.report["level"], outcome.report["base"]) == ("Incremental", base)


@pytest.fixture
def old_keeper(make_keeper: MakeKeeper) -> Keeper:
    """A server of 15, the newest of the lab that makes no incremental backups by itself."""
    return make_keeper(major=15)


def test_old_server(old_keeper: Keeper) -> None:
    """A server that knows no incremental backups is refused, and never quietly backed up otherwise."""
    outcome = old_keeper.run("backup", *backup_options(old_keeper, "full"))
    version = old_keeper.cluster.value("SHOW server_version").partition(" ")[0]
    assert (outcome.status, outcome.stdout) == (4, "")
    assert outcome.refusal == [
        f"error: mode pitr_block needs PostgreSQL 17 or later, {where(old_keeper.cluster)} is {version}",
        "hint: use mode=pitr, whose Incrementals are WAL or changed files",
    ]


@pytest.mark.parametrize(("name", "value"), [("block_size", "16384"), ("segment_size", "512MB")])
def test_other_builds(shared_cluster: Cluster, name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose files a restore could not roll forward is refused before the first byte."""
    known = queries.setting
    monkeypatch.setattr(queries, "setting", lambda server, asked: value if asked == name else known(server, asked))
    with (
        Server.open(ConnectionTarget(**shared_cluster.connection_arguments())) as server,
        pytest.raises(ServerError) as refused,
    ):
        check_server(server)
    assert f"built with {name}" in refused.value.message
    assert refused.value.message.endswith(f"has {value}")


def test_this_build(shared_cluster: Cluster) -> None:
    """A server built as all packages are is fine."""
    with Server.open(ConnectionTarget(**shared_cluster.connection_arguments())) as server:
        check_server(server)
