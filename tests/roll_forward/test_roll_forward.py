"""Rolling forward, with made files: what an increment means, what is refused, and doing it again."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgkeep.datadir import roll_forward
from pgkeep.datadir.lay_down import LaidDown
from pgkeep.datadir.roll_forward import RollForward
from pgkeep.datadir.target import Target
from pgkeep.errors import PgkeepError
from pgkeep.pg.backup_manifest import ManifestFile, ManifestWriter
from pgkeep.pg.crc32c import crc32c
from pgkeep.pg.incremental_file import IncrementalHeader, incremental_path
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.streams.item import EXTENT_BYTES, BytesItem, ItemHeader, ItemKind
from tests.roll_forward.chains import ROOT

BLOCK = 8192
FULL, FIRST, SECOND = "20260101T000000Z-F", "20260101T000001Z-I", "20260101T000002Z-I"
TABLE = "base/5/16384"
CHANGED = incremental_path(TABLE)


def block(number: int) -> bytes:
    """Return a block that is known by its number."""
    return struct.pack("<I", number) * (BLOCK // 4)


def increment(truncation_blocks: int, blocks: Mapping[int, bytes] = {}) -> bytes:
    """Return an incremental file."""
    return IncrementalHeader(truncation_blocks, tuple(blocks)).render() + b"".join(blocks.values())


def manifest(files: Mapping[str, bytes]) -> bytes:
    """Return PostgreSQL's manifest of a backup of *files*."""
    writer = ManifestWriter(version=2, system_identifier=SystemIdentifier(7))
    lines = [writer.begin()]
    for path, content in files.items():
        checksum = crc32c(content).to_bytes(4, "little")
        lines.append(writer.file(ManifestFile(path, len(content), None, "CRC32C", checksum)))
    return b"".join([*lines, writer.end([])])


def items(backup_id: str, files: Mapping[str, bytes], named: bytes | None = None) -> list[BytesItem]:
    """Return the items of a backup; *named* is its manifest where that is not what it should be."""
    files = {"global/pg_control": b"control", **files}
    found = [item(backup_id, f"pgdata/{path}", content) for path, content in files.items()]
    return [*found, item(backup_id, "backup_manifest", manifest(files) if named is None else named)]


def item(backup_id: str, path: str, content: bytes) -> BytesItem:
    """Return one item."""
    return BytesItem(ItemHeader(f"{ROOT}/{backup_id}/{path}", size=len(content)), content)


def roll(
    directory: Path,
    chain: list[str],
    *arriving: BytesItem,
    done: int = 0,
    applied: list[str] | None = None,
    lasting: list[int] | None = None,
) -> LaidDown:
    """Roll *directory* forward."""
    target = Target(data_directory=directory, version_directory="PG_18_202506291")
    if not done:
        target.begin()
    said = ([] if applied is None else applied).append
    synced = ([] if lasting is None else lasting).append
    with RollForward(target, root=ROOT, chain=chain, workers=2, done=done, applied=said, lasting=synced) as work:
        for one in arriving:
            work.accept(one)
        return work.finish()


numbers = st.integers(0, 9)


@dataclass(frozen=True)
class Change:
    """One increment of a model: how much of the file counts, and the blocks that changed."""

    truncation_blocks: int
    changed: tuple[int, ...]

    def apply(self, blocks: list[bytes], stamp: int) -> tuple[list[bytes], bytes]:
        """Return the blocks of the file afterwards, and the incremental file."""
        sent = {number: block(stamp + number) for number in self.changed}
        length = max(self.truncation_blocks, max(self.changed, default=-1) + 1)
        kept = blocks[: self.truncation_blocks]
        after = [sent.get(n) or (kept[n] if n < len(kept) else bytes(BLOCK)) for n in range(length)]
        return after, increment(self.truncation_blocks, sent)


