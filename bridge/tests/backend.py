#!/usr/bin/env python3
"""
A backend for the tests of the bridge: it does what the script says that the job's configuration names.

The script is Python. It sees the functions below, and `events`, a file to which it may write what it saw.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time

JOB: list[str] = []
PARAMETERS: list[str] = []
RING: list[object] = []
SLOT_BYTES: list[int] = []


def read_exactly(count: int) -> bytes:
    """Read from the bridge; end quietly when it is gone."""
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            note("eof")
            sys.exit(3)
        data += piece
    return data


def note(text: str) -> None:
    """Tell the test something."""
    events.write(text + "\n")
    events.flush()


def ready() -> None:
    """Let the test go on, which waits for this."""
    with open(f"{script}.ready", "w", encoding="utf-8"):
        pass


def receive() -> tuple[str, bytes]:
    """Return kind and payload of the next packet."""
    header = read_exactly(8)
    payload = read_exactly(int(header[1:7]))
    return header[:1].decode(), payload


def expect(kind: str, text: str | None = None) -> str:
    """Return the payload of the next packet, which must be of *kind*, and be *text* and a newline if that is given."""
    found, payload = receive()
    content = payload.decode("utf-8", "surrogateescape")
    if found != kind or (text is not None and content != text + "\n"):
        note(f"expected {kind} {text!r}, found {found} {content!r}")
        sys.exit(4)
    return content.removesuffix("\n")


def raw(data: bytes) -> None:
    """Write bytes, whatever they are."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def send(kind: str, payload: bytes | str = b"") -> None:
    """Send a packet."""
    data = payload.encode("utf-8", "surrogateescape") if isinstance(payload, str) else payload
    raw(b"%s%06d\n" % (kind.encode(), len(data)) + data)


def say(text: str) -> None:
    """Send a command."""
    send("C", text + "\n")


def block() -> list[str]:
    """Return the commands up to an F, and answer with one."""
    found = []
    while True:
        kind, payload = receive()
        if kind == "F":
            return found
        found.append(payload.decode("utf-8", "surrogateescape").removesuffix("\n"))


def begin(start: str) -> None:
    """Go through all that comes before the loop of the mode."""
    expect("C", "Hello pgkeep 1001")
    say("Hello Bacula")
    expect("C", "Job")
    JOB.extend(block())
    send("F")
    expect("C", "Params")
    PARAMETERS.extend(block())
    send("F")
    for key in JOB:
        if key.startswith("Ring="):
            descriptor, slots, size = map(int, key.removeprefix("Ring=").split())
            RING.append(mmap.mmap(descriptor, slots * size))
            SLOT_BYTES.append(size)
    if start:
        expect("C", start)
        send("F")


def file(name: str, content: bytes | None = b"", *, kind: str = "F", size: int | None = None, link: str = "") -> None:
    """Announce a file, and send its content as one D packet for each 100,000 bytes; None: no DATA."""
    attributes(name, kind=kind, size=len(content or b"") if size is None else size, link=link)
    if content is None:
        send("F")
        return
    say("DATA")
    for at in range(0, len(content), 100_000):
        send("D", content[at : at + 100_000])
    send("F")


def attributes(name: str, *, kind: str = "F", size: int = 0, link: str = "") -> None:
    """Announce a file, up to the F behind its attributes."""
    say(f"FNAME:{name}")
    say(f"STAT:{kind} {size} 1 2 {'040700' if kind == 'D' else '0120777' if kind == 'S' else '100600'} 1 5")
    say("TSTAMP:1700000000 1700000001 1700000002")
    if link:
        say(f"LSTAT:{link}")
    send("F")


def lend(slot: int, content: bytes) -> None:
    """Put content into a slot of the ring and lend it to the bridge."""
    start = slot * SLOT_BYTES[0]
    RING[0][start : start + len(content)] = content  # type: ignore[index]
    send("M", f"{slot} {len(content)}\n")


def end() -> None:
    """End a session in good order."""
    expect("C", "END")
    send("F")
    expect("T")
    sys.exit(0)


def read_file() -> bytes:
    """Return the data that the bridge sends up to an F, slots given back."""
    content = b""
    while True:
        kind, payload = receive()
        if kind == "F":
            return content
        if kind == "D":
            content += payload
        elif kind == "M":
            slot, length = map(int, payload.split())
            start = slot * SLOT_BYTES[0]
            content += RING[0][start : start + length]  # type: ignore[index]
            send("K", f"{slot}\n")
            note(f"slot {slot} {length}")
        else:
            note(f"found {kind} {payload!r} in data")
            sys.exit(5)


def take_files(answer: str = "OK", *, finish: bool = True) -> None:
    """Take files as a restore brings them, noting each, until FINISH."""
    while True:
        command = expect("C")
        note(command)
        if command == "FINISH":
            if finish:
                send("F")
            return
        if command.startswith("FNAME:"):
            for text in block():
                note(text)
            say(answer)
        elif command == "DATA":
            content = read_file()
            import zlib

            note(f"data {len(content)} {zlib.crc32(content)}")
            say("OK")


if __name__ == "__main__":
    script = os.environ["PGKEEP_CONFIG"]
    events = open(f"{script}.events", "a", encoding="utf-8", errors="surrogateescape", buffering=1)  # noqa: SIM115
    note(f"pid {os.getpid()}")
    with open(script, encoding="utf-8") as lines:
        code = compile(lines.read(), script, "exec")
    try:
        exec(code)  # noqa: S102
    except BrokenPipeError:
        note("broken pipe")
        sys.exit(6)
    _ = (signal, time)
