# ruff: noqa: E501 - a row of a table, a line of a script of the backend: one line each
"""Backups: what the backend says is what the daemon saves, and whatever is missing is a fatal error."""

from __future__ import annotations

import os
import time

import pytest

from tests.bridge.fake_daemon import COMMAND, FATAL, INFO, SLOT_BYTES, SLOTS, WARNING, FakeDaemon


def test_job_and_parameters_reach_the_backend(daemon: FakeDaemon) -> None:
    """The backend is told of the job and of each word of its line, and nothing else."""
    daemon.order("text", 20, "Nightly.2026-11-19_21.56.35_02")
    daemon.order("number", 9, 1)
    daemon.order("value-event", 13, 4102444800)
    command = 'pgkeep:mode=dump flag  database="a b" x=\\"q\\" y="1\\\\2"'
    daemon.backup(
        "begin('BackupStart')\n[note(k) for k in JOB + PARAMETERS]\nsend('F')\nend()\n", command=command, level="I"
    )
    [run] = [line for line in daemon.seen if line.startswith("Run=")]
    assert abs(time.time_ns() - int(run.removeprefix("Run="))) < 3600 * 10**9
    ring = [line for line in daemon.seen if line.startswith("Ring=")]
    assert daemon.seen == [
        "Name=Nightly.2026-11-20_21.56.35_03",
        "JobID=7",
        "Type=B",
        "Level=I",
        "Since=4102444800",
        "PrevJobName=Nightly.2026-11-19_21.56.35_02",
        "Namespace=@postgresql",
        f"WorkingDir={daemon.work}",
        "SysconfigPath=/etc/bacula/",
        f"ExePath={daemon.directory}/bin/",
        "Accurate=1",
        "FDName=lab-fd",
        "ClientName=lab-client",
        "FDVersion=15.0.3 (25 March 2025)",
        "JobType=B",
        "Lines=1 1",
        run,
        *ring,
        "mode=dump",
        "flag=1",
        "database=a b",
        'x="q"',
        "y=1\\2",
    ]
    assert ring == [f"Ring=3 {SLOTS} {SLOT_BYTES}"]
    assert (daemon.status, daemon.messages) == ("R", [])


def test_environment_of_the_backend(daemon: FakeDaemon) -> None:
    """The backend has a small environment of its own, its own process group, no signal ignored and no open file else."""
    daemon.backup(
        """
        begin('BackupStart')
        for key in sorted(os.environ):
            note(key)
        note(str(os.environ['BACULA_JOBID']))
        note(str(os.getpgid(0) == os.getpid()))
        note(os.getcwd())
        links = [os.readlink(f'/proc/self/fd/{f}') for f in range(60) if os.path.islink(f'/proc/self/fd/{f}')]
        note(' '.join(sorted({link.split(':')[0] for link in links if not link.startswith(os.path.dirname(script))})))
        note(next(line for line in open('/proc/self/status') if line.startswith('SigBlk')).split()[1])
        note(next(line for line in open('/proc/self/status') if line.startswith('SigIgn')).split()[1])
        send('F')
        end()
        """
    )
    names = [name for name in daemon.seen if name.isupper()]
    assert [name for name in names if name not in ("TZ", "LC_CTYPE")] == [
        "BACULA_JOBID", "HOME", "LANG", "PATH", "PGKEEP_CONFIG",
    ]  # fmt: skip
    rest = daemon.seen[len(names) :]
    assert rest[:3] == ["7", "True", "/"]
    assert rest[3] == "/memfd pipe"
    assert int(rest[4], 16) == 0
    # Python itself ignores SIGPIPE (13) and SIGXFSZ (25).
    assert int(rest[5], 16) & ~(1 << 12 | 1 << 24) == 0


