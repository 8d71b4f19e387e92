"""Packets: what both sides must read alike, and what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import WireError
from pgkeep.wire.packet import (
    BARE,
    FILLED,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Packet,
    PacketKind,
    encode,
    encode_header,
    encode_release,
    encode_slot,
    encode_text,
    parse_header,
    parse_packet,
    parse_release,
    parse_slot,
)

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "packets.json").read_text())
GOOD = [vector for vector in VECTORS if "error" not in vector]
DAMAGED = [vector for vector in VECTORS if "error" in vector]


@pytest.mark.parametrize("vector", GOOD, ids=lambda vector: vector["name"])
def test_packet_of_the_vectors_is_read_and_written_alike(vector: dict[str, Any]) -> None:
    """A packet that both sides agree on is read as written down, and written as it was."""
    data = bytes.fromhex(vector["bytes_hex"])
    packet = parse_packet(data)
    assert packet == Packet(PacketKind(vector["kind"]), bytes.fromhex(vector["payload_hex"]))
    assert encode(packet.kind, packet.payload) == data


@pytest.mark.parametrize("vector", DAMAGED, ids=lambda vector: vector["name"])
def test_damaged_packet_is_refused_with_what_was_found(vector: dict[str, Any]) -> None:
    """Bytes that are no packet are refused with the very message that is written down."""
    with pytest.raises(WireError) as caught:
        parse_packet(bytes.fromhex(vector["bytes_hex"]))
    assert caught.value.message == vector["error"]


def test_every_kind_is_in_the_vectors() -> None:
    """The vectors leave no kind of packet out."""
    assert {vector["kind"] for vector in GOOD} == {kind.value for kind in PacketKind}


payloads = st.binary(min_size=1, max_size=300)
kinds = st.sampled_from(sorted(set(PacketKind) - BARE - {PacketKind.SLOT, PacketKind.RELEASE}))


@given(kinds, payloads)
def test_encode_and_parse_are_inverse(kind: PacketKind, payload: bytes) -> None:
    """Whatever is encoded is parsed as it was."""
    assert parse_packet(encode(kind, payload)) == Packet(kind, payload)


@given(st.integers(0, 999_999), st.integers(0, 9_999_999_999))
def test_slot_round_trip(slot: int, length: int) -> None:
    """Slots are lent and given back under the numbers that they have."""
    assert parse_slot(parse_packet(encode_slot(slot, length)).payload) == (slot, length)
    assert parse_release(parse_packet(encode_release(slot)).payload) == slot


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_any_eight_bytes_are_a_header_or_an_error(header: bytes) -> None:
    """Eight bytes are either the header that would be written for what they say, or refused."""
    try:
        kind, length = parse_header(header)
    except WireError:
        return
    assert encode_header(kind, length) == header


@pytest.mark.parametrize("kind", sorted(FILLED))
def test_no_packet_without_its_payload_is_written(kind: PacketKind) -> None:
    """A packet that the other side would refuse is not written."""
    with pytest.raises(WireError, match=f"a {kind.value} packet needs a payload, found none"):
        encode(kind)


@pytest.mark.parametrize("kind", sorted(BARE))
def test_no_payload_is_written_where_none_belongs(kind: PacketKind) -> None:
    """F, T and H carry nothing."""
    with pytest.raises(WireError, match=f"a {kind.value} packet has no payload, found 1 bytes"):
        encode(kind, b"x")


def test_largest_packet() -> None:
    """Six digits hold 999,999; one byte more is refused before it is written."""
    data = encode(PacketKind.DATA, bytes(MAX_PAYLOAD_BYTES))
    assert parse_header(data[:HEADER_BYTES]) == (PacketKind.DATA, MAX_PAYLOAD_BYTES)
    with pytest.raises(WireError, match="a packet holds at most 999999 bytes, found 1000000"):
        encode(PacketKind.DATA, bytes(MAX_PAYLOAD_BYTES + 1))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_comes_back_without_the_one_newline(text: str) -> None:
    """A command's text is what was sent, blanks and further newlines included."""
    assert parse_packet(encode_text(PacketKind.COMMAND, text)).text == text


def test_message_names_a_packet_without_its_content() -> None:
    """What a message says of an unexpected packet is its keyword: a parameter's value may be a password."""
    assert str(parse_packet(b"C000014\npassword=hush\n")) == 'a command "password"'
    assert str(parse_packet(b"D000004\nhush")) == "a D packet of 4 bytes"
