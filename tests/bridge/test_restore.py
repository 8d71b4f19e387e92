# ruff: noqa: E501 - a row of a table, a line of a script of the backend: one line each
"""Restores: every byte reaches the backend, what fails is said, and the daemon never writes a file itself."""

from __future__ import annotations

import zlib

import pytest

from tests.bridge.fake_daemon import COMMAND, ERROR, FATAL, INFO, SLOT_BYTES, FakeDaemon

TAKE = "begin('RestoreStart')\nexpect('C', 'EXPECT'); block(); say('OK')\ntake_files()\nend()\n"
NAME = "/target/@postgresql/a"
AT_THE_END = (FATAL, "the restore has failed: see the first error of pgkeep's above")
"""A failed restore is read to its end before it becomes fatal: the daemon would wait for its own connections first."""


def end(daemon: FakeDaemon) -> None:
    """End the restore."""
    daemon.order("end-restore")


def created(daemon: FakeDaemon) -> list[str]:
    """What createFile answered, file by file."""
    assert all(words[1] == "0" for words in daemon.answers if words[0] == "created")
    assert not [words for words in daemon.answers if words[0] == "native"]
    return [words[2] for words in daemon.answers if words[0] == "created"]


def test_job_of_a_restore(daemon: FakeDaemon) -> None:
    """The backend is told where to, what to replace, and nothing of levels."""
    daemon.begin_restore(
        "begin('RestoreStart')\n[note(key) for key in JOB]\nexpect('C', 'EXPECT'); block(); say('OK')\ntake_files()\nend()\n"
    )
    daemon.restore_file(NAME, b"x")
    end(daemon)
    assert daemon.seen[:5] == [
        "Name=Nightly.2026-11-20_21.56.35_03",
        "JobID=7",
        "Type=R",
        "Where=/target",
        "Replace=a",
    ]
    assert not [key for key in daemon.seen if key.startswith(("Level=", "Since=", "PrevJobName=", "Lines="))]


def test_files_of_each_kind(daemon: FakeDaemon) -> None:
    """Each file is announced with name and attributes, and said to be complete."""
    daemon.begin_restore(TAKE)
    daemon.restore_file("/target/@postgresql/d/", kind=5)
    daemon.restore_file(NAME, b"hello")
    daemon.restore_file("/target/@postgresql/e", kind=2)
    daemon.restore_file("/target/@postgresql/s", kind=4, link="/elsewhere")
    end(daemon)
    times = "TSTAMP:0 1700000000 0"
    assert daemon.seen == [
        "FNAME:/target/@postgresql/d/", "STAT:D 0 0 0 040700 1 0", times, "COMPLETE:0",
        f"FNAME:{NAME}", "STAT:F 5 0 0 100600 1 0", times, "DATA", f"data 5 {zlib.crc32(b'hello')}", "COMPLETE:5",
        "FNAME:/target/@postgresql/e", "STAT:E 0 0 0 100600 1 0", times, "COMPLETE:0",
        "FNAME:/target/@postgresql/s", "STAT:S 0 0 0 120777 1 0", times, "LSTAT:/elsewhere", "COMPLETE:0",
        "FINISH",
    ]  # fmt: skip
    assert created(daemon) == ["3"] * 4
    # What the plugin answers to the attributes must stay as it was.
    assert [words[1] for words in daemon.answers if words[0] == "attributes"] == ["3"] * 4
    assert (daemon.status, daemon.messages) == ("R", [])