def test_files_of_each_kind(daemon: FakeDaemon) -> None:
    """Regular, empty, directory, links: each comes to the daemon with its attributes."""
    daemon.backup(
        """
        begin('BackupStart')
        file('/@postgresql/a', b'hello')
        file('/@postgresql/e', None, kind='E')
        file('/@postgresql/z', None, size=0)
        file('/@postgresql/zd', b'', size=0)
        file('/@postgresql/u', b'unknown', size=-1)
        file('/@postgresql/d/', None, kind='D')
        file('/@postgresql/s', None, kind='S', link='/target')
        file('/@postgresql/l', None, kind='L', link='/@postgresql/a')
        send('F')
        end()
        """
    )
    assert daemon.files == [
        ["1", "3", "/@postgresql/a", "", "5", "1", "2", "100600", "1700000001", "5", "0"],
        ["2", "2", "/@postgresql/e", "", "0", "1", "2", "100600", "1700000001", "5", "0"],
        ["3", "2", "/@postgresql/z", "", "0", "1", "2", "100600", "1700000001", "5", "0"],
        ["4", "3", "/@postgresql/zd", "", "0", "1", "2", "100600", "1700000001", "5", "0"],
        ["5", "3", "/@postgresql/u", "", "-1", "1", "2", "100600", "1700000001", "5", "0"],
        ["6", "5", "/@postgresql/d/", "/@postgresql/d/", "0", "1", "2", "40700", "1700000001", "5", "1"],
        ["7", "4", "/@postgresql/s", "/target", "0", "1", "2", "120777", "1700000001", "5", "1"],
        ["8", "1", "/@postgresql/l", "/@postgresql/a", "0", "1", "2", "100600", "1700000001", "5", "1"],
    ]
    assert daemon.saved["/@postgresql/a"] == b"hello"
    assert daemon.saved["/@postgresql/u"] == b"unknown"
    assert (daemon.status, daemon.messages) == ("R", [])


@pytest.mark.parametrize("read_size", [65536, 65528, 1000, 1 << 20])
def test_data_through_ring_and_pipe(daemon: FakeDaemon, read_size: int) -> None:
    """Content is the same through slots and D packets, mixed in one file, however much the daemon reads at once."""
    daemon.order("read-size", read_size)
    daemon.backup(
        """
        begin('BackupStart')
        content = b''.join(b'%07d\\n' % i for i in range(5_600_000))
        open(script + '.content', 'wb').write(content)
        attributes('/@postgresql/big', size=len(content))
        say('DATA')
        free = list(range(len(RING[0]) // SLOT_BYTES[0]))
        at = 0
        while at < len(content):
            send('I', 'going on\\n') if at == 0 else None
            if at % 3 == 1:
                send('D', content[at:at + 77_777])
                at += 77_777
                continue
            while not free:
                free.append(int(expect('K')))
            piece = content[at:at + SLOT_BYTES[0] - at % 5]
            lend(free.pop(0), piece)
            at += len(piece)
        send('F')
        send('F')
        while True:
            kind, payload = receive()
            if kind == 'C':
                break
            free.append(int(payload))
        assert payload == b'END\\n', payload
        note(str(sorted(free)))
        send('F')
        expect('T')
        """
    )
    assert daemon.messages == [(INFO, "going on")]
    assert daemon.saved["/@postgresql/big"] == (daemon.directory / "script.content").read_bytes()
    assert daemon.seen == [str(list(range(SLOTS)))]
    assert daemon.status == "R"


def test_without_ring(daemon: FakeDaemon) -> None:
    """Ring = no leaves the key out, and D packets do as well."""
    daemon.add_settings("ring = no")
    daemon.backup("begin('BackupStart')\nnote(str(RING))\nfile('/@postgresql/a', b'x' * 999_999)\nsend('F')\nend()\n")
    assert daemon.seen == ["[]"]
    assert daemon.saved == {"/@postgresql/a": b"x" * 999_999}