@settings(max_examples=25)
@given(
    size=numbers,
    changes=st.lists(st.builds(Change, numbers, st.lists(numbers, unique=True).map(tuple)), min_size=1, max_size=4),
    again=st.integers(0, 3),
)
def test_file_is_what_the_model_says(
    tmp_path_factory: pytest.TempPathFactory, size: int, changes: list[Change], again: int
) -> None:
    """Whatever is cut off, grows and changes; also when one of the increments is applied a second time."""
    directory = tmp_path_factory.mktemp("model") / "data"
    blocks = [block(number) for number in range(size)]
    steps = [b"".join(blocks)]
    expected = []
    for index, change in enumerate(changes):
        blocks, content = change.apply(blocks, 1000 * (index + 1))
        steps.append(content)
        expected.append(b"".join(blocks))
    ids = [f"20260101T00000{index}Z-I" for index in range(len(steps))]
    roll(directory, ids[:1], *items(ids[0], {TABLE: steps[0]}))
    for index in range(1, len(steps)):
        for _ in range(2 if index == again else 1):
            roll(directory, ids[: index + 1], *items(ids[index], {CHANGED: steps[index]}), done=index)
        assert (directory / TABLE).read_bytes() == expected[index - 1]


@dataclass(frozen=True)
class Fate:
    """What a backup has of one file of a model: a change, or so many new blocks; with neither there is none."""

    change: Change | None = None
    blocks: int | None = None


FATES = st.one_of(
    st.builds(Fate, change=st.builds(Change, numbers, st.lists(numbers, unique=True).map(tuple))),
    st.builds(Fate, blocks=st.none() | numbers),
)


@settings(max_examples=60)
@given(data=st.data(), fates=st.lists(st.tuples(FATES, FATES, FATES), min_size=1, max_size=4))
def test_a_chain_is_done_again_whatever_was_written_of_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, fates: list[tuple[Fate, ...]]
) -> None:
    """Behind a durable Full each block may be as any of the later backups left it, after a kill or without power."""
    names = [f"base/5/{number}" for number in (16384, 16385, 16386)]
    versions: list[dict[str, list[bytes]]] = [{name: [block(n) for n in range(5)] for name in names}]
    arriving: list[dict[str, bytes]] = []
    for number, step in enumerate(fates, start=1):
        before, after, files = versions[-1], {}, {}
        for name, fate in zip(names, step, strict=True):
            if fate.change is not None and name in before:
                after[name], files[incremental_path(name)] = fate.change.apply(before[name], 1000 * number)
            elif fate.change is not None or fate.blocks is not None:
                after[name] = [block(1000 * number + 100 + n) for n in range(fate.blocks or 0)]
                files[name] = b"".join(after[name])
        versions.append(after)
        arriving.append(files)
    ids = [f"20260101T00000{index}Z-I" for index in range(len(versions))]
    directory = tmp_path_factory.mktemp("again") / "data"
    roll(directory, ids[:1], *items(ids[0], {name: b"".join(content) for name, content in versions[0].items()}))
    for name in names:
        left = data.draw(st.sampled_from(versions)).get(name)
        (directory / name).unlink()
        if left is not None:
            written = [[one[name][n] for one in versions if len(one.get(name, ())) > n] for n in range(len(left))]
            (directory / name).write_bytes(b"".join(data.draw(st.sampled_from(blocks)) for blocks in written))
    later = [one for number, files in enumerate(arriving, start=1) for one in items(ids[number], files)]
    roll(directory, ids, *later, done=1)
    found = {name: (directory / name).read_bytes() for name in names if (directory / name).exists()}
    assert found == {name: b"".join(content) for name, content in versions[-1].items()}


