from __future__ import annotations

import contextlib
import datetime as dt
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.control_file import (
    CATALOG_VERSION_BY_MAJOR,
    CONTROL_FILE_BYTES,
    ClusterState,
    ControlFile,
    WalLevel,
    crc32c,
    parse_control_file,
)
from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster

VECTORS = json.loads((Path(__file__).parent / "vectors" / "pg_control.json").read_text())
CRC_OFFSETS = {12: 288, 13: 288, 14: 288, 15: 288, 16: 288, 17: 288, 18: 292}


def content(version: int) -> bytearray:
    """Return the whole file that a server of *version* wrote."""
    return bytearray(bytes.fromhex(VECTORS[str(version)]["first_bytes"]).ljust(CONTROL_FILE_BYTES, b"\0"))


def patched(version: int, offset: int, code: str, value: Any) -> bytes:
    """Return the file with one member changed and the checksum made right again."""
    data = content(version)
    struct.pack_into("<" + code, data, offset, value)
    end = CRC_OFFSETS[version]
    struct.pack_into("<I", data, end, crc32c(bytes(data[:end])))
    return bytes(data)


def seconds(moment: dt.datetime) -> int:
    """Return *moment* as seconds since the epoch."""
    return int(moment.timestamp())


@pytest.mark.parametrize("version", CATALOG_VERSION_BY_MAJOR)
def test_a_real_file_says_what_its_server_said(version: int) -> None:
    """Every member agrees with the functions and settings of the server that wrote the file."""
    control = parse_control_file(content(version))
    expected = VECTORS[str(version)]
    assert control.major == version
    assert control.state is ClusterState.IN_PRODUCTION
    assert {
        "system_identifier": control.system_identifier,
        "pg_control_version": control.control_version,
        "catalog_version_no": control.catalog_version,
        "modified": seconds(control.update_time),
    } == expected["system"]
    checkpoint = expected["checkpoint"]
    assert control.checkpoint_lsn == Lsn.parse(checkpoint["checkpoint_lsn"])
    assert control.redo_lsn == Lsn.parse(checkpoint["redo_lsn"])
    assert (control.timeline, control.previous_timeline) == (checkpoint["timeline_id"], checkpoint["prev_timeline_id"])
    assert control.full_page_writes == checkpoint["full_page_writes"]
    assert f"{control.next_xid >> 32}:{control.next_xid & 0xFFFFFFFF}" == checkpoint["next_xid"]
    assert control.oldest_xid == checkpoint["oldest_xid"]
    assert seconds(control.checkpoint_time) == checkpoint["time"]
    assert {
        "database_block_size": control.block_size,
        "blocks_per_segment": control.blocks_per_segment,
        "wal_block_size": control.wal_block_size,
        "bytes_per_wal_segment": control.wal_segment_size,
        "data_page_checksum_version": control.data_checksum_version,
    } == expected["init"]
    assert _settings(control) == expected["settings"]
    assert control.min_recovery_timeline is None
    assert not control.backup_end_required


def _settings(control: ControlFile) -> dict[str, str]:
    return {
        "wal_level": control.wal_level.value,
        "wal_log_hints": "on" if control.wal_log_hints else "off",
        "max_connections": str(control.max_connections),
        "max_worker_processes": str(control.max_worker_processes),
        "max_wal_senders": str(control.max_wal_senders),
        "max_prepared_transactions": str(control.max_prepared_transactions),
        "max_locks_per_transaction": str(control.max_locks_per_transaction),
        "track_commit_timestamp": "on" if control.track_commit_timestamp else "off",
    }