def test_objects(daemon: FakeDaemon) -> None:
    """The menu's questions, a database and the restore object become objects of the job; the last comes last."""
    daemon.backup(
        """
        begin('BackupStart')
        say('FileIndex')
        note(expect('C'))
        say('CONFIGOBJ:RestoreOptions')
        send('D', 'a=@STR@\\n')
        send('F')
        file('/@postgresql/a', b'1')
        say('PLUGINOBJ:/@postgresql/a')
        for text in ('CAT:Database', 'TYPE:PostgreSQL', 'NAME:my base', 'SRC:', 'SIZE:123456789012', 'COUNT:3', 'STATUS:OK'):
            say('PLUGINOBJ_' + text)
        send('F')
        say('RESTOREOBJ:head')
        say('RESTOREOBJ_LEN:5')
        send('D', b'he')
        send('D', b'ad\\0')
        send('F')
        file('/@postgresql/b', b'2')
        send('F')
        end()
        """
    )
    assert [(words[1], words[2]) for words in daemon.files] == [
        ("27", "RestoreOptions"),
        ("3", "/@postgresql/a"),
        ("29", "/@postgresql/a"),
        ("3", "/@postgresql/b"),
        ("25", "pgkeep"),
    ]
    assert (daemon.out / "data-1").read_bytes() == b"a=@STR@\n"
    assert (daemon.out / "data-5").read_bytes() == b"%d 5\n%shead\0" % (len(COMMAND), COMMAND.encode())
    assert [
        "plugin-object",
        "/@postgresql/a",
        "Database",
        "PostgreSQL",
        "my base",
        "-",
        "-",
        "123456789012",
        "T",
        "3",
    ] in (daemon.answers)
    assert daemon.seen == ["0"]
    assert daemon.status == "R"


def test_two_lines(daemon: FakeDaemon) -> None:
    """Each line has a backend of its own; one object behind the last file of the last line holds what both want back."""
    first, second = "pgkeep: mode=pitr", "pgkeep: mode=dump"
    daemon.say(
        """
        begin('BackupStart')
        [note(key) for key in JOB if key.startswith(('Lines=', 'Run='))]
        file('/@postgresql/' + PARAMETERS[0], b'x')
        say('RESTOREOBJ:head')
        say('RESTOREOBJ_LEN:4')
        send('D', PARAMETERS[0][-4:])
        send('F')
        send('F')
        end()
        """
    )
    for line in (first, second):
        daemon.order("event", 20, line)
    for line in (first, second):
        daemon.order("backup", line)
    daemon.order("end-backup")
    assert [words[2] for words in daemon.files] == ["/@postgresql/mode=pitr", "/@postgresql/mode=dump", "pgkeep"]
    expected = f"{len(first)} 4\n{first}pitr{len(second)} 4\n{second}dump"
    assert (daemon.out / "data-3").read_text() == expected
    run = daemon.seen[1]
    assert run.startswith("Run=")
    assert daemon.seen == ["Lines=2 1", run, "Lines=2 2", run]
    assert (daemon.status, daemon.messages) == ("R", [])


def test_repeated_line_is_refused(daemon: FakeDaemon) -> None:
    """Two lines with the same text are told apart by nothing: the job fails and says so."""
    daemon.order("event", 20, COMMAND)
    daemon.backup("note('started')")
    assert daemon.messages == [(FATAL, f"two Plugin lines of the FileSet are the same: {COMMAND}")]
    assert (daemon.status, daemon.seen) == ("f", [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('pgkeep: a="b', "a quotation mark is missing"),
        ("pgkeep: =b", "a word has no key"),
        ("pgkeep: a=\\", "it ends in a backslash"),
        ("pgkeep: a=\x01", "it holds a control character"),
    ],
)
def test_lines_that_cannot_be_read(daemon: FakeDaemon, line: str, message: str) -> None:
    """A line that cannot be taken apart fails the job before a backend is started."""
    daemon.backup("note('started')", command=line)
    assert daemon.messages == [(FATAL, f"the Plugin line cannot be read: {message}")]
    assert (daemon.status, daemon.seen) == ("f", [])


