"""Which blocks WAL writes anew, against real servers and pg_waldump."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from pgkeep.pg.data_directory import Fork
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.wal import WalSegment, parse_wal_header
from pgkeep.pg.wal_blocks import BlockReference, BlockSearch
from pgkeep.pg.wal_walk import Walk, walk_wal
from tests.lab.cluster import Cluster, MakeCluster
from tests.lab.server_user import server_user
from tests.pg.made_records import MIB, Made, WalWriter, heap, pieces_of, switch
from tests.pg.test_real_wal import segments_in, wait_until_archived

PAGE = 8192
Segments = list[tuple[WalSegment, bytes]]


def block_header(number: int, flags: int, block: int, *, relation: int = 0, image: bytes = b"") -> bytes:
    """Return the header of a block without data; one without a *relation* is of that of the block before."""
    place = struct.pack("<III", 1663, 5, relation) if relation else b""
    flags |= (0x10 if image else 0) | (0 if relation else 0x80)
    return bytes([number, flags]) + struct.pack("<H", 0) + image + place + struct.pack("<I", block)


def first_record(segment: WalSegment, content: bytes) -> Lsn:
    """Return where the first record begins in a segment, which may go on with one of the segment before."""
    walk = Walk(
        lsn=segment.start_lsn,
        segment_bytes=segment.size,
        page_bytes=PAGE,
        magic=parse_wal_header(content[:40]).magic,
        timeline=segment.timeline,
    )
    walk_wal(content, walk)
    return Lsn(segment.start_lsn + walk.first)


def found(
    segments: Segments,
    wanted: Iterable[BlockReference],
    piece_bytes: int = MIB,
    *,
    start: Lsn | None = None,
    stop: Lsn | None = None,
) -> set[BlockReference]:
    """Return which of *wanted* the WAL writes anew."""
    wanted = set(wanted)
    search = BlockSearch(wanted, start=start or first_record(*segments[0]), stop=stop or segments[-1][0].end_lsn)
    for segment, content in segments:
        search.enter(segment.start_lsn)
        for piece in pieces_of(content, piece_bytes):
            search.feed(piece)
    return wanted - search.left


def blocks_of(cluster: Cluster, relation: str, fork: Fork = Fork.MAIN) -> set[BlockReference]:
    """Return all blocks of a relation of the cluster."""
    path = str(cluster.value(f"SELECT pg_relation_filepath('{relation}')"))
    inside = f"tblspc/{path.removeprefix('pg_tblspc/')}" if path.startswith("pg_tblspc/") else f"pgdata/{path}"
    suffix = f"_{fork.value}" if fork.value else ""
    size = int(cluster.value(f"SELECT pg_relation_size('{relation}', '{fork.value or 'main'}')"))
    references = [BlockReference.at(inside + suffix, block) for block in range(size // PAGE)]
    assert references
    return {reference for reference in references if reference is not None}


@pytest.mark.parametrize("compression", ["off", "on"])
def test_what_a_server_writes_anew(
    major: int, make_cluster: MakeCluster, lab_directory: Path, compression: str
) -> None:
    """New relations with every page, and the first change of an old page after a checkpoint; no other page."""
    archive, place = lab_directory / "archive", lab_directory / "place"
    cluster = make_cluster(
        start=False, wal_segment_size_mb=1, settings={"autovacuum": "off", "wal_compression": compression}
    )
    assert cluster.major == major
    cluster.archive_to(archive)
    cluster.start()
    place.mkdir()
    server_user().own(place)
    cluster.sql(f"CREATE TABLESPACE elsewhere LOCATION '{place}'")
    for name in ("quiet", "changed"):
        cluster.sql(f"CREATE TABLE {name} AS SELECT n, repeat('x', 1000) AS t FROM generate_series(1, 70) AS n")
        cluster.sql(f"VACUUM (FREEZE) {name}")
    cluster.sql("CHECKPOINT")
    cluster.switch_wal()
    wait_until_archived(cluster, archive)
    before = segments_in(archive)
    first = max(segment.number for segment, _ in before) + 1

    cluster.sql("CREATE TABLE fresh (n int PRIMARY KEY, t text) WITH (fillfactor = 30)")
    cluster.sql(
        "INSERT INTO fresh SELECT n * 7919 % 100003, repeat(md5(n::text), 9) FROM generate_series(1, 4000) AS n"
    )
    cluster.sql("CREATE TABLE far TABLESPACE elsewhere AS SELECT generate_series(1, 9000) AS n")
    cluster.sql("CREATE INDEX far_n ON far USING hash (n) TABLESPACE elsewhere")
    # What was made in store and is not used goes.
    cluster.sql("VACUUM fresh, far")
    ctid = str(cluster.value("SELECT ctid::text FROM changed WHERE n = 30"))
    # In place, so that no other page is touched.
    cluster.sql("SELECT n FROM changed WHERE n = 30 FOR UPDATE")
    cluster.switch_wal()
    wait_until_archived(cluster, archive)
    second = max(segment.number for segment, _ in segments_in(archive)) + 1
    cluster.sql("SELECT n FROM changed WHERE n = 31 FOR UPDATE")
    cluster.switch_wal()
    wait_until_archived(cluster, archive)

    changed = blocks_of(cluster, "changed")
    [touched] = [reference for reference in changed if reference.block == int(ctid.strip("()").split(",")[0])]
    new = {
        *blocks_of(cluster, "fresh"),
        *blocks_of(cluster, "fresh", Fork.VISIBILITY_MAP),
        *blocks_of(cluster, "fresh_pkey"),
        *blocks_of(cluster, "far"),
    }
    hashed = blocks_of(cluster, "far_n")
    wanted = {*new, *hashed, *changed, *blocks_of(cluster, "quiet")}
    segments = list(segments_in(archive))
    since = [one for one in segments if one[0].number >= first]
    for piece_bytes in (PAGE, 24 * PAGE, MIB):
        assert found(since, wanted, piece_bytes) - hashed == {*new, touched}
    # Of a hash index, pages may be in the file that were never used.
    assert found(since, hashed)
    later = [one for one in segments if one[0].number >= second]
    assert found(later, {*new, *changed}) == set()
    assert found([one for one in segments if one[0].number < first], wanted) >= changed - {touched}


# The fetched servers of the other majors come without the program, and each reads its own major only.
@pytest.mark.pg(">=15, !=16")
def test_the_same_images_as_pg_waldump(major: int, make_cluster: MakeCluster, lab_directory: Path) -> None:
    """Whatever PostgreSQL's own program calls a full page is found, whatever kind of record has it."""
    archive = lab_directory / "archive"
    cluster = make_cluster(start=False, wal_segment_size_mb=1, settings={"autovacuum": "off"})
    assert cluster.major == major
    cluster.archive_to(archive)
    cluster.start()
    cluster.sql("CREATE TABLE item (id int PRIMARY KEY, what text, who int[])")
    for access_method in ("gin", "brin"):
        column = "who" if access_method == "gin" else "id"
        cluster.sql(f"CREATE INDEX ON item USING {access_method} ({column})")
    for step in range(3):
        numbers = f"generate_series({step * 3000}, {step * 3000 + 2999}) AS n"
        cluster.sql(f"INSERT INTO item SELECT n, repeat('x', n % 900), ARRAY[n % 50, n] FROM {numbers}")
        cluster.sql("CHECKPOINT")
        cluster.sql("UPDATE item SET what = 'y' WHERE id % 10 = 0")
        cluster.sql("DELETE FROM item WHERE id % 7 = 0")
        cluster.sql("VACUUM item")
    cluster.switch_wal()
    wait_until_archived(cluster, archive)
    segments = list(segments_in(archive))
    dumped = subprocess.run(
        [
            *(cluster.installation.program("pg_waldump"), "--bkp-details", "-p", archive),
            *("-s", str(Lsn(segments[0][0].start_lsn + 40)), segments[0][0].name, segments[-1][0].name),
        ],
        capture_output=True,
        text=True,
        env={"TZ": "UTC", "LC_ALL": "C"},
        check=False,
    ).stdout
    line = re.compile(r"\tblkref #\d+: rel (\d+)/(\d+)/(\d+)(?: fork (\w+))? blk (\d+)(.*)")
    images: set[BlockReference] = set()
    others: set[BlockReference] = set()
    for match in filter(None, map(line.match, dumped.splitlines())):
        fork = Fork("" if match[4] in (None, "main") else match[4])
        reference = BlockReference(int(match[1]), int(match[2]), int(match[3]), fork, int(match[5]))
        is_image = "FPW" in match[6] and "for WAL verification" not in match[6]
        (images if is_image else others).add(reference)
    assert len(images) > 100
    assert found(segments, images) == images
    assert others - images
    assert found(segments, {reference._replace(relation=reference.relation + 50_000) for reference in images}) == set()