def test_the_checksum_is_castagnolis() -> None:
    """The check value of CRC-32C is the well-known one."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@given(st.sampled_from(sorted(CATALOG_VERSION_BY_MAJOR)), st.data())
def test_a_flipped_bit_is_found(version: int, data: st.DataObject) -> None:
    """One bit changed anywhere in the struct is refused."""
    damaged = content(version)
    bit = data.draw(st.integers(0, (CRC_OFFSETS[version] + 4) * 8 - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        parse_control_file(damaged)


@given(st.binary(max_size=400).map(lambda start: start.ljust(CONTROL_FILE_BYTES, b"\0")) | st.binary())
def test_any_bytes_are_a_control_file_or_a_format_error(data: bytes) -> None:
    """No bytes make the parser fail in another way."""
    with contextlib.suppress(FormatError):
        parse_control_file(data)


@given(st.sampled_from(sorted(CATALOG_VERSION_BY_MAJOR)), st.data())
def test_any_bytes_with_a_right_checksum_are_judged(version: int, data: st.DataObject) -> None:
    """A file whose checksum is right but whose members are not is a value or a format error, too."""
    offset = data.draw(st.integers(16, CRC_OFFSETS[version] - 8))
    with contextlib.suppress(FormatError):
        parse_control_file(patched(version, offset, "Q", data.draw(st.integers(0, 2**64 - 1))))


DAMAGE = [
    ("cut off", bytes(content(18)[:8191]), "pg_control has 8191 bytes, expected 8192"),
    ("zeros", bytes(8192), "pg_control has version 0, supported are 1201, 1300, 1700, 1800"),
    (
        "a later server's",
        patched(18, 8, "I", 1900),
        "pg_control has version 1900, supported are 1201, 1300, 1700, 1800",
    ),
    (
        "other byte order",
        patched(18, 8, "I", int.from_bytes((1800).to_bytes(4, "big"), "little")),
        "pg_control has version 134676480, supported are 1201, 1300, 1700, 1800",
    ),
    (
        "a beta's",
        patched(18, 12, "I", 202505071),
        "pg_control has catalog version 202505071, which no release of PostgreSQL 12 to 18 has",
    ),
    ("unknown state", patched(18, 16, "I", 7), "pg_control has state 7, expected 0 to 6"),
    ("timeline 0", patched(18, 48, "I", 0), "timeline out of range: 0"),
    (
        "a time beyond all calendars",
        patched(18, 24, "q", 2**62),
        "pg_control has a time that no calendar has: 4611686018427387904 seconds since 1970",
    ),
]


@pytest.mark.parametrize(("data", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_file_that_cannot_be_used_is_refused(data: bytes, message: str) -> None:
    """Each way to have the wrong file has its own message."""
    parse_control_file(content(18))
    with pytest.raises(FormatError) as caught:
        parse_control_file(data)
    assert str(caught.value) == message


def test_a_torn_file_is_refused() -> None:
    """A file half of which is older names both checksums."""
    data = content(18)
    data[24] ^= 1
    with pytest.raises(FormatError) as caught:
        parse_control_file(data)
    stored = struct.unpack_from("<I", data, 292)[0]
    computed = crc32c(bytes(data[:292]))
    assert str(caught.value) == f"pg_control is damaged: its checksum is {stored:08X}, computed {computed:08X}"


def test_a_clusters_file_follows_its_life(cluster: Cluster) -> None:
    """A running server is in production; stopped, its file says so, and no later redo is needed than the checkpoint."""
    path = cluster.data_directory / "global" / "pg_control"
    running = parse_control_file(path.read_bytes())
    assert running.major == cluster.major
    assert running.state is ClusterState.IN_PRODUCTION
    assert not running.state.is_clean
    assert running.system_identifier == cluster.value("SELECT system_identifier FROM pg_control_system()")
    assert _settings(running) == {
        name: cluster.value("SELECT current_setting(%s)", [name]) for name in _settings(running)
    }
    assert running.wal_level in (WalLevel.REPLICA, WalLevel.LOGICAL)
    assert running.has_data_checksums
    cluster.stop()
    stopped = parse_control_file(path.read_bytes())
    assert stopped.state is ClusterState.SHUT_DOWN
    assert stopped.state.is_clean
    assert stopped.redo_lsn == stopped.checkpoint_lsn
    assert stopped.update_time >= running.update_time
