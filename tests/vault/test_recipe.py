"""RESTORE.md: its commands, run as they stand there, rebuild the backup without pgkeep."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from pgkeep.streams.item import ItemRole, UnchangedItem
from pgkeep.streams.record import Level, RecordHead, Tablespace, WalRange
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.recipe import render_recipe
from tests.archive.made_wal import segment_at, wal_of
from tests.vault.made_items import (
    DIFFERENTIAL,
    FULL,
    INCREMENTAL,
    ROOT,
    MadeStreamed,
    detached,
    directory,
    head_of,
    header_of,
    streamed,
)
from tests.vault.stories import SYSTEM_IDENTIFIER, store


def commands(recipe: str, section: str) -> str:
    """Return the commands of one section of a recipe: its indented lines."""
    found = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", recipe, re.MULTILINE | re.DOTALL)
    assert found is not None
    return "\n".join(line[4:] for line in found[1].splitlines() if line.startswith("    "))


def follow(cluster: ClusterVault, backup_id: str, section: str, data_directory: Path) -> None:
    """Run the commands of one section of a backup's RESTORE.md in its directory."""
    recipe = (cluster.backup_directory(backup_id) / "RESTORE.md").read_text()
    script = commands(recipe, section)
    for name in ("expected", "found"):
        script = script.replace(f"/tmp/{name}", str(data_directory.parent / name))
    script = script.replace("/path/to/new/data", str(data_directory))
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=cluster.backup_directory(backup_id), check=True, timeout=60
    )


def laid_down(data_directory: Path) -> dict[str, bytes]:
    """Return the files beneath a directory with their contents."""
    return {
        str(path.relative_to(data_directory)): path.read_bytes() for path in data_directory.rglob("*") if path.is_file()
    }


def wal_item(number: int) -> MadeStreamed:
    """Return a WAL segment that a backup needs."""
    segment = segment_at(number)
    header = streamed(f"@postgresql/pitr/wal/{segment.name}", 1 << 20, role=ItemRole.BACKUP_WAL).header
    return MadeStreamed(header, wal_of(segment, system=SYSTEM_IDENTIFIER))


def test_the_recipe_of_a_full_rebuilds_it(cluster: ClusterVault, tmp_path: Path) -> None:
    """All files are there, with the WAL in pg_wal."""
    label, wal = streamed("@postgresql/pitr/backup_label", 60), wal_item(8)
    data = [directory(f"{ROOT}/base"), detached(f"{ROOT}/base/5", 9 << 20), detached(f"{ROOT}/PG_VERSION", 3)]
    store(cluster, [*data, label, wal])
    place = tmp_path / "data"
    follow(cluster, FULL, "Unpack", place)
    assert laid_down(place) == {
        "base/5": data[1].content,
        "PG_VERSION": data[2].content,
        "backup_label": label.content,
        f"pg_wal/{segment_at(8).name}": wal.content,
    }
    assert place.stat().st_mode & 0o777 == 0o700


def test_the_recipe_of_a_differential_merges_and_removes(cluster: ClusterVault, tmp_path: Path) -> None:
    """Unchanged files come from the Full, changed ones from the Differential, and dropped ones are gone."""
    full = [detached(f"{ROOT}/base/{name}", 3000) for name in ("same", "changed", "dropped", "we ird")]
    moved = "@postgresql/pitr/tblspc/16385/PG_18_202506291/5/16386"
    store(cluster, [directory(f"{ROOT}/base"), *full, detached(moved, 500), wal_item(3)])
    changed = detached(f"{ROOT}/base/changed", 4000)
    unchanged = [
        UnchangedItem(header_of(path, size), FULL) for path, size in ((f"{ROOT}/base/same", 3000), (moved, 500))
    ]
    wal = wal_item(8)
    head = head_of(DIFFERENTIAL, base=FULL)
    store(cluster, [directory(f"{ROOT}/base"), *unchanged, changed, wal], DIFFERENTIAL, head=head)
    place = tmp_path / "data"
    follow(cluster, DIFFERENTIAL, "Unpack", place)
    assert laid_down(place) == {
        "base/same": full[0].content,
        "base/changed": changed.content,
        "pg_tblspc/16385/PG_18_202506291/5/16386": detached(moved, 500).content,
        f"pg_wal/{segment_at(8).name}": wal.content,
    }


