"""Chains merged into a Full in the vault: it is what pg_combinebackup makes, and needs nobody's help any more."""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgkeep.errors import BackupUnusable, PgkeepError
from pgkeep.jobs.merge import merge
from pgkeep.pg.incremental_file import incremental_path
from pgkeep.vault.vault import Vault
from tests.lab.cluster import wait_for
from tests.lab.server_user import server_user
from tests.pitr_block.conftest import SUMMARIZING
from tests.pitr_block.scene import backup, backup_options
from tests.pitr_block.test_restore import backup_id, begin, live, make_tablespace, whole_chain
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, environment
from tests.survive.half_written import SETTINGS, backup_begun, half_written, is_half_written
from tests.survive.job import Job
from tests.survive.test_damage import flip

pytestmark = pytest.mark.pg(">= 17")


def recorded(keeper: Keeper) -> list[str]:
    """Return the ids of the backups that have a record, oldest first."""
    found = (keeper.vault / keeper.name / "backups").glob("*/manifest.json.zst")
    return sorted(path.parent.name for path in found)


def unpacked(keeper: Keeper, ids: list[str], name: str) -> Path:
    """Unpack the volumes of some backups below a new directory, each in one of its id."""
    top = keeper.directory / name
    backups = keeper.vault / keeper.name / "backups"
    lines = [f"mkdir -m 700 {top}"]
    lines += [f"zstdcat {backups / one}/volume-*.tar.zst | tar -xi -C {top}" for one in ids]
    server_user().run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)], env=environment())
    return top


def tree(root: Path) -> dict[str, Path | None]:
    """Return what is beneath *root*, but for WAL and the manifest; None stands for a directory."""
    found: dict[str, Path | None] = {}
    for directory, directories, files in os.walk(root):
        for entry in directories + files:
            inside = os.path.relpath(os.path.join(directory, entry), root)
            if inside != "backup_manifest" and not inside.startswith("pg_wal/"):
                found[inside] = root / inside if entry in files else None
    return found


def assert_is_what_combinebackup_makes(keeper: Keeper, chain: list[str], merged: str) -> None:
    """Assert that the files of *merged* are those that PostgreSQL makes of *chain*, and are as its manifest says."""
    installation = keeper.cluster.installation
    parts, combined = unpacked(keeper, chain, "parts"), keeper.directory / "combined"
    program = installation.program("pg_combinebackup")
    server_user().run([program, *(parts / one for one in chain), "-o", combined, "--no-sync"], env=environment())
    ours = unpacked(keeper, [merged], "ours") / merged
    found, expected = tree(ours), tree(combined)
    assert found.keys() ^ expected.keys() == set()
    for inside, path in expected.items():
        mine = found[inside]
        assert (mine is None) == (path is None), inside
        assert mine is None or path is None or filecmp.cmp(mine, path, shallow=False), inside
    server_user().run([installation.program("pg_verifybackup"), "--no-parse-wal", ours], env=environment())


def test_merged_full_is_what_pg_combinebackup_makes_and_replaces_the_chain(major: int, keeper: Keeper) -> None:
    """Byte by byte the same; without the chain, it and an Incremental that builds on it give every row."""
    ledger, cluster = begin(keeper), keeper.cluster
    make_tablespace(keeper, "doomed")
    cluster.sql("CREATE UNLOGGED TABLE unlogged AS SELECT g FROM generate_series(1, 500) AS g")
    chain = [backup_id(keeper, "full")]
    live(keeper, ledger, 1)
    cluster.sql("DROP TABLE in_doomed")
    cluster.sql("DROP TABLESPACE doomed")
    space = make_tablespace(keeper, "later")
    chain.append(backup_id(keeper, "incremental"))
    live(keeper, ledger, 2)
    cluster.sql("DELETE FROM big WHERE g > 20000")
    cluster.sql("VACUUM (TRUNCATE) big")
    cluster.sql("DELETE FROM in_later WHERE g % 100 = 0")
    chain.append(backup_id(keeper, "incremental"))
    outcome = keeper.must("merge", "--json")
    merged = str(outcome.report["backup_id"])
    assert outcome.report["merged_from"] == chain
    assert outcome.report["pages_checked"] > 1000
    assert f"merging 3 backups into {merged}: {', '.join(chain)}" in outcome.lines
    assert_is_what_combinebackup_makes(keeper, chain, merged)

    first, _, of_increment, last = keeper.info()["backups"]
    assert (last["backup_id"], last["level"], last["base"], last["merged_from"]) == (merged, "Full", "", chain)
    same = ("start_lsn", "stop_lsn", "stop_time", "wal_stop", "timeline", "begin_time")
    assert [last[name] for name in same] == [of_increment[name] for name in same]
    assert first["merged_from"] == []

    live(keeper, ledger, 3)
    mark = ledger.mark("later")
    later = backup(keeper, "incremental").report
    assert (later["level"], later["base"], later["warnings"]) == ("Incremental", merged, [])
    gone = keeper.must("expire", "--keep=1", "--json").report["removed"]
    assert [removed["backup_id"] for removed in gone] == chain[::-1]
    cluster.stop()
    restored = keeper.restore(f"--tablespace-map={space}:{keeper.directory}/mapped")
    assert f"  rolled forward in place: {merged}, {later['backup_id']}" in restored.outcome.lines
    restored.assert_is_at(mark)


