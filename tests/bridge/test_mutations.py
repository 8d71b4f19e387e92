"""Sessions with a few bytes changed: the bridge may refuse one or take it, and neither hangs nor trips."""

from __future__ import annotations

import random

import pytest

from tests.bridge.fake_daemon import FATAL, FakeDaemon

SESSIONS = 25


def packet(kind: str, payload: bytes = b"") -> bytes:
    """Return the bytes of one packet."""
    return b"%s%06d\n" % (kind.encode(), len(payload)) + payload


SESSION = b"".join(
    (
        packet("C", b"CONFIGOBJ:RestoreOptions\n"), packet("D", b"x=@STR@\n"), packet("F"),
        packet("C", b"CHECKGET:/@postgresql/a\n"),
        packet("C", b"FNAME:/@postgresql/a\n"), packet("C", b"STAT:F 10 1 2 100600 1\n"),
        packet("C", b"TSTAMP:1 2 3\n"), packet("F"), packet("C", b"DATA\n"), packet("D", b"12345"), packet("H"),
        packet("M", b"0 3\n"), packet("I", b"text\n"), packet("D", b"12"), packet("F"),
        packet("C", b"SEEN\n"), packet("D", b"/a\0/b\0"), packet("F"), packet("C", b"KEEP:/@postgresql/wal/\n"),
        packet("C", b"FNAME:/@postgresql/s\n"), packet("C", b"LSTAT:a\n"), packet("C", b"STAT:S 0 1 2 120777 1\n"),
        packet("C", b"TSTAMP:1 2 3\n"), packet("F"), packet("F"),
        packet("C", b"PLUGINOBJ:/@postgresql/a\n"), packet("C", b"PLUGINOBJ_SIZE:10\n"), packet("F"),
        packet("C", b"RESTOREOBJ:pgkeep\n"), packet("C", b"RESTOREOBJ_LEN:4\n"), packet("D", b"head"), packet("F"),
        packet("F"), packet("F"),
    )
)  # fmt: skip


def mutated(session: bytes, chance: random.Random) -> bytes:
    """Return *session* with one to three bytes changed, lost, or doubled."""
    data = bytearray(session)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice(b"0123456789CDFMKH\n \0-")
            case 2:
                del data[at : at + chance.randint(1, 9)]
            case _:
                data[at:at] = data[at : at + chance.randint(1, 9)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_sessions(daemon: FakeDaemon, seed: int) -> None:
    """Whatever a backend says, each job ends: well, or with a fatal error that says why."""
    daemon.add_settings("timeout = 1", "kill_after = 1")
    chance = random.Random(seed)
    for number in range(SESSIONS):
        session = SESSION if number == 0 else mutated(SESSION, chance)
        first = len(daemon.answers)
        daemon.order("free")
        daemon.order("new")
        daemon.order("number", 7, ord("R"))
        daemon.backup(
            f"""
            begin('BackupStart')
            raw(bytes.fromhex('{session.hex()}'))
            while (packet := receive())[0] != 'T':
                pass
            """
        )
        answers = daemon.answers[first:]
        fatal = [words for words in answers if words[0] == "message" and words[1] == str(FATAL)]
        assert ["backup-ended", "f" if fatal else "R"] in answers, session
        assert len(fatal) <= 1
        assert number > 0 or not fatal