def test_a_file_that_is_gone_must_come_whole_or_not_at_all(tmp_path: Path) -> None:
    """When a chain is done again, a file that it changes and that is nowhere ends it as ever, if not at once."""
    roll(tmp_path / "data", [FULL], *items(FULL, {TABLE: block(1)}))
    (tmp_path / "data" / TABLE).unlink()
    lasting: list[int] = []
    arriving = [*items(FIRST, {CHANGED: increment(1)}), *items(SECOND, {CHANGED: increment(1, {0: block(2)})})]
    with pytest.raises(PgkeepError, match=f"{CHANGED} changes a file that none of the backups before it holds"):
        roll(tmp_path / "data", [FULL, FIRST, SECOND], *arriving, done=1, lasting=lasting)
    assert lasting == []
    whole = [*items(FIRST, {CHANGED: increment(1)}), *items(SECOND, {TABLE: block(3)})]
    roll(tmp_path / "data", [FULL, FIRST, SECOND], *whole, done=1, lasting=lasting)
    assert lasting == [3]
    assert (tmp_path / "data" / TABLE).read_bytes() == block(3)


def test_what_is_applied_becomes_durable_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a chain, and on the way when some time has passed."""
    often: list[int] = []
    seldom: list[int] = []
    roll(tmp_path / "seldom", [FULL, FIRST], *WHOLE, lasting=seldom)
    monkeypatch.setattr(roll_forward, "SYNC_SECONDS", 0)
    roll(tmp_path / "often", [FULL, FIRST], *WHOLE, lasting=often)
    assert (seldom, often) == ([2], [1, 2])


def test_increment_of_many_extents(tmp_path: Path) -> None:
    """Blocks beyond the first extent of an incremental file find their places too."""
    count = 2 * EXTENT_BYTES // BLOCK + 7
    sent = {3 * number: block(number) for number in range(count)}
    roll(
        tmp_path / "data",
        [FULL, FIRST],
        *items(FULL, {TABLE: block(1) * 9}),
        *items(FIRST, {CHANGED: increment(9, sent)}),
    )
    content = (tmp_path / "data" / TABLE).read_bytes()
    assert len(content) == (3 * (count - 1) + 1) * BLOCK
    for number in (0, 1, 511, 512, 513, 1023, 1024, count - 1):
        assert content[3 * number * BLOCK :][:BLOCK] == block(number)
    assert content[BLOCK : 3 * BLOCK] == block(1) * 2
    assert not any(content[10 * BLOCK : 12 * BLOCK])


def test_what_is_not_named_any_more_goes(tmp_path: Path) -> None:
    """Files and databases that a backup does not hold are gone when it is applied, and so is a tablespace's item."""
    dropped = {"base/7/1": b"x", "base/5/16390": b"y", "base/5/16384.1": b"z"}
    in_space = item(FULL, "tblspc/16999/PG_18_202506291/5/1", b"dropped")
    gone = BytesItem(ItemHeader(f"{ROOT}/{FIRST}/pgdata/empty", kind=ItemKind.DIRECTORY), b"")
    applied: list[str] = []
    roll(
        tmp_path / "data",
        [FULL, FIRST],
        in_space,
        *items(FULL, {TABLE: block(1), **dropped}),
        gone,
        *items(FIRST, {CHANGED: increment(1), "base/5/16400": b"new"}),
        applied=applied,
    )
    assert applied == [FULL, FIRST]
    assert sorted(path.name for path in (tmp_path / "data/base").rglob("*")) == ["16384", "16400", "5"]
    assert (tmp_path / "data/empty").is_dir()
    assert (tmp_path / "data" / TABLE).read_bytes() == block(1)


def test_names_that_mean_nothing(tmp_path: Path) -> None:
    """Somebody's own file with the name of an increment, where no relations are, is a file like any other."""
    own = {"INCREMENTAL.txt": b"mine", "base/5/INCREMENTAL.backup": b"too"}
    roll(tmp_path / "data", [FULL, FIRST], *items(FULL, own | {CHANGED: b"in a Full"}), *items(FIRST, own))
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").rglob("INCREMENTAL*")} == {
        "INCREMENTAL.txt": b"mine",
        "INCREMENTAL.backup": b"too",
    }


WHOLE = [*items(FULL, {TABLE: block(1)}), *items(FIRST, {CHANGED: increment(1, {0: block(2)})})]
FILES = {CHANGED: increment(1), "global/pg_control": b"control"}