def test_accurate_questions(daemon: FakeDaemon) -> None:
    """The backend learns what the catalog has, and says what is there still; the rest is reported as deleted."""
    for name in ("a", "b", "old", "wal/1", "wal/2"):
        daemon.order("catalogue", f"/@postgresql/{name}", 10, 1600000000)
    daemon.order("number", 9, 1)
    daemon.backup(
        """
        begin('BackupStart')
        say('CHECKGET:/@postgresql/a')
        note(expect('C')); note(expect('C'))
        say('CHECKGET:/@postgresql/none')
        note(expect('C'))
        say('SEEN')
        send('D', b'/@postgresql/a\\0/@postg')
        send('D', b'resql/none\\0')
        send('F')
        say('KEEP:/@postgresql/wal/')
        file('/@postgresql/b', b'new')
        send('F')
        end()
        """,
        level="I",
    )
    assert daemon.seen == [
        "STAT:X 10 0 0 100600 0 0",
        "TSTAMP:0 1600000000 0",
        "UNAVAIL",
    ]
    unseen = [words[1:] for words in daemon.answers if words[0] == "unseen"]
    assert unseen == [["/@postgresql/old", "0"], ["/@postgresql/wal/1", "5"], ["/@postgresql/wal/2", "5"]]
    assert not [words for words in daemon.answers if words[0] == "called"]
    assert (daemon.status, daemon.messages) == ("R", [])


def test_questions_in_a_job_that_is_not_accurate(daemon: FakeDaemon) -> None:
    """Without an accurate list a question is answered by E NOACCJOB and marks are passed over."""
    daemon.backup(
        """
        begin('BackupStart')
        say('CHECKGET:/@postgresql/a')
        note(expect('E'))
        say('SEEN'); send('D', b'/a\\0'); send('F')
        send('F')
        end()
        """
    )
    assert (daemon.seen, daemon.status) == (["NOACCJOB"], "R")
    assert not [words for words in daemon.answers if words[0] == "seen"]


def test_messages(daemon: FakeDaemon) -> None:
    """Each kind of message has its type in the log; hints stand behind the message, control characters are shown."""
    daemon.backup(
        """
        begin('BackupStart')
        for kind in 'WISNRPOVQ':
            send(kind, kind + ' %s %n\\tsays\\nthis helps\\nthat too\\n')
        send('I', '')
        send('I', 'ä' * 1500)
        send('I', bytes.fromhex('ff2061c320e282ac20eda08020c0af20f09f988020f49080802000207f20e282'))
        send('F')
        end()
        """
    )
    types = {"W": 6, "I": 7, "S": 8, "N": 9, "R": 14, "P": 10, "O": 11, "V": 3, "Q": 5}
    assert daemon.messages[:9] == [
        (number, f"{kind} %25s %25n?says (this helps) (that too)") for kind, number in types.items()
    ]
    assert daemon.messages[9] == (INFO, "(nothing said)")
    assert daemon.messages[10][1] == "ä" * 950
    assert daemon.messages[11][1] == "? a? € ??? ?? 😀 ???? ? ? ??"
    assert daemon.status == "R"


def test_standard_error_is_shown_as_warnings(daemon: FakeDaemon) -> None:
    """Lines on standard error are warnings, fifty at most; closing it is nothing."""
    daemon.backup(
        """
        begin('BackupStart')
        os.write(2, b'one\\ntwo')
        os.write(2, b'\\n' + b'x\\n' * 60)
        os.close(2)
        file('/@postgresql/a', b'data')
        send('F')
        end()
        """
    )
    prefix = "the backend wrote to standard error: "
    assert daemon.messages[:3] == [(WARNING, f"{prefix}{text}") for text in ("one", "two", "x")]
    assert daemon.messages[50] == (WARNING, "the backend wrote more to standard error, which is not shown")
    assert len(daemon.messages) == 51
    assert daemon.status == "R"


