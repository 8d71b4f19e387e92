"""
The conversation with the bridge: packets on two pipes, and file data through the ring.

One thread talks. Another, the heart, only says that the backend lives when nothing else was said for a while; plain
PTCOMM has no such packet, so there it is silent. Release and heartbeat packets are dealt with here: whoever waits for
a packet never sees them.

Packets are collected and written together: ``receive``, a message and the heart flush them. Buffers given to ``send``
and ``send_data`` may be used again when the call returns.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from pgkeep.bacula.ring import Ring
from pgkeep.errors import BridgeError, ChannelClosed, JobCancelled, WireError
from pgkeep.streams.item import Buffer
from pgkeep.wire.packet import (
    EXTENDED,
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
    parse_release,
    parse_slot,
)

HEARTBEAT_SECONDS = 10.0
COLLECTED_BYTES = 64 << 10
"""Packets are written when this much has come together."""

COLLECTED_SECONDS = 0.5
"""... or when they have waited for as long as this."""

RING_THRESHOLD_BYTES = 16 << 10
"""Less than this goes as D packets: cheaper than a slot's way there and back."""

DATA_BYTES = 512 << 10
"""The most that one D packet carries."""

MAX_MESSAGE_BYTES = 1900
"""A job message longer than this is cut: the daemon's own buffer for one is not much larger."""


