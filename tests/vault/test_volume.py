"""Volumes as files: frames that can be written over, members that are taken back, references found by content."""

from __future__ import annotations

from pathlib import Path

import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.verify import verify
from pgkeep.vault.volume import END_FRAME, VolumeWriter, padding_frame, raw_frame
from tests.vault.made_items import DIFFERENTIAL, FULL, ROOT, MadeDetached, content_of, detached, head_of, header_of
from tests.vault.stories import fetch, store


@given(st.binary(min_size=256, max_size=65_791))
def test_a_raw_frame_is_as_long_as_any_of_its_size(content: bytes) -> None:
    """Stock zstd reads it, and another content of that size takes its place byte for byte."""
    frame = raw_frame(content)
    assert zstandard.ZstdDecompressor().decompress(frame) == content
    assert len(frame) == len(raw_frame(bytes(len(content))))


def test_padding_frames_hold_zeros() -> None:
    """Any number of zeros up to a block; none needs no frame."""
    assert padding_frame(0) == b""
    for length in range(1, 512):
        assert zstandard.ZstdDecompressor().decompress(padding_frame(length)) == bytes(length)


PIECES = st.lists(st.integers(1, 3).map(lambda n: n * 400_000) | st.integers(1, 5000), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(members=st.lists(st.tuples(PIECES, st.booleans()), max_size=6))
def test_what_is_taken_back_leaves_no_trace(tmp_path: Path, members: list[tuple[list[int], bool]]) -> None:
    """The volume holds the members that stayed, in order, and its end."""
    path = tmp_path / "volume-00.tar.zst"
    path.unlink(missing_ok=True)
    volume = VolumeWriter(path, 0)
    expected = b""
    for number, (pieces, stays) in enumerate(members):
        offset = volume.offset
        assert offset == len(expected)
        content = [bytes([number]) * piece for piece in pieces]
        for piece in content:
            volume.append(piece)
        if stays:
            expected += b"".join(content)
        else:
            volume.take_back(offset)
    entry = volume.finish()
    volume.close()
    assert path.read_bytes() == expected + END_FRAME
    assert entry.size == len(expected) + len(END_FRAME)


def test_content_that_is_held_already_is_kept_once(cluster: ClusterVault) -> None:
    """With an earlier backup to compare with, a file of the same content becomes a reference."""
    same, other = detached(f"{ROOT}/base/same", 9 << 20), detached(f"{ROOT}/base/other", 9 << 20)
    store(cluster, [same, other, detached(f"{ROOT}/base/small", 100)])
    changed = MadeDetached(header_of(f"{ROOT}/base/other", 9 << 20), content_of("changed", 9 << 20))
    again = [detached(f"{ROOT}/base/same", 9 << 20), changed, detached(f"{ROOT}/base/small", 100)]
    with cluster.begin_backup(DIFFERENTIAL, same_as=FULL) as sink:
        for item in again:
            sink.accept(item)
        head, tail = sink.commit(head_of(DIFFERENTIAL, base=FULL))
    assert head.references == [FULL]
    assert (tail.files, tail.sent_files, tail.sent_bytes) == (3, 1, 9 << 20)
    assert fetch(cluster, DIFFERENTIAL) == {item.header.path: item.content for item in again}
    assert verify(cluster).is_clean