def without(number: int) -> list[BytesItem]:
    """Return the whole chain without one item."""
    return WHOLE[:number] + WHOLE[number + 1 :]


def flipped(number: int) -> list[BytesItem]:
    """Return the whole chain with the last bit of one item wrong."""
    content = WHOLE[number].content
    damaged = replace(WHOLE[number], content=content[:-1] + bytes([content[-1] ^ 1]))
    return [*WHOLE[:number], damaged, *WHOLE[number + 1 :]]


def wrong_bit(number: int) -> str:
    """Return what is said of the checksum when one item is flipped."""
    return f"CRC-32C {crc32c(flipped(number)[number].content):08x}, expected {crc32c(WHOLE[number].content):08x}"


DAMAGE: dict[str, tuple[list[BytesItem], str]] = {
    "a file of the Full is missing": (
        without(1),
        f"1 files of backup {FULL} that its manifest names did not come, the first: pgdata/{TABLE}",
    ),
    "an increment is missing": (
        without(4),
        f"1 files of backup {FIRST} that its manifest names did not come, the first: pgdata/{CHANGED}",
    ),
    "a manifest is missing": (without(2), f"the manifest of backup {FULL} did not come with its files"),
    "a bit of a file is wrong": (
        flipped(1),
        f"pgdata/{TABLE} of backup {FULL} is not what its manifest says: {wrong_bit(1)}",
    ),
    "a bit of an increment is wrong": (
        flipped(4),
        f"pgdata/{CHANGED} of backup {FIRST} is not what its manifest says: {wrong_bit(4)}",
    ),
    "a file is too short": (
        [WHOLE[0], item(FULL, f"pgdata/{TABLE}", b""), *WHOLE[2:]],
        f"pgdata/{TABLE} of backup {FULL} is not what its manifest says: 0 bytes, expected 8192",
    ),
    "a manifest is cut off": (
        [*WHOLE[:2], item(FULL, "backup_manifest", WHOLE[2].content[:-9]), *WHOLE[3:]],
        f"the manifest of backup {FULL}: backup manifest is cut off after line 8",
    ),
    "an increment is none": (
        [*WHOLE[:4], item(FIRST, f"pgdata/{CHANGED}", b"x" * 12), WHOLE[5]],
        f"{ROOT}/{FIRST}/pgdata/{CHANGED}: incremental file begins with 0x78787878, expected 0xd3ae1f0d",
    ),
    "an increment is empty": (
        [*WHOLE[:4], item(FIRST, f"pgdata/{CHANGED}", b""), WHOLE[5]],
        f"{ROOT}/{FIRST}/pgdata/{CHANGED}: incremental file has 0 bytes, expected at least 12",
    ),
    "an increment has no file": (
        [*items(FULL, {}), *WHOLE[3:]],
        f"{ROOT}/{FIRST}/pgdata/{CHANGED} changes a file that none of the backups before it holds",
    ),
    "the older backup comes late": (
        [*WHOLE, WHOLE[0]],
        f"files of backup {FULL} came after those of {FIRST}, expected the files of older backups first",
    ),
    "the Full does not come": (WHOLE[3:], f"the files of backup {FULL} did not come"),
    "the increment does not come": (WHOLE[:3], f"the files of backup {FIRST} did not come"),
    "another backup comes": (
        [*WHOLE[:3], item(SECOND, "pgdata/x", b"")],
        f"item is of none of the backups {FULL}, {FIRST}: found {SECOND}",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    """Each way to hurt a chain ends the roll-forward with its own message; the chain as it is passes."""
    roll(tmp_path / "whole", [FULL, FIRST], *WHOLE)
    arriving, message = DAMAGE[name]
    applied: list[str] = []
    with pytest.raises(PgkeepError) as error:
        roll(tmp_path / "hurt", [FULL, FIRST], *arriving, applied=applied)
    assert error.value.message == message
    assert FIRST not in applied
    assert not (tmp_path / "hurt/global/pg_control").exists()