class Channel:
    """
    Packets on two descriptors.

    Args:
        read_fd: Where the bridge's packets come from; a pipe.
        write_fd: Where ours go.
        heartbeat_seconds: How long to be silent at most.

    Attributes:
        on_silence: Called by the heart, with the reason, when nothing has passed for as long as ``limit_silence`` says.
    """

    def __init__(self, read_fd: int, write_fd: int, *, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._received = bytearray()
        self._payload = bytearray(MAX_PAYLOAD_BYTES)
        self._collected = bytearray()
        self._lock = threading.Lock()
        self._ring: Ring | None = None
        self._is_extended = False
        self._is_broken = False
        self._last_write = time.monotonic()
        self._heartbeat_seconds = heartbeat_seconds
        self._stopped = threading.Event()
        self._heart: threading.Thread | None = None
        self._last_activity = time.monotonic()
        self._timeout_seconds = 0.0
        self.on_silence: Callable[[str], None] = lambda _: None

    @property
    def is_extended(self) -> bool:
        """Whether pgkeep's own protocol is spoken, not plain PTCOMM."""
        return self._is_extended

    @property
    def ring(self) -> Ring | None:
        """The ring; None when data goes through the pipe."""
        return self._ring

    def extend(self) -> None:
        """Speak pgkeep's protocol from now on."""
        self._is_extended = True

    def start_heart(self) -> None:
        """Start the thread that keeps the bridge from thinking that we are gone."""
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def limit_silence(self, seconds: float) -> None:
        """End the job when nothing but heartbeats passes for *seconds*; 0 waits for ever."""
        self._last_activity = time.monotonic()
        self._timeout_seconds = seconds

    def attach_ring(self, ring: Ring) -> None:
        """Move file data through *ring* from now on."""
        self._ring = ring

    def close(self) -> None:
        """Stop the heart and let go of the ring; the descriptors stay open."""
        self._stopped.set()
        if self._heart is not None:
            self._heart.join(timeout=1)
        if self._ring is not None:
            self._ring.close()
            self._ring = None

    def abandon(self) -> None:
        """Write nothing more: the bridge is gone, or would not understand the rest of a packet cut short."""
        self._is_broken = True
        self._stopped.set()

    # What is received.

    def receive(self) -> Packet:
        """
        Return the next packet that the caller has to know of.

        Raises:
            ChannelClosed: The bridge closed the pipe.
            JobCancelled: The bridge sent CANCEL.
            WireError: What came is not a packet.
        """
        self.flush()
        while True:
            kind, length = self._receive_header()
            payload = bytes(self._receive_payload(length)) if length else b""
            if kind is PacketKind.HEARTBEAT:
                continue
            if kind is PacketKind.RELEASE:
                self._take_back(payload)
                continue
            packet = Packet(kind, payload)
            if kind is PacketKind.COMMAND and packet.text == "CANCEL":
                raise JobCancelled("the job was cancelled")
            return packet

    def expect_command(self) -> str:
        """Return the text of the command that must come next."""
        packet = self.receive()
        if packet.kind is not PacketKind.COMMAND:
            raise self.unexpected(packet, "a command")
        return packet.text

    def expect_end(self, after: str) -> None:
        """Take the F that must come next."""
        packet = self.receive()
        if packet.kind is not PacketKind.END:
            raise self.unexpected(packet, f"F after {after}")

    def data(self) -> Iterator[memoryview]:
        """Yield file data up to the F that ends it; each view is valid until the next is asked for."""
        self.flush()
        while True:
            kind, length = self._receive_header()
            if kind is PacketKind.END:
                return
            if kind is PacketKind.DATA:
                yield self._receive_payload(length)
                continue
            payload = bytes(self._receive_payload(length)) if length else b""
            if kind is PacketKind.SLOT:
                if self._ring is None:
                    raise WireError("an M packet came, but there is no ring")
                slot, filled = parse_slot(payload)
                yield self._ring.content(slot, filled)
                self._write(encode_release(slot), flush=True)
            elif kind is PacketKind.RELEASE:
                self._take_back(payload)
            elif kind is not PacketKind.HEARTBEAT:
                packet = Packet(kind, payload)
                if kind is PacketKind.COMMAND and packet.text == "CANCEL":
                    raise JobCancelled("the job was cancelled")
                raise self.unexpected(packet, "file data or its end")

    def unexpected(self, packet: Packet, expected: str) -> BridgeError:
        """Return the error for *packet* where *expected* should have come."""
        if packet.kind is PacketKind.ERROR:
            return BridgeError(f"the plugin reported an error: {packet.text}")
        return WireError(f"expected {expected}, found {packet}")

    # What is sent.

    def send(self, kind: PacketKind, payload: bytes = b"") -> None:
        """Send one packet."""
        self._write(encode(kind, payload))

    def command(self, text: str) -> None:
        """Send a command."""
        self._write(encode_text(PacketKind.COMMAND, text))

    def end(self) -> None:
        """Send F."""
        self._write(encode(PacketKind.END))

    def send_packets(self, packets: bytes | bytearray) -> None:
        """Send *packets*, encoded already."""
        self._write(packets)

    def send_data(self, content: Buffer) -> None:
        """Send file data, as much as there is: through the ring, or as D packets."""
        view = memoryview(content).cast("B")
        ring = self._ring
        while view:
            if ring is None or len(view) < RING_THRESHOLD_BYTES:
                piece, view = view[:DATA_BYTES], view[DATA_BYTES:]
                self._write_data(piece)
                continue
            if not ring.has_free_slot:
                if not ring.lent:
                    # All are reserved for what comes later: nobody would give one back before this is sent.
                    ring = None
                    continue
                self.await_release()
                continue
            piece, view = view[: ring.slot_bytes], view[ring.slot_bytes :]
            # Flushed at once: the bridge copies this slot while we fill the next.
            self._write(encode_slot(ring.lend(piece), len(piece)), flush=True)

    def send_slot(self, slot: int, length: int) -> None:
        """Send what stands in a slot that was reserved in the ring."""
        assert self._ring is not None
        self._ring.lend_reserved(slot)
        self._write(encode_slot(slot, length), flush=True)

    def send_small(self, content: bytes) -> None:
        """Send *content* as D packets, whatever its size."""
        for start in range(0, len(content), DATA_BYTES):
            self._write_data(memoryview(content)[start : start + DATA_BYTES])

    def say(self, text: str) -> None:
        """Put a line into the job's log."""
        self._message(PacketKind.INFO, text)

    def warn(self, text: str) -> None:
        """Put a warning into the job's log."""
        self._message(PacketKind.WARNING, text)

    def error(self, text: str) -> None:
        """End the operation that is under way with an error; the first line is the message, further ones are hints."""
        self._message(PacketKind.ERROR, text)

    def fatal(self, text: str) -> None:
        """End the job with an error; lines as for ``error``."""
        self._message(PacketKind.FATAL, text)

    def message(self, kind: PacketKind, text: str) -> None:
        """Put a message of another *kind* into the job's log."""
        self._message(kind, text)

    def flush(self) -> None:
        """Write what was collected."""
        if self._collected:
            self._write(b"", flush=True)

    def _message(self, kind: PacketKind, text: str) -> None:
        # surrogateescape would put bytes into the log that are not UTF-8.
        encoded = text.encode("utf-8", "replace")
        if len(encoded) > MAX_MESSAGE_BYTES:
            encoded = encoded[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore").encode() + "…".encode()
        self._write(encode(kind, encoded + b"\n"), flush=True)

    def await_release(self) -> None:
        """Wait until the bridge gives a slot back, and take back what else has come by then."""
        self.flush()
        self._receive_release()
        while len(self._received) > HEADER_BYTES:
            self._receive_release()

    def _receive_release(self) -> None:
        kind, length = self._receive_header()
        payload = bytes(self._receive_payload(length)) if length else b""
        if kind is PacketKind.RELEASE:
            self._take_back(payload)
        elif kind is not PacketKind.HEARTBEAT:
            packet = Packet(kind, payload)
            if kind is PacketKind.COMMAND and packet.text == "CANCEL":
                raise JobCancelled("the job was cancelled")
            raise self.unexpected(packet, "a slot to be given back")

    def _take_back(self, payload: bytes) -> None:
        if self._ring is None:
            raise WireError("a K packet came, but there is no ring")
        self._ring.take_back(parse_release(payload))

    # Bytes.

    def _receive_header(self) -> tuple[PacketKind, int]:
        while len(self._received) < HEADER_BYTES:
            self._receive_some()
        kind, length = parse_header(bytes(self._received[:HEADER_BYTES]))
        if kind in EXTENDED and not self._is_extended:
            raise WireError(f"a {kind.value} packet came, but the plugin did not agree to pgkeep's extensions")
        del self._received[:HEADER_BYTES]
        return kind, length

    def _receive_some(self) -> None:
        piece = os.read(self._read_fd, COLLECTED_BYTES)
        self._last_activity = time.monotonic()
        if not piece:
            rest = f" within a packet, after {len(self._received)} bytes of it" if self._received else ""
            raise ChannelClosed(f"the plugin closed the conversation{rest}")
        self._received += piece

    def _receive_payload(self, length: int) -> memoryview:
        """Return a payload; valid until the next one is received."""
        view = memoryview(self._payload)[:length]
        filled = min(length, len(self._received))
        view[:filled] = self._received[:filled]
        del self._received[:filled]
        while filled < length:
            count = os.readv(self._read_fd, [view[filled:]])
            if not count:
                raise ChannelClosed(
                    f"the plugin closed the conversation within a packet, after {filled} of {length} bytes"
                )
            filled += count
        return view

    def _write_data(self, piece: memoryview) -> None:
        header = encode_header(PacketKind.DATA, len(piece))
        if len(piece) < RING_THRESHOLD_BYTES:
            self._write(header + piece)
            return
        with self._lock:
            self._collected += header
            self._write_out(self._collected)
            self._collected.clear()
            self._write_out(piece)

    def _write(self, packets: bytes | bytearray, *, flush: bool = False) -> None:
        with self._lock:
            if self._is_broken:
                raise ChannelClosed("the conversation with the plugin is over")
            self._collected += packets
            self._last_activity = time.monotonic()
            if flush or len(self._collected) >= COLLECTED_BYTES:
                collected, self._collected = self._collected, bytearray()
                self._write_out(collected)

    def _write_out(self, content: Buffer) -> None:
        if self._is_broken:
            raise ChannelClosed("the conversation with the plugin is over")
        view = memoryview(content)
        try:
            while view:
                # An exception of a signal handler may come out of here after a part was written: nothing may follow.
                self._is_broken = True
                view = view[os.write(self._write_fd, view) :]
                self._is_broken = False
        except OSError as error:
            raise ChannelClosed(f"the plugin is gone: {error.strerror}") from error
        self._last_write = time.monotonic()

    def _beat(self) -> None:
        pause = min(COLLECTED_SECONDS, self._heartbeat_seconds)
        while not self._stopped.wait(pause):
            silence = time.monotonic() - self._last_activity
            if self._timeout_seconds and silence > self._timeout_seconds:
                self._timeout_seconds = 0
                self.on_silence(f"nothing happened for {silence:.0f} s, which is longer than timeout allows")
            # Whoever holds the lock is writing.
            if not self._lock.acquire(blocking=False):
                continue
            try:
                silence = time.monotonic() - self._last_write
                if self._is_extended and silence >= self._heartbeat_seconds:
                    self._collected += encode(PacketKind.HEARTBEAT)
                if self._collected and silence >= pause and not self._is_broken:
                    collected, self._collected = self._collected, bytearray()
                    self._write_out(collected)
            except ChannelClosed:
                return
            finally:
                with contextlib.suppress(RuntimeError):
                    self._lock.release()