def test_killed_merge_leaves_nothing_or_all_of_it(keeper: Keeper) -> None:
    """Killed before the WAL, the recipe, the record and behind it: the chain is untouched, and the Full is whole."""
    ids, _ = whole_chain(keeper, ("full", "incremental"))
    for point in [("open", "/wal"), ("os.link", "RESTORE.md")]:
        with Job(keeper, "merge", at=("KILL", 1, *point)) as job:
            outcome = job.end()
        assert outcome.status == -signal.SIGKILL, f"{point} was not reached\n" + "\n".join(outcome.lines)
        assert recorded(keeper) == ids, point
    with Job(keeper, "merge", at=("STOP", 1, "os.link", "manifest.json")) as job:
        job.wait_until_stopped()
        # While it is made, no backup is, and nothing expires.
        for verb, arguments in (("backup", backup_options(keeper, "incremental")), ("expire", ["--keep=1"])):
            outcome = keeper.run(verb, *arguments)
            assert outcome.status == 6
            assert f"by merge (process {job.pid} on " in outcome.refusal[0]
        job.kill()
    assert recorded(keeper) == ids
    with Job(keeper, "merge", at=("KILL", 1, "os.remove", "/writing")) as job:
        assert job.end().status == -signal.SIGKILL
    merged = recorded(keeper)[-1]
    assert recorded(keeper) == [*ids, merged]
    report = json.loads(keeper.must("verify", f"--backup-id={merged}", "--json").stdout)
    assert (report["is_clean"], report["backups"]) == (True, [merged])


def refusal(keeper: Keeper, backup_id: str = "") -> PgkeepError:
    """Return why a merge is refused."""
    with pytest.raises(PgkeepError) as caught, Vault.open(keeper.vault).cluster(keeper.name) as cluster:
        merge(cluster, backup_id=backup_id, workers=2, compression_level=1, say=lambda _: None, watch=lambda sink: sink)
    return caught.value


