"""Chains in the vault: what each backup holds, and that PostgreSQL's own program makes the cluster of it again."""

from __future__ import annotations

import re
import shutil

import pytest

from pgkeep.pg.backup_label import parse_backup_label
from pgkeep.pg.backup_manifest import ManifestReader
from pgkeep.pg.lsn import Lsn
from pgkeep.streams.record import FileEntry, RecordHead
from pgkeep.vault.cluster_vault import HeldBackup
from pgkeep.vault.vault import Vault
from tests.lab.cluster import free_port
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.pitr_block.scene import backup, backup_options
from tests.restore.keeper import PGKEEP, Keeper, Outcome, Restored, environment
from tests.survive.test_damage import PAGE, flip, make_table
from tests.vault.test_recipe import commands

BLOCKS = pytest.mark.pg(">= 17")

ROLE = "backup"


def record(keeper: Keeper, backup_id: str) -> tuple[RecordHead, dict[str, FileEntry]]:
    """Return the head of a backup, and its files by their path below the backup's directory."""
    root = f"@postgresql/pitr_block/{backup_id}/"
    with Vault.open(keeper.vault).cluster(keeper.name) as cluster, cluster.open_backup(backup_id) as stored:
        entries = list(stored.files())
    return stored.head, {entry.path.removeprefix(root): entry for entry in entries}


def follow_recipe(keeper: Keeper, backup_id: str) -> Restored:
    """Run the commands of a backup's RESTORE.md, with PostgreSQL's programs in the path, and start the server."""
    directory = keeper.vault / keeper.name / "backups" / backup_id
    recipe = (directory / "RESTORE.md").read_text()
    sections = [section for section in ("Unpack", "Tablespaces") if f"## {section}\n" in recipe]
    script = "\n".join(commands(recipe, section) for section in sections)
    data_directory = keeper.directory / "rebuilt"
    for name, path in (("/path/to/new/data", data_directory), ("/path/to/chain", keeper.directory / "chain")):
        script = script.replace(name, str(path))
    path = f"{keeper.cluster.installation.bin_dir}:{environment()['PATH']}"
    server_user().run(
        ["bash", "-euo", "pipefail", "-c", f"cd {directory}\n{script}"], env=environment() | {"PATH": path}
    )
    assert not (keeper.directory / "chain").exists()
    restored = Restored(keeper.cluster.installation, data_directory, free_port(), Outcome(0, "", []))
    with (data_directory / "postgresql.conf").open("a") as file:
        file.write(f"port = {restored.port}\n")
    keeper.restored.append(restored)
    restored.start()
    return restored


@BLOCKS
def test_chain_holds_changed_blocks_and_becomes_the_cluster_again(major: int, keeper: Keeper) -> None:
    """By its RESTORE.md, a chain over two tablespaces gives every row, made by a role with the printed rights."""
    cluster = keeper.cluster
    ledger = Ledger(cluster)
    done = server_user().run([PGKEEP, "grants", ROLE, f"--major={major}", "--mode=pitr_block"], env=environment())
    with cluster.connect() as connection:
        connection.execute(done.stdout.encode())
    cluster.sql("CREATE TABLE big AS SELECT g, repeat('x', 200) AS t FROM generate_series(1, 40000) AS g")
    # Otherwise whoever reads a row next marks its page, and all of them have changed.
    cluster.sql("VACUUM big")
    cluster.sql("CREATE TABLE doomed AS SELECT g FROM generate_series(1, 1000) AS g")
    path = cluster.value("SELECT pg_relation_filepath('big')")
    doomed = cluster.value("SELECT pg_relation_filepath('doomed')")
    ids = []
    for level in ("full", "incremental", "differential", "incremental"):
        outcome = keeper.must("backup", *backup_options(keeper, level, user=ROLE))
        assert (outcome.warnings, outcome.report["level"]) == ([], level.capitalize())
        ids.append(str(outcome.report["backup_id"]))
        if level == "full":
            make_tablespace(keeper, "aside")
            cluster.sql("CREATE TABLE moved TABLESPACE aside AS SELECT g FROM generate_series(1, 5000) AS g")
            cluster.sql("DROP TABLE doomed")
        cluster.sql("UPDATE big SET t = repeat('y', 200) WHERE g % 10000 = 7")
        cluster.sql("DELETE FROM moved WHERE g % 50 = 0")
        ledger.transfer(20)
    full, first, differential, second = (record(keeper, backup_id) for backup_id in ids)
    heads = [head for head, _ in (full, first, differential, second)]
    assert [head.base for head in heads] == ["", ids[0], ids[0], ids[2]]
    assert [head.details.get("chain", []) for head in heads] == [[], [ids[0]], [ids[0]], [ids[0], ids[2]]]
    assert all(head.files_from == head.backup_id and head.references == [] for head in heads)
    # Whole in the Full, a few blocks in the others; what was dropped is in none of those.
    directory, _, name = path.rpartition("/")
    whole = full[1][f"pgdata/{path}"].size
    for _, files in (first, differential, second):
        assert f"pgdata/{path}" not in files
        assert files[f"pgdata/{directory}/INCREMENTAL.{name}"].size < whole / 20
        assert f"pgdata/{doomed}" not in files
    assert any(re.fullmatch(r"tblspc/\d+/PG_.*/\d+/\d+", path) for path in first[1])
    assert any(re.fullmatch(r"tblspc/\d+/PG_.*/\d+/INCREMENTAL\.\d+", path) for path in second[1])
    check_labels(keeper, heads)
    mark = ledger.mark("end")
    last = str(backup(keeper, "incremental").report["backup_id"])
    cluster.stop()
    shutil.rmtree(keeper.directory / "aside")
    follow_recipe(keeper, last).assert_is_at(mark)