@pytest.mark.parametrize("ring", ["yes", "no"])
@pytest.mark.parametrize("size", [1, 16383, 16384, 65536, SLOT_BYTES - 1, SLOT_BYTES, SLOT_BYTES + 1, 40_000_001])
def test_sizes(daemon: FakeDaemon, size: int, ring: str) -> None:
    """Content of any size comes whole, through the ring or without."""
    daemon.add_settings(f"ring = {ring}")
    content = (b"0123456789abcde" * (size // 15 + 1))[:size]
    daemon.begin_restore(TAKE)
    daemon.restore_file(NAME, content)
    end(daemon)
    slots = [line.split() for line in daemon.seen if line.startswith("slot ")]
    rest = [line for line in daemon.seen if not line.startswith("slot ")]
    assert rest[-3:] == [f"data {size} {zlib.crc32(content)}", f"COMPLETE:{size}", "FINISH"]
    last = size % SLOT_BYTES
    # What is small goes through the pipe.
    in_slots = size - last if last < 16384 else size
    assert sum(int(length) for _, _, length in slots) == (in_slots if ring == "yes" else 0)
    assert (daemon.status, daemon.messages) == ("R", [])


def test_options_and_objects(daemon: FakeDaemon) -> None:
    """Each line's backend gets the answers of the menu and the blobs that were kept, for it and for others, with their jobs."""
    path = daemon.directory / "object"
    first, second = "pgkeep: mode=pitr", "pgkeep: mode=dump"
    for job, word in ((3, b"full"), (5, b"incr")):
        path.write_bytes(
            b"".join(b"%d %d\n%s%s" % (len(c), len(word) + 1, c.encode(), word + b"\0") for c in (first, second))
        )
        daemon.order("object", 25, "pgkeep", job, second, path)
    path.write_bytes(b"# text\nx=1\n")
    daemon.order("object", 28, "RestoreOptions", 9, first, path)
    path.write_bytes(b"other")
    daemon.order("object", 25, "somebody else's", 9, first, path)
    daemon.order("event", 18)
    for number in range(3):
        daemon.order("expected", f"/@postgresql/pitr/{number}", number * 1000)
        daemon.order("expected", f"/etc/{number}", 5)
    daemon.begin_restore(
        """
        begin('')
        text = expect('C')
        while text != 'RestoreStart':
            note(text)
            kind, payload = receive()
            while kind == 'D':
                note(repr(payload))
                kind, payload = receive()
            say('OK')
            text = expect('C')
        send('F')
        text = expect('C')
        while text != 'EXPECT':
            note(text)
            note(expect('C'))
            note(expect('C'))
            note(repr(receive()))
            expect('F')
            say('OK')
            text = expect('C')
        content = b''
        kind, payload = receive()
        while kind == 'D':
            content += payload
            kind, payload = receive()
        note(repr(content))
        say('OK')
        take_files()
        end()
        """
    )
    daemon.restore_file(NAME, b"x", command=first)
    daemon.restore_file(NAME, b"y", command=second)
    daemon.restore_file(NAME, b"x", command=first)
    end(daemon)
    blobs = [
        [f"RESTOREOBJ:{name}", "RESTOREOBJ_LEN:5", f"RESTOREOBJ_JOB:{job}", f"('D', b'{word}\\x00')"]
        for job, word in ((3, "full"), (5, "incr"))
        for name in ("pgkeep", "beside")
    ]
    expected = repr(
        b"".join(b"%d 1700000000 0 /@postgresql/pitr/%d\0" % (number * 1000, number) for number in range(3))
    )
    seen = daemon.seen
    head = [f"RESTOREOPTIONS:{first}", repr(b"# text\nx=1\n"), *(line for blob in blobs for line in blob), expected]
    assert seen[: len(head)] == head
    assert seen.count(expected) == 2
    assert seen.count("FINISH") == 2
    assert sum(line.startswith("COMPLETE:") for line in seen) == 3
    assert len(daemon.pids()) == 2
    assert ["features", "RestoreListFiles"] in daemon.answers
    assert (daemon.status, daemon.messages) == ("R", [])


def test_many_expected_files(daemon: FakeDaemon) -> None:
    """The list of files is kept in a file that has no name, and comes in order."""
    for number in range(3000):
        daemon.order("expected", f"/@postgresql/{'x' * 100}/{number:05}", number)
    daemon.begin_restore(
        """
        begin('RestoreStart')
        expect('C', 'EXPECT')
        entries = read_file().split(b'\\0')
        note(f"{len(entries)} {entries[-1]!r} {entries[-2].split(b'/')[-1]!r}")
        say('OK')
        take_files()
        end()
        """
    )
    daemon.restore_file(NAME, b"x")
    end(daemon)
    assert daemon.seen[0] == "3001 b'' b'02999'"
    assert daemon.status == "R"


def test_skipped_files(daemon: FakeDaemon) -> None:
    """SKIP leaves a file out; a later record of attributes is passed over without asking."""
    daemon.begin_restore(
        "begin('RestoreStart')\nexpect('C', 'EXPECT'); block(); say('OK')\ntake_files('SKIP')\nend()\n"
    )
    daemon.restore_file(NAME, b"hello")
    daemon.restore_file(NAME, b"hello", stream=37)
    end(daemon)
    assert created(daemon) == ["1", "1"]
    assert sum(line.startswith("FNAME") for line in daemon.seen) == 1
    assert (daemon.status, daemon.messages) == ("R", [])


def test_file_that_is_refused(daemon: FakeDaemon) -> None:
    """An error for one file is an error of the job; the next file goes on."""
    daemon.begin_restore(
        """
        begin('RestoreStart')
        expect('C', 'EXPECT'); block(); say('OK')
        expect('C'); block()
        send('E', 'not this one\\n')
        take_files()
        end()
        """
    )
    daemon.restore_file(NAME, b"hello")
    daemon.restore_file(NAME, b"hello")
    end(daemon)
    assert created(daemon) == ["2", "3"]
    assert daemon.messages == [(ERROR, "not this one")]
    assert "COMPLETE:5" in daemon.seen


def test_file_that_is_refused_after_its_data(daemon: FakeDaemon) -> None:
    """An error in place of the OK behind the data is an error of the job, and nothing is said of the file any more."""
    daemon.begin_restore(
        """
        begin('RestoreStart')
        expect('C', 'EXPECT'); block(); say('OK')
        expect('C'); block(); say('OK')
        expect('C', 'DATA'); read_file()
        send('E', 'disk full\\n')
        take_files()
        end()
        """
    )
    daemon.restore_file(NAME, b"hello")
    daemon.restore_file(NAME, b"hello")
    end(daemon)
    assert daemon.messages == [(ERROR, "disk full")]
    assert [line for line in daemon.seen if line.startswith(("COMPLETE", "FAILED"))] == ["COMPLETE:5"]
    assert ["io-error", "4", "5"] in daemon.answers


@pytest.mark.parametrize("ring", ["yes", "no"])
def test_file_that_is_refused_within_its_data(daemon: FakeDaemon, ring: str) -> None:
    """An error while data is on its way stops the daemon's writing; the data still ends with F, and the next file goes on."""
    daemon.add_settings(f"ring = {ring}")
    daemon.begin_restore(
        """
        begin('RestoreStart')
        expect('C', 'EXPECT'); block(); say('OK')
        expect('C'); block(); say('OK')
        expect('C', 'DATA')
        receive()
        send('E', 'disk full\\n')
        lent = []
        while (packet := receive())[0] != 'F':
            pass
        for slot in range(8):
            pass
        note('ended')
        if RING:
            send('K', '0\\n')
        take_files()
        end()
        """
    )
    daemon.restore_file(NAME, b"x" * 30_000_000)
    assert daemon.messages[0] == (ERROR, "disk full")
    assert ["io-error", "3", "5"] in daemon.answers
    daemon.await_event("ended")


def test_file_that_the_daemon_gives_up(daemon: FakeDaemon) -> None:
    """What the daemon does not bring to its end is said to have failed, and the next file goes on."""
    daemon.begin_restore(TAKE)
    daemon.restore_file(NAME, b"x" * 300_000, give_up_after=100_000)
    daemon.restore_file("/target/@postgresql/b", b"hello", give_up_after=0)
    daemon.restore_file("/target/@postgresql/c", b"hello")
    end(daemon)
    assert [line for line in daemon.seen if line.startswith(("COMPLETE", "FAILED"))] == [
        "FAILED:the daemon gave up on it",
        "FAILED:the daemon gave up on it",
        "COMPLETE:5",
    ]
    assert (daemon.status, daemon.messages) == ("R", [])


DAMAGE = {
    "an abort": ("send('A', 'broken\\n')\nreceive()", "broken"),
    "an exit": ("sys.exit(9)", "the backend ended (exit status 9)"),
    "a native restore": ("say('CORE')\nreceive()", 'the backend broke the protocol: expected OK or SKIP, found the command "CORE"'),
    "an F": ("send('F')\nreceive()", "the backend broke the protocol: expected a command, found a F packet of 0 bytes"),
    "garbage": ("raw(b'12345678')\nreceive()", 'the backend broke the protocol: unknown packet type, found "12345678"'),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(daemon: FakeDaemon, name: str) -> None:
    """After a backend failed every file of its line is passed over: none is written by the daemon itself."""
    script, message = DAMAGE[name]
    daemon.begin_restore(
        f"begin('RestoreStart')\nexpect('C', 'EXPECT'); block(); say('OK')\nexpect('C'); block()\n{script}\n"
    )
    daemon.restore_file(NAME, b"hello")
    daemon.order("number", 7, ord("R"))  # as if the daemon went on all the same
    daemon.restore_file(NAME, b"hello")
    end(daemon)
    assert created(daemon) == ["2", "1"]
    assert daemon.messages == [(ERROR, message), AT_THE_END]
    assert daemon.status == "f"
    assert len(daemon.pids()) == 1


@pytest.mark.parametrize("place", ["within data", "for the ring"])
def test_backend_that_dies_while_data_is_sent(daemon: FakeDaemon, place: str) -> None:
    """A backend that goes away under the data fails the job."""
    daemon.add_settings(f"ring = {'yes' if place == 'for the ring' else 'no'}")
    daemon.begin_restore(
        """
        begin('RestoreStart')
        expect('C', 'EXPECT'); block(); say('OK')
        expect('C'); block(); say('OK')
        expect('C', 'DATA')
        receive(); receive()
        os.kill(os.getpid(), 9)
        """
    )
    daemon.restore_file(NAME, b"x" * 30_000_000)
    end(daemon)
    [(kind, text), last] = daemon.messages
    assert (kind, last) == (ERROR, AT_THE_END)
    assert text in ("the backend ended (signal 9)", "the backend stopped listening (signal 9)")
    assert daemon.status == "f"


def test_backend_that_holds_all_slots(daemon: FakeDaemon) -> None:
    """A backend that never gives a slot back, and is silent, fails the job after the time out."""
    daemon.add_settings("timeout = 1")
    daemon.begin_restore(
        """
        begin('RestoreStart')
        expect('C', 'EXPECT'); block(); say('OK')
        expect('C'); block(); say('OK')
        time.sleep(1000)
        """
    )
    daemon.restore_file(NAME, b"x" * 30_000_000)
    end(daemon)
    assert daemon.messages == [(ERROR, "the backend was silent for 1 seconds"), AT_THE_END]


def test_messages_while_data_is_sent(daemon: FakeDaemon) -> None:
    """A backend may speak while it is spoken to: neither waits for the other."""
    daemon.add_settings("ring = no")
    daemon.begin_restore(
        """
        begin('RestoreStart')
        expect('C', 'EXPECT'); block(); say('OK')
        expect('C'); block(); say('OK')
        expect('C', 'DATA')
        for _ in range(200):
            send('I', 'x' * 1900)
        count = len(read_file())
        say('OK')
        expect('C', f'COMPLETE:{count}')
        expect('C', 'FINISH'); send('F')
        end()
        """
    )
    daemon.restore_file(NAME, b"x" * 3_000_000)
    end(daemon)
    assert len(daemon.messages) == 200
    assert daemon.messages[0][0] == INFO
    assert daemon.status == "R"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("send('E', 'the backup does not reach the target\\nselect with before=\\n')\nreceive()", "the backup does not reach the target (select with before=)"),
        ("send('F')\nexpect('C', 'END')\nsend('F')\nexpect('T')\nsys.exit(2)", "the backend did not end well (exit status 2)"),
        ("sys.exit(1)", "the backend ended (exit status 1)"),
    ],
)  # fmt: skip
def test_failed_finish(daemon: FakeDaemon, script: str, message: str) -> None:
    """What goes wrong when all has come is a fatal error."""
    daemon.begin_restore(
        f"begin('RestoreStart')\nexpect('C', 'EXPECT'); block(); say('OK')\ntake_files(finish=False)\n{script}\n"
    )
    daemon.restore_file(NAME, b"hello")
    end(daemon)
    assert daemon.messages == [(FATAL, message)]
    assert daemon.status == "f"


def test_failed_start(daemon: FakeDaemon) -> None:
    """A restore that the backend refuses before the first file fails, and no file is written."""
    daemon.begin_restore("begin('')\nexpect('C', 'RestoreStart')\nsend('E', 'target is not empty\\n')\nreceive()\n")
    daemon.restore_file(NAME, b"hello")
    end(daemon)
    assert created(daemon) == ["1"]
    assert daemon.messages == [(ERROR, "target is not empty"), AT_THE_END]
    assert daemon.status == "f"


@pytest.mark.parametrize(
    "content",
    [b"x", b"3 4\npgkfourmore", b"3 5\npgkfour", b"3\npgk", b"-1 5\npgkfours", b"99999999999999999999999 1\n"],
)
def test_damaged_object(daemon: FakeDaemon, content: bytes) -> None:
    """A restore object that cannot be taken apart fails the restore."""
    path = daemon.directory / "object"
    path.write_bytes(content)
    daemon.order("object", 25, "pgkeep", 3, COMMAND, path)
    assert daemon.messages == [(FATAL, "a restore object of the catalog is damaged")]


def test_too_many_objects(daemon: FakeDaemon) -> None:
    """What is kept in memory for a restore is bounded."""
    path = daemon.directory / "object"
    path.write_bytes(b"3 1000000\npgk" + b"x" * 1_000_000)
    for number in range(68):
        daemon.order("object", 25, "pgkeep", number, COMMAND, path)
    assert daemon.messages == [(FATAL, "there are more than 64 MiB of restore objects")]


def test_spoiled_packet(daemon: FakeDaemon) -> None:
    """A restore packet of another size is not used."""
    daemon.begin_restore(TAKE)
    daemon.order("spoil", "r")
    daemon.restore_file(NAME, b"hello")
    assert created(daemon) == ["2"]
    [(kind, text)] = daemon.messages
    assert kind == FATAL
    assert text.startswith("this daemon's restore packet has ")


def test_unknown_kind_of_file(daemon: FakeDaemon) -> None:
    """A device or the like, which pgkeep never saves, is refused."""
    daemon.begin_restore(TAKE)
    daemon.restore_file(NAME, kind=6)
    end(daemon)
    assert created(daemon) == ["2"]
    assert daemon.messages == [(ERROR, f"{NAME}: a file of type 6 cannot be restored")]