def test_records_in_pieces() -> None:
    """A record of several pages, one that goes on in the next segment, one that was given up, and a switch."""
    writer = WalWriter()
    long = b"".join(block_header(number, 0x40, 100 + number, relation=20000) for number in range(33))
    writer.write(heap(8000))
    writer.write(Made(10, 0, b"main", before=long))
    writer.write_torn(Made(10, 0, bytes(9000), before=block_header(0, 0x40, 7, relation=20000)))
    writer.write(heap(MIB - 30_000))
    writer.write(Made(10, 0, b"main", before=long.replace(struct.pack("<I", 20000), struct.pack("<I", 20001))))
    writer.write(switch())
    writer.write(Made(10, 0, b"main", before=block_header(0, 0x40, 1, relation=20002) + block_header(1, 0x40, 2)))
    segments = writer.segments()
    assert len(segments) >= 2
    wanted = {
        BlockReference(1663, 5, relation, Fork.MAIN, block) for relation in range(20000, 20003) for block in range(140)
    }
    expected = {(20000 + step, 100 + number) for step in range(2) for number in range(33)} | {(20002, 1), (20002, 2)}
    for piece_bytes in (PAGE, 3 * PAGE, MIB):
        anew = found(segments, wanted, piece_bytes)
        assert {(reference.relation, reference.block) for reference in anew} == expected