def make_tablespace(keeper: Keeper, name: str) -> None:
    """Make a tablespace in a directory of its own."""
    location = keeper.directory / name
    location.mkdir()
    server_user().own(location)
    keeper.cluster.sql(f"CREATE TABLESPACE {name} LOCATION '{location}'")


def check_labels(keeper: Keeper, heads: list[RecordHead]) -> None:
    """Assert that each label leads to the base's start, and that each manifest is the server's and of that backup."""
    starts = {head.backup_id: Lsn.parse(head.start_lsn) for head in heads}
    with Vault.open(keeper.vault).cluster(keeper.name) as cluster:
        for head in heads:
            label = parse_backup_label(head.backup_label)
            assert label.incremental_from_lsn == starts.get(head.base)
            reader = ManifestReader()
            for piece in HeldBackup(cluster, head).manifest():
                reader.feed(piece)
            end = reader.finish()
            assert [(str(one.start_lsn), str(one.end_lsn)) for one in end.wal_ranges] == [
                (head.start_lsn, head.stop_lsn)
            ]


def test_full_alone_becomes_the_cluster_again(keeper: Keeper) -> None:
    """By its RESTORE.md a Full gives every row; it verifies, and nothing was put into a temporary file."""
    ledger = Ledger(keeper.cluster)
    mark = ledger.mark("end")
    # Nobody, not even the owner, can make a file there.
    closed = keeper.directory / "tmp"
    closed.mkdir(mode=0o500)
    server_user().own(closed)
    options = [*backup_options(keeper, "full"), f"--tmpdir={closed}"]
    backup_id = str(keeper.must("backup", *options, env={"TMPDIR": str(closed)}).report["backup_id"])
    names = {re.sub(r"\d+", "N", file.name) for file in (keeper.vault / keeper.name / "backups").glob("*/*")}
    assert names == {"RESTORE.md", "manifest.json.zst", "volume-N.tar.zst"}
    report = keeper.must("verify", "--json").report
    assert report["is_clean"]
    assert report["pages_checked"] > 2000
    keeper.cluster.stop()
    follow_recipe(keeper, backup_id).assert_is_at(mark)


def test_a_page_that_is_bad_below_is_told_of_above(keeper: Keeper) -> None:
    """What builds on a backup with a damaged page warns of it, since nobody reads that page again."""
    table = make_table(keeper.cluster, "precious")
    flip(table, 3 * PAGE + 5000)
    full = backup(keeper, "full")
    assert full.report["damaged_pages"] == 1
    verified = keeper.must("verify", "--json").report
    assert (verified["is_clean"], verified["pages_known"]) == (True, 1)
    for _ in range(2):
        outcome = backup(keeper, "incremental")
        assert outcome.report["level"] == "Incremental"
        assert outcome.report["damaged_pages"] == 0
        [warning] = outcome.report["warnings"]
        assert warning == (
            f"backup {full.report['backup_id']}, which this one builds on, holds damaged pages: what was not written "
            "since is restored damaged"
        )
    reasons = keeper.must("expire", "--keep=1")
    assert any("no pitr_block backup expires" in line for line in reasons.lines), reasons.lines
