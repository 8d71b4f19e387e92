"""What a merge is made of: pages that are bad, a standby's chain, and how much memory it takes."""

from __future__ import annotations

import pytest

from tests.lab.ledger import Ledger
from tests.pitr_block.scene import backup
from tests.pitr_block.test_merge import recorded
from tests.pitr_block.test_restore import backup_id
from tests.restore.keeper import Keeper
from tests.survive.peak import peak_mib
from tests.survive.test_damage import PAGE, flip, make_table

pytestmark = pytest.mark.pg(">= 17")

LIMIT_MIB = 150


@pytest.mark.parametrize("verify_checksum", [True, False])
def test_a_page_that_is_bad_on_the_server_is_in_no_merged_full(keeper: Keeper, verify_checksum: bool) -> None:
    """Whether the backup told of the page or nobody has looked at it yet, the chain is not merged over it."""
    table = make_table(keeper.cluster, "precious")
    flip(table, 3 * PAGE + 5000)
    option = "--verify-checksum" if verify_checksum else "--no-verify-checksum"
    full = backup(keeper, "full", option).report
    # Another row of the same table: what an increment changes of it is not that page.
    keeper.cluster.sql("INSERT INTO precious SELECT 0, repeat('z', 2000) FROM generate_series(1, 200)")
    last = backup(keeper, "incremental", option).report
    assert (full["damaged_pages"], last["damaged_pages"]) == (int(verify_checksum), 0)
    outcome = keeper.run("merge")
    inside = table.relative_to(keeper.cluster.data_directory)
    what = (
        f"backup {full['backup_id']} holds 1 damaged pages"
        if verify_checksum
        else f"pgdata/{inside} has a wrong checksum in block 3"
    )
    assert (outcome.status, outcome.refusal) == (
        7,
        [
            f"error: backup {last['backup_id']} cannot be merged: {what}",
            "hint: mend the table at the server, and make a Full",
        ],
    )
    assert recorded(keeper) == [full["backup_id"], last["backup_id"]]


def test_a_standbys_chain_is_merged_into_a_full_that_comes_back(keeper: Keeper) -> None:
    """A Full and an Incremental of a standby, merged there and restored without them: every row of the moment."""
    primary, ledger = keeper.cluster, Ledger(keeper.cluster)
    standby = primary.create_standby(keeper.directory / "standby")
    with standby:
        standby.start()

        def of_standby(level: str) -> str:
            ledger.transfer(10)
            primary.sql("CHECKPOINT")
            standby.wait_for_replay(str(primary.value("SELECT pg_current_wal_flush_lsn()")))
            standby.sql("CHECKPOINT")
            report = backup(keeper, level, cluster=standby).report
            assert report["level"] == level.capitalize()
            return str(report["backup_id"])

        full = of_standby("full")
        mark = ledger.mark("before the Incremental")
        chain = [full, of_standby("incremental")]
        merged = str(keeper.must("merge", "--json").report["backup_id"])
        gone = keeper.must("expire", "--keep=1", "--json").report["removed"]
        assert sorted(one["backup_id"] for one in gone) == chain
        assert recorded(keeper) == [merged]
        primary.stop()
    restored = keeper.restore(f"--backup-id={merged}")
    with restored.connect() as connection:
        rows = connection.execute("SELECT count(*) FROM ledger_mark WHERE name = %s", [mark.name]).fetchall()
    assert rows == [(1,)]


def test_a_merge_takes_no_more_memory_for_a_large_file(keeper: Keeper) -> None:
    """A relation that is larger than the limit, in a chain: merged within 150 MiB."""
    keeper.cluster.sql("CREATE TABLE large AS SELECT g, repeat('x', 900) AS t FROM generate_series(1, 170000) AS g")
    assert keeper.cluster.value("SELECT pg_table_size('large')") > LIMIT_MIB << 20
    backup_id(keeper, "full")
    keeper.cluster.sql("UPDATE large SET t = repeat('y', 900) WHERE g < 20000")
    backup_id(keeper, "incremental")
    peak = peak_mib(keeper, "merge")
    print(f"merge: {peak:.0f} MiB")  # noqa: T201
    assert peak <= LIMIT_MIB
