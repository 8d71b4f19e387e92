"""
Packets: what the bridge and the backend exchange on two pipes.

::

    0  1  type, one letter
    1  6  length of the payload, six decimal digits, zero-padded
    7  1  newline
    8     payload, at most 999,999 bytes

There is no checksum: a pipe does not lose bytes. What is not of this form means that the two are out of step, so every
deviation is an error. The normative page is ``docs/formats/packets.md``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from pgkeep.errors import WireError

HEADER_BYTES = 8
MAX_PAYLOAD_BYTES = 999_999


class PacketKind(enum.StrEnum):
    """The type of a packet: its first byte."""

    COMMAND = "C"
    DATA = "D"
    END = "F"
    TERMINATE = "T"
    ERROR = "E"
    FATAL = "A"
    JOB_ERROR = "Q"
    WARNING = "W"
    INFO = "I"
    SAVED = "S"
    NOT_SAVED = "N"
    RESTORED = "R"
    SKIPPED = "P"
    MOUNT = "O"
    EVENT = "V"
    SLOT = "M"
    RELEASE = "K"
    HEARTBEAT = "H"


BARE = frozenset({PacketKind.END, PacketKind.TERMINATE, PacketKind.HEARTBEAT})
"""Packets without a payload."""

FILLED = frozenset({PacketKind.COMMAND, PacketKind.DATA, PacketKind.SLOT, PacketKind.RELEASE})
"""Packets that are nothing without a payload. A zero-length D would be taken as the end of the file by some bridges."""

EXTENDED = frozenset({PacketKind.SLOT, PacketKind.RELEASE, PacketKind.HEARTBEAT})
"""Packets of pgkeep's own protocol only."""

_KINDS = {kind.value.encode(): kind for kind in PacketKind}
_SLOT = re.compile(rb"(0|[1-9][0-9]{0,5}) (0|[1-9][0-9]{0,9})\n")
_RELEASE = re.compile(rb"(0|[1-9][0-9]{0,5})\n")


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet."""

    kind: PacketKind
    payload: bytes = b""

    @property
    def text(self) -> str:
        """The payload as text, without the newline at its end."""
        return self.payload.decode("utf-8", "surrogateescape").removesuffix("\n")

    def __str__(self) -> str:
        """Say what it is, for a message: never its content beyond a command's keyword."""
        if self.kind is PacketKind.COMMAND:
            return f'a command "{self.text.partition(":")[0].partition("=")[0][:40]}"'
        return f"a {self.kind.value} packet of {len(self.payload)} bytes"


def encode_header(kind: PacketKind, length: int) -> bytes:
    """Return the header of a packet whose payload has *length* bytes."""
    if length > MAX_PAYLOAD_BYTES:
        raise WireError(f"a packet holds at most {MAX_PAYLOAD_BYTES} bytes, found {length}")
    if length and kind in BARE:
        raise WireError(f"a {kind.value} packet has no payload, found {length} bytes")
    if not length and kind in FILLED:
        raise WireError(f"a {kind.value} packet needs a payload, found none")
    return b"%s%06d\n" % (kind.value.encode(), length)


def encode(kind: PacketKind, payload: bytes = b"") -> bytes:
    """Return the bytes of a packet."""
    return encode_header(kind, len(payload)) + payload


def encode_text(kind: PacketKind, text: str) -> bytes:
    """Return the bytes of a packet whose payload is *text* and a newline."""
    return encode(kind, text.encode("utf-8", "surrogateescape") + b"\n")


def parse_header(header: bytes) -> tuple[PacketKind, int]:
    """
    Return kind and payload length.

    Raises:
        WireError: *header* is not eight bytes of the form above, or its length does not fit its kind.
    """
    if len(header) != HEADER_BYTES:
        raise WireError(f"a packet's header has {HEADER_BYTES} bytes, found {len(header)}: {header!r}")
    kind = _KINDS.get(header[:1])
    if kind is None:
        raise WireError(f"unknown packet type {header[:1]!r} in the header {header!r}")
    digits = header[1:7]
    if not digits.isdigit():
        raise WireError(f"a packet's length is six digits, found {digits!r} in the header {header!r}")
    if header[7:] != b"\n":
        raise WireError(f"a packet's header ends in a newline, found {header[7:]!r} in the header {header!r}")
    length = int(digits)
    if length and kind in BARE:
        raise WireError(f"a {kind.value} packet has no payload, found {length} bytes")
    if not length and kind in FILLED:
        raise WireError(f"a {kind.value} packet needs a payload, found none")
    return kind, length


def parse_packet(data: bytes) -> Packet:
    """Return the one packet that *data* is; raise WireError when it is not one, whole, and alone."""
    kind, length = parse_header(data[:HEADER_BYTES])
    found = len(data) - HEADER_BYTES
    if found != length:
        raise WireError(f"a packet announced {length} bytes of payload, found {found}")
    packet = Packet(kind, data[HEADER_BYTES:])
    if kind is PacketKind.SLOT:
        parse_slot(packet.payload)
    elif kind is PacketKind.RELEASE:
        parse_release(packet.payload)
    return packet


def encode_slot(slot: int, length: int) -> bytes:
    """Return the M packet that lends *slot*, holding *length* bytes, to the other side."""
    return encode(PacketKind.SLOT, b"%d %d\n" % (slot, length))


def encode_release(slot: int) -> bytes:
    """Return the K packet that gives *slot* back."""
    return encode(PacketKind.RELEASE, b"%d\n" % slot)


def parse_slot(payload: bytes) -> tuple[int, int]:
    """Return slot and length of an M packet's *payload*."""
    found = _SLOT.fullmatch(payload)
    if found is None:
        raise WireError(f'an M packet says "<slot> <length>" and a newline, found {payload[:40]!r}')
    return int(found[1]), int(found[2])


def parse_release(payload: bytes) -> int:
    """Return the slot of a K packet's *payload*."""
    found = _RELEASE.fullmatch(payload)
    if found is None:
        raise WireError(f'a K packet says "<slot>" and a newline, found {payload[:40]!r}')
    return int(found[1])