def one_block(block: int) -> Made:
    """Return a record that makes *block* of relation 20000 from nothing."""
    return Made(10, 0, b"main", before=block_header(0, 0x40, block, relation=20000))


@pytest.mark.parametrize("piece_bytes", [PAGE, 3 * PAGE, MIB])
def test_only_what_replay_applies_in_any_case(piece_bytes: int) -> None:
    """A record before the start, in the same segment and on the same page, proves nothing, nor does one at the stop."""
    writer = WalWriter()
    starts: list[Lsn] = []
    for block in range(6):
        # On pages of their own, the last two on one page.
        writer.write(heap(9000 if block < 4 else 30))
        starts.append(writer.write(one_block(block)))
    writer.write(heap(MIB))
    starts.append(writer.write(one_block(6)))
    segments = writer.segments()
    wanted = {BlockReference(1663, 5, 20000, Fork.MAIN, block) for block in range(7)}
    for first, start in enumerate(starts):
        for last, stop in enumerate(starts[first + 1 :], first):
            anew = found(segments, wanted, piece_bytes, start=start, stop=stop)
            assert {reference.block for reference in anew} == set(range(first, last + 1))
    whole = found(segments, wanted, piece_bytes)
    assert {reference.block for reference in whole} == set(range(7))


@pytest.mark.parametrize("piece_bytes", [PAGE, 3 * PAGE, MIB])
@pytest.mark.parametrize("damage", ["crc", "length", "zeros", "page", "header"])
def test_wal_that_ends_proves_nothing_more(piece_bytes: int, damage: str) -> None:
    """Where replay would end, what follows is not asked, in the next segment neither."""
    writer = WalWriter()
    writer.write(one_block(1))
    at = writer.write(one_block(2))
    writer.write(heap(9000))
    writer.write(one_block(3))
    writer.write(switch())
    writer.write(one_block(4))
    segments = writer.segments()
    wanted = {BlockReference(1663, 5, 20000, Fork.MAIN, block) for block in range(6)}
    assert {reference.block for reference in found(segments, wanted, piece_bytes)} == {1, 2, 3, 4}
    content = bytearray(segments[0][1])
    offset = int(at) - int(segments[0][0].start_lsn)
    if damage == "crc":
        content[offset + 24 + 4 + 12] ^= 1
    elif damage == "length":
        content[offset : offset + 4] = (1 << 31).to_bytes(4, "little")
    elif damage == "zeros":
        content[offset : offset + 4] = bytes(4)
    elif damage == "page":
        # What a recycled file holds of the segment that it was.
        content[PAGE + 8 : PAGE + 16] = (int(segments[0][0].start_lsn) - MIB + PAGE).to_bytes(8, "little")
    else:
        content[PAGE : PAGE + 24] = bytes(24)
    anew = found([(segments[0][0], bytes(content)), *segments[1:]], wanted, piece_bytes)
    assert {reference.block for reference in anew} == ({1, 2} if damage in ("page", "header") else {1})