def test_much_standard_error_does_not_block(daemon: FakeDaemon) -> None:
    """A backend that fills standard error and then its output is read on both."""
    daemon.backup(
        """
        begin('BackupStart')
        os.write(2, b'y' * 300_000)
        file('/@postgresql/a', b'data' * 100_000)
        send('F')
        end()
        """
    )
    assert daemon.saved["/@postgresql/a"] == b"data" * 100_000
    assert daemon.status == "R"


def test_heartbeats_keep_a_slow_backend(daemon: FakeDaemon) -> None:
    """Signs of life anywhere restart the deadline."""
    daemon.add_settings("timeout = 1")
    daemon.backup(
        """
        begin('BackupStart')
        def beat():
            for _ in range(5):
                time.sleep(0.4)
                send('H')
        beat()
        attributes('/@postgresql/a', size=2)
        beat()
        say('DATA')
        beat()
        send('D', 'xx')
        beat()
        send('F')
        send('F')
        end()
        """
    )
    assert (daemon.status, daemon.messages) == ("R", [])
    assert daemon.saved == {"/@postgresql/a": b"xx"}


def test_status_of_the_daemon_ends_the_line(daemon: FakeDaemon) -> None:
    """When somebody else failed the job nothing more is asked of the backend, and it is ended."""
    daemon.say("begin('BackupStart')\nfile('/@postgresql/a', b'1')\nreceive()\n")
    daemon.order("event", 20, COMMAND)
    daemon.order("number", 7, ord("f"))
    daemon.order("backup", COMMAND)
    daemon.order("end-backup")
    assert (daemon.files, daemon.messages) == ([], [])


def test_daemon_that_stops_reading(daemon: FakeDaemon) -> None:
    """A file that the daemon did not read to its end makes the job fail: what comes next would be out of step."""
    daemon.order("stop-reading", 2)
    daemon.backup("begin('BackupStart')\nfile('/@postgresql/a', b'1' * 500_000)\nsend('F')\nend()\n")
    assert daemon.messages == [(FATAL, "the daemon stopped reading /@postgresql/a after 131072 bytes")]
    assert daemon.status == "f"


def test_pipes_full_on_both_sides(daemon: FakeDaemon) -> None:
    """A backend that asks without listening for answers is listened to while it is answered."""
    daemon.order("number", 9, 1)
    daemon.order("catalogue", "/@postgresql/a", 10, 1600000000)
    daemon.backup(
        """
        import threading
        begin('BackupStart')
        def read():
            time.sleep(0.5)
            while receive()[1] != b'END\\n':
                pass
            send('F')
            expect('T')
        thread = threading.Thread(target=read)
        thread.start()
        for i in range(5000):
            say('CHECKGET:/@postgresql/a')
            if i % 100 == 0:
                send('I', 'x' * 1000)
        send('F')
        thread.join()
        """
    )
    assert daemon.status == "R"
    assert len(daemon.messages) == 50


def test_user(daemon: FakeDaemon) -> None:
    """With user = the backend runs with that user's identity and groups and nobody else's."""
    if os.geteuid() != 0:
        daemon.add_settings("user = daemon")
        daemon.backup("note('started')")
        assert daemon.messages == [(FATAL, 'cannot become "daemon": the daemon does not run as root')]
        return
    import pwd

    nobody = pwd.getpwnam("daemon")
    for path in daemon.directory.parents:
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(0o755)
    daemon.directory.chmod(0o777)
    daemon.add_settings("user = daemon")
    daemon.backup(
        """
        begin('BackupStart')
        note(f'{os.getresuid()} {os.getresgid()} {os.getgroups()} {os.environ["HOME"]}')
        file('/@postgresql/a', b'1')
        send('F')
        end()
        """
    )
    uid, gid = nobody.pw_uid, nobody.pw_gid
    assert daemon.seen == [f"{(uid,) * 3} {(gid,) * 3} [{gid}] {nobody.pw_dir}"]
    assert daemon.status == "R"
