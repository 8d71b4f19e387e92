"""Chains of real incremental base backups, made by pg_basebackup, put together by pg_combinebackup and by pgkeep."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgkeep.datadir.lay_down import LaidDown
from pgkeep.datadir.roll_forward import RollForward
from pgkeep.datadir.target import HELD_CONTROL_FILE, MARKER, Target
from pgkeep.pg.backup_label import without_incremental_lines
from pgkeep.pg.data_directory import BACKUP_LABEL, BACKUP_MANIFEST, CONTROL_FILE, TABLESPACES
from pgkeep.streams.item import Buffer, BytesItem, DetachedItem, ItemHeader, ItemKind, StreamedItem
from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user

ROOT = "@postgresql/pitr_block"
SETTINGS = {"summarize_wal": "on", "autovacuum": "off", "wal_keep_size": "256MB"}

Anything = DetachedItem | StreamedItem


@dataclass(eq=False)
class DiskItem:
    """A file on disk, as a detached item."""

    header: ItemHeader
    path: Path

    def read_extent(self, offset: int, length: int) -> Buffer:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def close(self) -> None:
        """Nothing stays open."""


@dataclass(eq=False)
class PassingItem:
    """A file on disk, as an item that passes once, in pieces of an odd size."""

    header: ItemHeader
    path: Path

    def chunks(self) -> Iterator[Buffer]:
        with self.path.open("rb") as file:
            while piece := file.read(100_003):
                yield piece


class Chain:
    """The backups of one cluster, each built on the one before it."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.ids: list[str] = []
        self._tablespaces: dict[str, dict[int, Path]] = {}

    def take(self) -> str:
        """Make the next backup by pg_basebackup, the first one full; return its id."""
        backup_id = f"20260101T{len(self.ids):06}Z-{'I' if self.ids else 'F'}"
        rows = self.cluster.sql("SELECT oid::int, pg_tablespace_location(oid) FROM pg_tablespace WHERE oid > 2000")
        self._tablespaces[backup_id] = {oid: self.directory / f"{backup_id}-{oid}" for oid, _ in rows}
        self._run(
            "pg_basebackup",
            *("-d", self.cluster.conninfo(), "-D", self.directory / backup_id, "-X", "none", "-c", "fast", "--no-sync"),
            *(f"--tablespace-mapping={place}={self._tablespaces[backup_id][oid]}" for oid, place in rows),
            *([f"--incremental={self.directory / self.ids[-1] / BACKUP_MANIFEST}"] if self.ids else []),
        )
        self.ids.append(backup_id)
        return backup_id

    def combine(self, ids: Sequence[str], name: str) -> Path:
        """Let pg_combinebackup make a directory of the backups *ids*; its tablespaces stand beside it."""
        out = self.directory / name
        mappings = [f"-T{place}={out}-{oid}" for oid, place in self._tablespaces[ids[-1]].items()]
        self._run("pg_combinebackup", *(self.directory / one for one in ids), "-o", out, *mappings, "--no-sync")
        return out

    def items(self, backup_id: str, *, is_streamed: bool = False) -> Iterator[Anything]:
        """Yield the items of a backup, its manifest last."""
        kind = PassingItem if is_streamed else DiskItem
        top = self.directory / backup_id
        roots = {"pgdata": top} | {f"tblspc/{oid}": path for oid, path in self._tablespaces[backup_id].items()}
        for prefix, root in roots.items():
            for directory, directories, files in os.walk(root):
                inside = os.path.relpath(directory, root)
                for name in sorted(directories):
                    path = Path(directory, name)
                    if not path.is_symlink():
                        header = ItemHeader(self._path(backup_id, prefix, inside, name), kind=ItemKind.DIRECTORY)
                        yield BytesItem(header, b"")
                for name in sorted(files):
                    path = Path(directory, name)
                    if path not in (top / BACKUP_MANIFEST, top / BACKUP_LABEL):
                        yield kind(self._header(self._path(backup_id, prefix, inside, name), path), path)
        for name in (BACKUP_LABEL, BACKUP_MANIFEST):
            yield kind(self._header(f"{ROOT}/{backup_id}/{name}", top / name), top / name)

    def target(self, name: str) -> Target:
        """Return a target with the tablespaces of the newest backup."""
        [version_directory] = {
            entry.name for path in self._tablespaces[self.ids[-1]].values() for entry in path.iterdir()
        } or {"PG_0"}
        places: dict[int, Path | None] = {
            oid: self.directory / f"{name}-{oid}" for oid in self._tablespaces[self.ids[-1]]
        }
        return Target(data_directory=self.directory / name, version_directory=version_directory, tablespaces=places)

    def roll(
        self, target: Target, ids: Sequence[str], *, done: int = 0, is_streamed: bool = False, workers: int = 2
    ) -> LaidDown:
        """Roll *target*, to which *done* of the backups *ids* are applied, forward to the last one."""
        if not done:
            target.begin()
        with RollForward(target, root=ROOT, chain=ids, workers=workers, done=done) as work:
            for backup_id in ids[done:]:
                for item in self.items(backup_id, is_streamed=is_streamed):
                    work.accept(item)
            return work.finish()

    def _run(self, program: str, *arguments: str | Path) -> None:
        server_user().run([self.cluster.installation.program(program), *arguments], env={"LC_ALL": "C", "TZ": "UTC"})

    def _header(self, path: str, place: Path) -> ItemHeader:
        status = place.stat()
        return ItemHeader(path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, file_mode=status.st_mode & 0o777)

    def _path(self, backup_id: str, prefix: str, inside: str, name: str) -> str:
        return "/".join([ROOT, backup_id, prefix, *([] if inside == "." else [inside]), name])


def assert_same(data_directory: Path, combined: Path, tablespaces: Sequence[int]) -> None:
    """Assert that what pgkeep rolled forward is what pg_combinebackup made, byte by byte."""
    pairs = [(data_directory, combined)]
    pairs += [
        (data_directory.with_name(f"{data_directory.name}-{oid}"), Path(f"{combined}-{oid}")) for oid in tablespaces
    ]
    for ours, theirs in pairs:
        found, expected = _tree(ours), _tree(theirs)
        assert found.keys() ^ expected.keys() == set()
        for name, path in expected.items():
            mine = found[name]
            if path is None or mine is None:
                assert path is mine is None, name
            elif name == BACKUP_LABEL:
                assert without_incremental_lines(mine.read_text()) == path.read_text()
            else:
                assert mine.stat().st_size == path.stat().st_size, name
                assert filecmp.cmp(mine, path, shallow=False), name


def _tree(root: Path) -> dict[str, Path | None]:
    """Return every file beneath *root* by its name in a finished cluster; None stands for a directory or a link."""
    found: dict[str, Path | None] = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(directory, name)
            inside = str(path.relative_to(root))
            # A target has the links of all its tablespaces from the beginning.
            if inside not in (MARKER, BACKUP_MANIFEST) and inside.rpartition("/")[0] != TABLESPACES:
                name_at_the_end = CONTROL_FILE if inside == HELD_CONTROL_FILE else inside
                found[name_at_the_end] = path if name in files and not path.is_symlink() else None
    return found


def tablespace_numbers(cluster: Cluster) -> list[int]:
    """Return the OIDs of the tablespaces that users made."""
    return [oid for (oid,) in cluster.sql("SELECT oid::int FROM pg_tablespace WHERE oid > 2000 ORDER BY 1")]