@contextlib.contextmanager
def damaged(keeper: Keeper, backup_id: str, path: str) -> Iterator[str]:
    """Change one byte of what is stored of a file; yield the name of the volume that it is in."""
    with Vault.open(keeper.vault).cluster(keeper.name) as cluster:
        entry = cluster.file_index(backup_id).get(f"@postgresql/pitr_block/{backup_id}/pgdata/{path}")
    assert entry is not None
    assert entry.at is not None
    volume = keeper.vault / keeper.name / "backups" / backup_id / f"volume-{entry.at.volume:02}.tar.zst"
    flip(volume, entry.at.offset + entry.at.header_length + entry.at.frames[0] // 2)
    yield volume.name
    flip(volume, entry.at.offset + entry.at.header_length + entry.at.frames[0] // 2)


def test_what_cannot_be_merged_is_refused(keeper: Keeper) -> None:
    """Nothing to merge, another mode, a damaged or missing member, merged already; an older part is merged in place."""
    none = keeper.run("merge")
    assert (none.status, none.refusal) == (
        6,
        ["error: cluster main has no backup of mode pitr_block to merge", 'hint: run "pgkeep info main"'],
    )
    plain = str(keeper.backup("full", "stream").report["backup_id"])
    begin(keeper)
    # Otherwise whoever reads a row next marks its page, and all of them have changed.
    keeper.cluster.sql("VACUUM (FREEZE) big")
    table = str(keeper.cluster.value("SELECT pg_relation_filepath('big')"))
    ids = [backup_id(keeper, "full")]
    keeper.cluster.sql("UPDATE big SET t = 'changed' WHERE g = 1000")
    ids.append(backup_id(keeper, "incremental"))
    keeper.cluster.sql("UPDATE big SET t = 'changed' WHERE g = 9000")
    # The next one must not have the second behind it, which will be the merged one's.
    second = time.time() + 2
    wait_for(lambda: time.time() > second, "a later second")
    ids.append(backup_id(keeper, "incremental"))
    assert str(refusal(keeper, plain)) == (
        f"backup {plain} is of mode pitr, expected pitr_block: only chains of that mode are merged"
    )
    full = refusal(keeper, ids[0])
    assert str(full) == f"nothing to merge: backup {ids[0]} is a Full"
    assert full.hint == "make a Differential or Incremental that builds on it, or name one with --backup-id"
    backups = keeper.vault / keeper.name / "backups"
    for number, path in enumerate([table, incremental_path(table), incremental_path(table)]):
        with damaged(keeper, ids[number], path) as volume:
            error = refusal(keeper)
        assert isinstance(error, BackupUnusable)
        assert error.message.startswith(
            f"backup {ids[number]} is damaged: @postgresql/pitr_block/{ids[number]}/pgdata/{path} in {volume} at "
        )
    aside = keeper.directory / "aside"
    (backups / ids[1]).rename(aside)
    missing = refusal(keeper)
    assert isinstance(missing, BackupUnusable)
    assert missing.message == (
        f"backup {ids[2]} cannot be merged: backup {ids[2]} builds on backup {ids[1]}, which is not there"
    )
    aside.rename(backups / ids[1])
    assert recorded(keeper) == sorted(os.listdir(backups)) == [plain, *ids]

    merged = str(keeper.must("merge", f"--backup-id={ids[1]}", "--json").report["backup_id"])
    assert recorded(keeper) == [plain, *ids[:2], merged, ids[2]]
    assert str(refusal(keeper, ids[1])) == (f"nothing to merge: backup {ids[1]} has been merged already, as {merged}")


def test_a_page_read_half_way_through_its_first_write(make_keeper: MakeKeeper) -> None:
    """It is no damage where WAL writes it anew, and refused where it does not."""
    keeper = make_keeper(settings=SETTINGS | SUMMARIZING)
    begin(keeper)
    chain = [backup_id(keeper, "full")]
    keeper.cluster.sql("UPDATE big SET t = 'once' WHERE ctid = '(3,1)'")
    keeper.cluster.sql("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 60) FROM generate_series(1, 40000) AS n")
    path = half_written(keeper.cluster, "big", block=3)
    with backup_begun(keeper, *backup_options(keeper, "incremental")):
        keeper.cluster.sql("DELETE FROM big WHERE ctid = '(3,2)'")
        assert is_half_written(path, block=3)
    chain.append(str(keeper.info()["backups"][-1]["backup_id"]))
    rows = keeper.cluster.sql("SELECT g, t FROM big ORDER BY g")
    merged = keeper.must("merge", "--json").report
    assert merged["merged_from"] == chain
    with keeper.restore(f"--backup-id={merged['backup_id']}").connect() as connection:
        assert connection.execute("SELECT g, t FROM big ORDER BY g").fetchall() == rows

    keeper.cluster.sql("DELETE FROM big WHERE ctid = '(3,3)'")
    half_written(keeper.cluster, "big", block=3)
    damaged = backup_id(keeper, "incremental")
    error = refusal(keeper)
    inside = path.relative_to(keeper.cluster.data_directory)
    assert str(error) == (f"backup {damaged} cannot be merged: pgdata/{inside} has a wrong checksum in block 3")
