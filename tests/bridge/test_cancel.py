# ruff: noqa: E501 - a row of a table, a line of a script of the backend: one line each
"""Cancelling: from another thread, at any moment, and at once."""

from __future__ import annotations

import time

import pytest

from tests.bridge.fake_daemon import COMMAND, FakeDaemon

BACKUP = """
begin('BackupStart')
for number in range(3):
    content = b'x' * 3_000_000
    attributes(f'/@postgresql/{number}', size=len(content))
    say('DATA')
    send('D', content[:300_000])
    free = [0, 1, 2]
    for at in range(300_000, len(content), 900_000):
        while not free:
            free.append(int(expect('K')))
        lend(free.pop(), content[at:at + 900_000])
    send('F')
    while len(free) < 3:
        free.append(int(expect('K')))
send('F')
end()
"""


@pytest.mark.parametrize("after_milliseconds", [0, 3])
@pytest.mark.parametrize(
    ("point", "count"),
    [
        ("command", 1),
        ("start", 1),
        ("start", 2),
        ("open", 1),
        ("read", 1),
        ("read", 20),
        ("close", 2),
        ("end", 1),
        ("end", 3),
    ],
)
def test_backup_is_cancelled(daemon: FakeDaemon, point: str, count: int, after_milliseconds: int) -> None:
    """Wherever the job's thread is, it comes back, says nothing, and leaves no process."""
    daemon.order("cancel-at", point, count, after_milliseconds)
    daemon.backup(BACKUP)
    assert daemon.messages == []
    assert daemon.status in "AR"


# Not one long sleep: a signal that comes just before its system call would be looked at when that has ended.
DOZE = "while True: time.sleep(0.05)"

WAITS = {
    "greeting": "receive()\nWAIT\n",
    "job": "expect('C')\nsay('Hello Bacula')\nblock()\nWAIT\n",
    "start": "begin('')\nreceive()\nWAIT\n",
    "item": "begin('BackupStart')\nWAIT\n",
    "attributes": "begin('BackupStart')\nsay('FNAME:/a')\nWAIT\n",
    "data": "begin('BackupStart')\nattributes('/a', size=10)\nsay('DATA')\nsend('D', 'x')\nWAIT\n",
    "within a packet": "begin('BackupStart')\nattributes('/a', size=10)\nsay('DATA')\nraw(b'D000010\\nx')\nWAIT\n",
    "end": "begin('BackupStart')\nsend('F')\nexpect('C', 'END')\nWAIT\n",
    "exit": "begin('BackupStart')\nsend('F')\nexpect('C', 'END')\nsend('F')\nexpect('T')\nWAIT\n",
}


@pytest.mark.parametrize("signals", ["heeded", "ignored"])
@pytest.mark.parametrize("place", WAITS)
def test_wait_for_the_backend_is_cancelled(daemon: FakeDaemon, place: str, signals: str) -> None:
    """A wait for a backend that hangs ends at once; one that heeds SIGTERM is not killed, one that ignores it is."""
    daemon.add_settings("timeout = 300", f"kill_after = {1 if signals == 'ignored' else 300}")
    wait = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\nwhile True: time.sleep(1)"
        if signals == "ignored"
        else "signal.signal(signal.SIGTERM, lambda *_: sys.exit(note('terminated')))\nready()\n" + DOZE
    )
    daemon.order("cancel-at", "command", 1, 0, f"{daemon.script}.ready")
    started = time.monotonic()
    daemon.backup(WAITS[place].replace("WAIT", wait))
    assert time.monotonic() - started < 100
    assert daemon.messages == []
    assert daemon.status == "A"
    assert daemon.seen == (["terminated"] if signals == "heeded" else [])


def test_backend_is_told(daemon: FakeDaemon) -> None:
    """A backend that listens hears CANCEL, and has time to put things in order."""
    daemon.order("cancel-at", "command", 1, 0, f"{daemon.script}.ready")
    daemon.backup(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        begin('BackupStart')
        ready()
        note(expect('C'))
        send('I', 'stopping the backup\\n' * 10000)
        time.sleep(0.3)
        note('in order')
        """
    )
    assert daemon.seen == ["CANCEL", "in order"]
    assert daemon.status == "A"


def test_children_end_too(daemon: FakeDaemon) -> None:
    """What the backend started ends with it."""
    daemon.order("cancel-at", "command", 1, 0, f"{daemon.script}.ready")
    daemon.backup(
        """
        import subprocess
        begin('BackupStart')
        note(f'child {subprocess.Popen(["sleep", "1000"]).pid}')
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        ready()
        while True: time.sleep(0.05)
        """
    )
    assert len(daemon.pids()) == 2
    assert daemon.messages == []


@pytest.mark.parametrize(
    ("point", "count"), [("restore-command", 1), ("create", 1), ("write", 1), ("write", 50), ("close", 1)]
)
def test_restore_is_cancelled(daemon: FakeDaemon, point: str, count: int) -> None:
    """A restore comes back from wherever it is."""
    daemon.order("cancel-at", point, count, 0)
    daemon.begin_restore("begin('RestoreStart')\nexpect('C', 'EXPECT'); block(); say('OK')\ntake_files()\nend()\n")
    daemon.restore_file("/target/@postgresql/a", b"x" * 10_000_000)
    daemon.order("cancel")
    daemon.order("end-restore")
    assert daemon.messages == []
    assert not [line for line in daemon.seen if line.startswith(("COMPLETE", "FINISH"))] or point == "close"
    assert daemon.status == "A"


def test_finish_is_cancelled(daemon: FakeDaemon) -> None:
    """The long wait for what a restore starts at its end can be cancelled."""
    daemon.begin_restore(
        "begin('RestoreStart')\nexpect('C', 'EXPECT'); block(); say('OK')\ntake_files(finish=False)\ntime.sleep(1000)\n"
    )
    daemon.restore_file("/target/@postgresql/a", b"x")
    daemon.order("cancel-at", "close", 1, 500)
    daemon.restore_file("/target/@postgresql/b", b"x")
    daemon.order("end-restore")
    assert daemon.messages == []
    assert daemon.status == "A"


def test_cancelled_before_it_began(daemon: FakeDaemon) -> None:
    """A job that is cancelled before its first line starts no backend."""
    daemon.order("cancel")
    daemon.backup("note('started')")
    assert (daemon.messages, daemon.seen) == ([], [])


def test_cancelled_twice(daemon: FakeDaemon) -> None:
    """The daemon may say it again."""
    daemon.order("cancel")
    daemon.order("cancel")
    daemon.backup("note('started')")
    assert daemon.pids() == []


def test_context_is_freed_with_a_backend_that_hangs(daemon: FakeDaemon) -> None:
    """When the daemon only frees the context, as after an error of its own, the backend still ends, and soon."""
    daemon.add_settings("kill_after = 1")
    daemon.say(
        "begin('BackupStart')\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nfile('/a', b'1')\nwhile True: time.sleep(1)\n"
    )
    daemon.order("event", 20, COMMAND)
    daemon.order("stop-reading", 0)
    daemon.order("spoil", "i")
    daemon.order("backup", COMMAND)
    assert len(daemon.pids()) == 1