def test_tablespaces_are_moved_to_their_places(cluster: ClusterVault, tmp_path: Path) -> None:
    """Each tablespace ends where tablespace_map says, and the place below pg_tblspc is free for the server's link."""
    location = tmp_path / "a b"
    item = detached("@postgresql/pitr/tblspc/16385/PG_18_202506291/5/16386", 500)
    head = head_of(FULL)
    head.tablespaces.append(Tablespace(oid=16385, name="fast", location=str(location)))
    head.tablespaces.append(Tablespace(oid=16390, name="inside"))
    store(cluster, [directory(f"{ROOT}/pg_tblspc"), item], head=head)
    place = tmp_path / "data"
    follow(cluster, FULL, "Unpack", place)
    follow(cluster, FULL, "Tablespaces", place)
    assert laid_down(location) == {"PG_18_202506291/5/16386": item.content}
    assert list((place / "pg_tblspc").iterdir()) == []


def test_the_link_of_a_tablespace_that_was_left_out_goes(cluster: ClusterVault, tmp_path: Path) -> None:
    """What is left of tablespace_map leads to no files but those of the backup."""
    text = b"16385 /fast\n163850 /faster\n16390 /scratch\n"
    item = MadeStreamed(header_of("@postgresql/pitr/tablespace_map", len(text)), text)
    head = head_of(FULL)
    head.details["left_out"] = [16385, 16390]
    store(cluster, [item], head=head)
    place = tmp_path / "data"
    follow(cluster, FULL, "Unpack", place)
    follow(cluster, FULL, "What is missing", place)
    assert (place / "tablespace_map").read_text() == "163850 /faster\n"
    assert (place / "postgresql.auto.conf").read_text() == "allow_in_place_tablespaces = on\n"


def test_the_restore_command_of_the_recipe_delivers(cluster: ClusterVault, tmp_path: Path) -> None:
    """What the recipe puts into restore_command gives segments and histories, and fails for what is not there."""
    item = wal_item(8)
    head = head_of(FULL, wal=WalRange(timeline=1, start="0/00800000", stop="0/00900000", segment_size=1 << 20))
    store(cluster, [item], head=head)
    cluster.archive.put("00000002.history", [b"1\t0/00900000\treason\n"])
    recipe = (cluster.backup_directory(FULL) / "RESTORE.md").read_text()
    found = re.search(r"restore_command = '(.*)'", recipe)
    assert found is not None

    def deliver(name: str) -> int:
        target = tmp_path / name
        command = found[1].replace("WAL/", f"{cluster.directory}/wal/").replace("%f", name).replace("%p", str(target))
        return subprocess.run(["sh", "-c", command], check=False, timeout=60).returncode

    assert deliver(segment_at(8).name) == 0
    assert (tmp_path / segment_at(8).name).read_bytes() == item.content
    assert deliver("00000002.history") == 0
    assert (tmp_path / "00000002.history").read_bytes() == b"1\t0/00900000\treason\n"
    assert deliver(segment_at(9).name) == 1


def test_the_recipe_names_what_belongs_together() -> None:
    """The facts of the head are in the text; an Incremental points at the backup whose files it needs."""
    head = RecordHead(
        backup_id=INCREMENTAL,
        cluster="main",
        mode="pitr",
        level=Level.INCREMENTAL,
        base=DIFFERENTIAL,
        files_from=DIFFERENTIAL,
        system_identifier="73",
        stop_lsn="2/04000028",
        timeline=3,
    )
    recipe = render_recipe(head, [])
    assert f"# Restoring {INCREMENTAL} without pgkeep" in recipe
    assert f"../{DIFFERENTIAL}/RESTORE.md" in recipe
    for fact in ("| timeline | 3 |", "| stop LSN | 2/04000028 |", "| mode and level | pitr, Incremental |"):
        assert fact in recipe
