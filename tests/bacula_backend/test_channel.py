"""The two ends of a conversation, talking to each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.bacula.channel import Channel
from pgkeep.bacula.ring import Ring
from pgkeep.errors import ChannelClosed, JobCancelled, PgkeepError, WireError
from pgkeep.wire.packet import Packet, PacketKind, encode, encode_release
from tests.lab.cluster import wait_for

SLOTS, SLOT_BYTES = 4, 64 << 10


@contextmanager
def conversation(*, ring: bool = True) -> Iterator[tuple[Channel, Channel]]:
    """Give two channels that talk to each other, with a ring of which the first sends."""
    pipes = os.pipe(), os.pipe()
    (to_second, from_first), (to_first, from_second) = pipes
    first, second = Channel(to_first, from_first), Channel(to_second, from_second)
    if ring:
        memory = os.memfd_create("ring")
        os.ftruncate(memory, SLOTS * SLOT_BYTES)
        again = os.dup(memory)
        for channel, descriptor in ((first, memory), (second, again)):
            channel.extend()
            channel.attach_ring(Ring.from_key(f"{descriptor} {SLOTS} {SLOT_BYTES}"))
    try:
        yield first, second
    finally:
        for channel in (first, second):
            channel.close()
        for descriptor in (to_second, from_first, to_first, from_second):
            with suppress(OSError):
                os.close(descriptor)


@given(st.lists(st.integers(0, 5 * SLOT_BYTES), max_size=8), st.booleans())
def test_data_arrives_as_it_was_sent(sizes: list[int], ring: bool) -> None:
    """Whatever the sizes, through the ring or not, the same bytes arrive in the same order."""
    pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes, start=1)]
    received: list[bytes] = []
    with conversation(ring=ring) as (first, second):
        reader = threading.Thread(target=lambda: received.extend(bytes(piece) for piece in second.data()))
        reader.start()
        for piece in pieces:
            first.send_data(piece)
        first.end()
        first.flush()
        reader.join()
    assert b"".join(received) == b"".join(pieces)


def test_all_slots_that_were_given_back_are_taken() -> None:
    """Who waits for one slot knows of every one that has come back by then."""
    with conversation() as (first, second):
        ring = first.ring
        assert ring is not None
        first.send_data(bytes(3 * SLOT_BYTES))
        assert ring.lent == 3
        second.send_packets(encode_release(1) + encode(PacketKind.HEARTBEAT) + encode_release(0))
        second.flush()
        first.await_release()
        assert ring.lent == 1


def test_reserved_slots_never_keep_other_data_from_passing() -> None:
    """When all slots but two wait for what comes later, what comes first passes, through those or as packets."""
    received = bytearray()
    with conversation() as (first, second):
        ring = first.ring
        assert ring is not None
        reserved = []
        while (slot := ring.reserve()) is not None:
            reserved.append(slot)
            ring.view(slot, 3)[:] = b"%03d" % slot
        assert len(reserved) == SLOTS - 2

        def read() -> None:
            for piece in second.data():
                received.extend(piece)

        reader = threading.Thread(target=read)
        reader.start()
        first.send_data(b"x" * 8 * SLOT_BYTES)
        for slot in reserved:
            first.send_slot(slot, 3)
        first.end()
        first.flush()
        reader.join()
    assert bytes(received) == b"x" * 8 * SLOT_BYTES + b"".join(b"%03d" % slot for slot in reserved)


@pytest.mark.parametrize(
    ("packets", "message"),
    [
        (b"M000004\n9 5\n", "slot 9 of a ring with 4"),
        (b"M000010\n0 9999999\n", "9999999 bytes in a slot of 65536"),
        (b"M000004\n0 0\n", "0 bytes in a slot of 65536"),
        (b"K000002\n2\n", "slot 2 was given back, but is not lent"),
        (b"C000004\nDATA", 'expected file data or its end, found a command "DATA"'),
        (b"E000005\nhuh?\n", "the plugin reported an error: huh?"),
        (b"T000000\n", "expected file data or its end, found a T packet of 0 bytes"),
        (b"D00000", "the plugin closed the conversation within a packet, after 6 bytes of it"),
        (b"D000005\nab", "the plugin closed the conversation within a packet, after 2 of 5 bytes"),
        (b"", "the plugin closed the conversation"),
        (b"C000007\nCANCEL\n", "the job was cancelled"),
    ],
)
def test_damaged_data_is_refused(packets: bytes, message: str) -> None:
    """What cannot stand among file data ends the conversation with a message that says what it was."""
    with conversation() as (first, second):
        os.write(first._write_fd, packets)
        os.close(first._write_fd)
        with pytest.raises(PgkeepError) as caught:
            list(second.data())
    assert caught.value.message == message


def test_ring_that_was_not_agreed_is_refused() -> None:
    """Without a ring an M packet is an error, and so is a K packet."""
    for packets, letter in ((b"M000004\n0 5\n", "an M"), (b"K000002\n2\n", "a K")):
        with conversation(ring=False) as (first, second):
            second.extend()
            os.write(first._write_fd, packets)
            with pytest.raises(WireError, match=f"{letter} packet came, but there is no ring"):
                list(second.data())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("0 8 1048576", "found"),
        ("3 8", 'the key Ring says "<descriptor> <slots> <slot_bytes>", found "3 8"'),
        ("3 0 5", 'the key Ring says "<descriptor> <slots> <slot_bytes>", found "3 0 5"'),
        ("3 8 -1", 'the key Ring says "<descriptor> <slots> <slot_bytes>", found "3 8 -1"'),
        ("3 2000 5", "a ring has at most 1024 slots of 67108864 bytes, found 2000 5"),
        ("999999 8 4096", "cannot map the ring at descriptor 999999: Bad file descriptor"),
    ],
)
def test_damaged_ring_key_is_refused(key: str, message: str) -> None:
    """A ring that cannot be is refused before the first byte."""
    if key.startswith("0 "):
        memory = os.memfd_create("small")
        os.ftruncate(memory, 4096)
        key, message = f"{memory} 8 1048576", "the ring's memory has 4096 bytes, expected 8388608"
    with pytest.raises(WireError) as caught:
        Ring.from_key(key)
    assert caught.value.message == message


def test_release_and_heartbeat_are_not_seen() -> None:
    """Whoever waits for a packet sees neither heartbeats nor slots that come back."""
    with conversation() as (first, second):
        first.start_heart()
        ring = second.ring
        assert ring is not None
        slot = ring.lend(memoryview(b"x"))
        first.send_packets(b"H000000\n" + b"K000002\n%d\n" % slot + b"C000003\nOK\n")
        first.flush()
        assert second.receive() == Packet(PacketKind.COMMAND, b"OK\n")
        assert ring.lent == 0


def test_closed_pipe_is_told_as_the_end_of_the_plugin() -> None:
    """A write after the other side is gone raises ChannelClosed, and so does every later one."""
    with conversation() as (first, second):
        os.close(second._read_fd)
        with pytest.raises(ChannelClosed, match="the plugin is gone: Broken pipe"):
            first.say("anybody there?")
        with pytest.raises(ChannelClosed, match="the conversation with the plugin is over"):
            first.say("anybody?")


def test_collected_packets_do_not_wait_for_ever() -> None:
    """What was sent but not written yet goes out by itself after a moment."""
    with conversation() as (first, second):
        first.start_heart()
        first.command("FNAME:/x")
        arrived: list[str] = []
        reader = threading.Thread(target=lambda: arrived.append(second.expect_command()))
        reader.start()
        wait_for(lambda: bool(arrived), "the packet has arrived")
        reader.join()
    assert arrived == ["FNAME:/x"]


def test_cancel_reaches_whoever_waits() -> None:
    """CANCEL ends every wait for a packet."""
    with conversation() as (first, second):
        first.command("CANCEL")
        first.flush()
        with pytest.raises(JobCancelled):
            second.expect_command()


def test_long_messages_are_cut_between_characters() -> None:
    """A message longer than the daemon can take is cut, and stays UTF-8."""
    with conversation() as (first, second):
        first.say("ä" * 5000)
        packet = second.receive()
    assert packet.kind is PacketKind.INFO
    assert packet.text.endswith("ä…")
    assert len(packet.payload) < 2000


def test_no_child_inherits_the_ring() -> None:
    """A ring closes the descriptor that the backend inherited, and has none that a child would inherit."""
    before = set(os.listdir("/proc/self/fd"))
    memory = os.memfd_create("ring", 0)
    os.ftruncate(memory, SLOTS * SLOT_BYTES)
    ring = Ring(memory, SLOTS, SLOT_BYTES)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memory)
    added = set(os.listdir("/proc/self/fd")) - before
    assert not any(os.get_inheritable(int(name)) for name in added if Path(f"/proc/self/fd/{name}").exists())
    ring.close()
