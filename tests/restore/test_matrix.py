"""A whole chain of backups under load, on every major, and the moments between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from pgkeep.pg.control_file import ClusterState, parse_control_file
from tests.lab.ledger import Ledger, Mark
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored

TRANSFERS = 15
"""Transfers that must be committed between a mark and a backup, at least."""

# Each archiving meets both transports, over the majors.
_TRANSPORTS = {"off": ("local", "stream"), "vault": ("stream", "local"), "directory": ("local", "stream")}


@dataclass
class Chain:
    """
    A Full, an Incremental, a Differential, an Incremental and another Full, with a mark after each of them.

    Attributes:
        marks: By name: after_full, after_incremental, after_differential, after_second_incremental, after_second_full,
            and end, behind which nothing was committed.
        ids: Of the backups: full, incremental, differential, second_incremental, second_full, last.
    """

    keeper: Keeper
    marks: dict[str, Mark] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    def restore(self, *arguments: str) -> Restored:
        """Restore with *arguments*, in which ``{name.lsn}`` stands for the LSN of that mark."""
        return self.keeper.restore(*(word.format(**self.marks, **self.ids) for word in arguments))

    def promoted(self, mark: str, *arguments: str) -> Restored:
        """Restore, and assert that the promoted server has the rows of *mark*."""
        restored = self.restore(*arguments)
        restored.assert_is_at(self.marks[mark])
        assert restored.report["promoted"]
        assert restored.report["timeline"] == restored.value("SELECT timeline_id FROM pg_control_checkpoint()") == 2
        assert restored.port == restored.value("SELECT current_setting('port')::int")
        return restored


def make_chain(keeper: Keeper, transport: str, *, incremental_content: str = "wal", archives: bool = False) -> Chain:
    """Make all backups while the ledger is busy."""
    chain, ledger = Chain(keeper), Ledger(keeper.cluster)

    def backup(name: str, level: str) -> None:
        load.wait_for(TRANSFERS)
        outcome = keeper.backup(level, transport, f"--incremental-content={incremental_content}")
        assert outcome.warnings == []
        assert outcome.report["level"] == level.capitalize()
        chain.ids[name] = outcome.report["backup_id"]
        load.wait_for(TRANSFERS)
        chain.marks[f"after_{name}"] = ledger.mark(f"after_{name}")

    with ledger.load() as load:
        for name in ("full", "incremental", "differential", "second_incremental", "second_full"):
            backup(name, name.removeprefix("second_"))
        load.wait_for(TRANSFERS)
    chain.marks["end"] = ledger.mark("end")
    if archives:
        keeper.wait_until_archived()
    else:
        # Nobody archives: WAL is held up to the end of the last job.
        chain.ids["last"] = keeper.backup("incremental", transport).report["backup_id"]
    return chain


@pytest.fixture
def chain_of(major: int, make_keeper: MakeKeeper) -> Callable[..., Chain]:
    """Return a function that makes a cluster, its vault and the chain of backups for a way of archiving."""

    def make(archive: str, **more: str) -> Chain:
        transport = _TRANSPORTS[archive][major % 2]
        return make_chain(make_keeper(archive=archive), transport, archives=archive == "vault", **more)

    return make


def test_without_archiving(chain_of: Callable[..., Chain]) -> None:
    """With archiving off, every moment between the first Full and the end of the last job can be reached."""
    chain = chain_of("off")
    consistent = chain.restore("--target-immediate", "--backup-id={second_full}")
    with consistent.connect() as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM ledger_mark")}
    assert names == {f"after_{name}" for name in ("full", "incremental", "differential", "second_incremental")}
    chain.promoted("after_full", "--target-time={after_full.time}")
    chain.promoted("after_incremental", "--target-lsn={after_incremental.lsn}")
    chain.promoted("end")
    restored = chain.restore("--target-xid={after_second_incremental.xid}", "--no-target-inclusive")
    restored.assert_is_before(chain.marks["after_second_incremental"])
    assert restored.report["backup_id"] == chain.ids["differential"]


def test_with_archive_push(chain_of: Callable[..., Chain]) -> None:
    """With archive-push the moments after the last backup are in reach, and the server can be paused at any of them."""
    chain = chain_of("vault")
    chain.promoted("after_second_full", "--target-xid={after_second_full.xid}")
    chain.promoted("after_second_incremental", "--target-time={after_second_incremental.time}", "--no-target-inclusive")
    chain.promoted("end", "--target-name=end")
    paused = chain.restore("--target-name=after_incremental", "--recovery-target-action=pause")
    paused.assert_is_at(chain.marks["after_incremental"])
    assert not paused.report["promoted"]
    assert paused.value("SELECT pg_is_in_recovery() AND current_setting('listen_addresses') = ''")
    paused.value("SELECT pg_wal_replay_resume() IS NOT NULL")
    paused.wait_until_promoted()
    paused.stop()
    paused.start()
    paused.assert_is_at(chain.marks["after_incremental"])
    assert paused.value("SELECT current_setting('port')::int") == paused.port


# Every target is above, on all majors; what a target means to a server differs between 12 and 13 only.
@pytest.mark.pg("!=14, !=15, !=16, !=17")
def test_with_archive_directory(chain_of: Callable[..., Chain]) -> None:
    """With a plain archive directory the WAL comes from there; a server can be shut down at the target."""
    chain = chain_of("directory", incremental_content="files")
    chain.promoted("after_incremental", "--target-name=after_incremental")
    chain.promoted("after_second_incremental", "--target-lsn={after_second_incremental.lsn}", "--no-target-inclusive")
    shut_down = chain.restore("--target-lsn={after_differential.lsn}", "--recovery-target-action=shutdown")
    assert shut_down.postmaster() == []
    assert not shut_down.report["promoted"]
    control = parse_control_file((shut_down.data_directory / "global/pg_control").read_bytes())
    assert control.state is ClusterState.SHUT_DOWN_IN_RECOVERY
    with (shut_down.data_directory / "postgresql.auto.conf").open("a") as file:
        file.write("recovery_target_action = 'promote'\n")
    shut_down.start()
    shut_down.wait_until_promoted()
    shut_down.assert_is_at(chain.marks["after_differential"])
