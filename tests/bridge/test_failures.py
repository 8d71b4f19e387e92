# ruff: noqa: E501 - a row of a table, a line of a script of the backend: one line each
"""The damage table of a backup: whatever a backend does wrong, the job fails with one clear message and nothing hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bridge.conftest import MakeDaemon
from tests.bridge.fake_daemon import COMMAND, FATAL, SLOT_BYTES, SLOTS, FakeDaemon

PROTOCOL = "the backend broke the protocol: "
IN_DATA = "attributes('/@postgresql/a', size=10)\nsay('DATA')\n"
BETWEEN = "file('/@postgresql/a', b'1')\n"

DAMAGE = {
    # name: (what the backend does, the message)
    "a length that is no number": (BETWEEN + "raw(b'C-00005\\n')", f'{PROTOCOL}a packet\'s length is six digits, found "C-00005?"'),
    "a header without newline": (BETWEEN + "raw(b'C000005x')", f'{PROTOCOL}a packet\'s header ends in a newline, found "C000005x"'),
    "an unknown type": (BETWEEN + "raw(b'Z000000\\n')", f'{PROTOCOL}unknown packet type, found "Z000000?"'),
    "an F with a payload": (BETWEEN + "raw(b'F000001\\nx')", f'{PROTOCOL}a packet of this type has no payload, found "F000001?"'),
    "a D without data": (IN_DATA + "raw(b'D000000\\n')", f'{PROTOCOL}a packet of this type needs a payload, found "D000000?"'),
    "text instead of packets": (BETWEEN + "raw(b'Traceback (most recent call last)')", f'{PROTOCOL}a packet\'s length is six digits, found "Tracebac"'),
    "an error between files": (BETWEEN + "send('E', 'main loop\\nlook there\\n')\nreceive()", "main loop (look there)"),
    "an abort between files": (BETWEEN + "send('A', 'abort\\n')\nreceive()", "abort"),
    "an error and the end": (BETWEEN + "send('E', 'last words\\n')\nsys.exit(1)", "last words"),
    "an error in place of attributes": ("say('FNAME:/@postgresql/a')\nsend('E', 'no\\n')\nreceive()", "no"),
    "an error in place of DATA": ("attributes('/@postgresql/a', size=10)\nsend('E', 'gone\\n')\nreceive()", "gone"),
    "an error within data": (IN_DATA + "send('D', '12345')\nsend('E', 'cut\\n')\nreceive()", "cut"),
    "an abort within data": (IN_DATA + "send('D', '12345')\nsend('A', 'cut\\n')\nreceive()", "cut"),
    "more data than announced": (IN_DATA + "send('D', '12345678901')\nsend('F')\nreceive()", "/@postgresql/a: 10 bytes were announced, and more came"),
    "less data than announced": (IN_DATA + "send('D', '123')\nsend('F')\nreceive()", "/@postgresql/a: 10 bytes were announced, and 3 came"),
    "no data for an announced size": ("attributes('/@postgresql/a', size=10)\nsend('F')\nreceive()", "/@postgresql/a: 10 bytes were announced, and none came"),
    "a command within data": (IN_DATA + "say('FNAME:/@postgresql/b')\nreceive()", f'{PROTOCOL}expected data or its end, found the command "FNAME"'),
    "data between files": (BETWEEN + "send('D', 'x')\nreceive()", f"{PROTOCOL}expected a command, found a D packet of 1 bytes"),
    "data for a directory": ("attributes('/@postgresql/d/', kind='D')\nsay('DATA')\nreceive()", f'{PROTOCOL}expected the end of a file without data, found the command "DATA"'),
    "an unknown command": (BETWEEN + "say('PIPE:/tmp/x')\nreceive()", f'{PROTOCOL}expected a file, an object, a question or the end, found the command "PIPE"'),
    "an unknown attribute": ("say('FNAME:/@postgresql/a')\nsay('COLOUR:blue')\nreceive()", f'{PROTOCOL}"COLOUR:blue" among the attributes of /@postgresql/a'),
    "a command of two lines": (BETWEEN + "say('FNAME:/a\\nb')\nreceive()", f"{PROTOCOL}a command of more than one line"),
    "a command with a NUL": (BETWEEN + "say('FNAME:/a\\0b')\nreceive()", f"{PROTOCOL}a command of more than one line"),
    "a relative name": ("say('FNAME:a')\nreceive()", f"{PROTOCOL}FNAME:a"),
    "no attributes": ("say('FNAME:/a')\nsend('F')\nreceive()", f"{PROTOCOL}/a has no STAT or no TSTAMP"),
    "a STAT that is none": ("say('FNAME:/a')\nsay('STAT:F 1 2')\nreceive()", f"{PROTOCOL}STAT:F 1 2"),
    "a STAT with a negative size": ("say('FNAME:/a')\nsay('STAT:F -5 0 0 100600 1')\nreceive()", f"{PROTOCOL}STAT:F -5 0 0 100600 1"),
    "a mode of another type": ("say('FNAME:/a')\nsay('STAT:F 0 0 0 040700 1')\nreceive()", f"{PROTOCOL}STAT:F 0 0 0 040700 1"),
    "a TSTAMP that is none": ("say('FNAME:/a')\nsay('TSTAMP:1 2 3 4')\nreceive()", f"{PROTOCOL}TSTAMP:1 2 3 4"),
    "a directory without slash": ("attributes('/a', kind='D')\nreceive()", f"{PROTOCOL}/a: a slash at the end means a directory"),
    "a link to nowhere": ("attributes('/a', kind='S')\nreceive()", f"{PROTOCOL}the link /a has no LSTAT"),
    "a slot out of range": (IN_DATA + f"send('M', '{SLOTS} 10\\n')\nreceive()", f"{PROTOCOL}there is no slot {SLOTS} with 10 bytes"),
    "more than a slot holds": (IN_DATA + f"send('M', '0 {SLOT_BYTES + 1}\\n')\nreceive()", f"{PROTOCOL}there is no slot 0 with {SLOT_BYTES + 1} bytes"),
    "an empty slot": (IN_DATA + "send('M', '0 0\\n')\nreceive()", f"{PROTOCOL}there is no slot 0 with 0 bytes"),
    "a slot that is no number": (IN_DATA + "send('M', '-1 5\\n')\nreceive()", f"{PROTOCOL}an M packet names no slot and length"),
    "a slot without newline": (IN_DATA + "send('M', '1 5')\nreceive()", f"{PROTOCOL}an M packet names no slot and length"),
    "a slot given back that is ours": (BETWEEN + "send('K', '1\\n')\nreceive()", f"{PROTOCOL}it gave back slot 1, which is not lent"),
    "a release that names none": (BETWEEN + "send('K', 'x\\n')\nreceive()", f"{PROTOCOL}a K packet names no slot"),
    "a restore object without length": ("say('RESTOREOBJ:x')\nsay('RESTOREOBJ_LEN:1x')\nreceive()", f"{PROTOCOL}RESTOREOBJ without a length of at most 65536 bytes"),
    "a restore object that is longer": ("say('RESTOREOBJ:x')\nsay('RESTOREOBJ_LEN:2')\nsend('D', '123')\nsend('F')\nreceive()", "an object of the backend has more than 2 bytes"),
    "a restore object that is shorter": ("say('RESTOREOBJ:x')\nsay('RESTOREOBJ_LEN:5')\nsend('D', '123')\nsend('F')\nreceive()", "a restore object has 3 bytes, expected 5"),
    "a restore object without room": ("say('RESTOREOBJ:x')\nsay('RESTOREOBJ_LEN:65536')\nsend('D', '1' * 65536)\nsend('F')\nreceive()", "a restore object and its Plugin line have more than 65536 bytes"),
    "a plugin object with a wrong size": ("say('PLUGINOBJ:/a')\nsay('PLUGINOBJ_SIZE:5x')\nreceive()", f'{PROTOCOL}"PLUGINOBJ_SIZE:5x" in a plugin object'),
    "names without end": ("say('SEEN')\nsend('D', '/a')\nsend('F')\nreceive()", f"{PROTOCOL}a name that was seen has no end"),
    "a name that is too long": ("say('SEEN')\nsend('D', '/a' * 4000)\nreceive()", f"{PROTOCOL}a name of more than 4096 bytes"),
    "a prefix that would keep all": ("say('KEEP:')\nreceive()", f'{PROTOCOL}KEEP of ""'),
    "an error at the end": (BETWEEN + "send('F')\nexpect('C', 'END')\nsend('E', 'no state\\n')\nreceive()", "no state"),
    "an exit status": (BETWEEN + "send('F')\nexpect('C', 'END')\nsend('F')\nexpect('T')\nsys.exit(7)", "the backend did not end well (exit status 7)"),
    "an exit instead of the end": (BETWEEN + "send('F')\nexpect('C', 'END')\nsys.exit(0)", "the backend ended (exit status 0)"),
    "an exit between files": (BETWEEN + "os.write(2, b'boom\\n')\nsys.exit(3)", "the backend ended (exit status 3; its last words: boom)"),
    "an end within a header": (BETWEEN + "raw(b'C00')\nsys.exit(0)", "the backend ended within a packet (exit status 0)"),
    "an end within a payload": (BETWEEN + "raw(b'C000020\\nFNAME')\nsys.exit(0)", "the backend ended within a packet (exit status 0)"),
    "an end within data": (IN_DATA + "raw(b'D000010\\n123')\nsys.exit(0)", "the backend ended within a packet (exit status 0)"),
    "a kill within data": (IN_DATA + "raw(b'D000010\\n123')\nos.kill(os.getpid(), 9)", "the backend ended within a packet (signal 9)"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(daemon: FakeDaemon, name: str) -> None:
    """Each way to break a conversation fails the job with its message, once, and the daemon saves nothing more."""
    script, message = DAMAGE[name]
    daemon.backup(f"begin('BackupStart')\n{script}\n")
    texts = [text for kind, text in daemon.messages if kind == FATAL]
    assert texts == [message]
    assert daemon.status == "f"
    assert len(daemon.files) <= 1
    assert not [words for words in daemon.answers if words[0] == "object"]


GREETINGS = {
    "another answer": ("expect('C')\nsay('Hello Bareos')\nreceive()", 'the backend answered the greeting with "Hello Bareos"'),
    "an error": ("expect('C')\nsend('E', 'wrong version\\n')\nreceive()", "wrong version"),
    "an error and an exit": ("expect('C')\nsend('A', 'wrong version\\n')\nsys.exit(1)", "wrong version"),
    "no answer": ("sys.exit(5)", "the backend ended (exit status 5)"),
    "an end of listening": ("os.close(0)\nexpect = None\nsend('E', 'no input\\n')\ntime.sleep(0.2)\nsys.exit(1)", "no input"),
    "no F after the job": ("expect('C')\nsay('Hello Bacula')\nblock()\nsay('OK')\nreceive()", f'{PROTOCOL}expected an F packet, found the command "OK"'),
    "an error for the parameters": ("expect('C')\nsay('Hello Bacula')\nexpect('C')\nblock()\nsend('F')\nexpect('C')\nblock()\nsend('E', 'unknown parameter\\n')\nreceive()", "unknown parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", GREETINGS)
def test_failed_greeting(daemon: FakeDaemon, name: str) -> None:
    """A backend that does not come to its first file fails the job."""
    script, message = GREETINGS[name]
    daemon.backup(script)
    assert daemon.messages == [(FATAL, message)]
    assert ["command", "2"] in daemon.answers
    assert daemon.status == "f"


@pytest.mark.parametrize("place", ["before the greeting", "between files", "within data", "before the exit"])
def test_silence(daemon: FakeDaemon, place: str) -> None:
    """A backend that says nothing for the time out is ended, even when it does not care for signals."""
    daemon.add_settings("timeout = 1", "kill_after = 1")
    hang = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsend('W', 'hanging')\nwhile True: time.sleep(1)\n"
    daemon.backup(
        {
            "before the greeting": hang,
            "between files": f"begin('BackupStart')\n{hang}",
            "within data": f"begin('BackupStart')\n{IN_DATA}raw(b'D000010\\n123')\n{hang.replace('send', 'print if 0 else len or ')}",
            "before the exit": f"begin('BackupStart')\nsend('F')\nexpect('C', 'END')\nsend('F')\n{hang}",
        }[place]
    )
    [text] = [text for kind, text in daemon.messages if kind == FATAL]
    if place == "before the exit":
        assert text == "the backend did not end well (signal 9)"
    else:
        assert text == "the backend was silent for 1 seconds"
    assert daemon.status == "f"


def test_children_of_a_failed_backend_end_with_it(daemon: FakeDaemon) -> None:
    """What a backend that fails has started is ended as well."""
    daemon.backup(
        """
        import subprocess
        begin('BackupStart')
        note(f'child {subprocess.Popen(["sleep", "1000"]).pid}')
        os._exit(1)
        """
    )
    assert len(daemon.pids()) == 2
    assert daemon.status == "f"


def test_backend_that_dies_with_its_pipes_held_open(daemon: FakeDaemon) -> None:
    """A child that inherits the pipes of a dead backend does not keep the job waiting for the time out."""
    daemon.backup(
        """
        import subprocess
        begin('BackupStart')
        note(f'child {subprocess.Popen(["sleep", "1000"]).pid}')
        os.kill(os.getpid(), 9)
        """
    )
    assert daemon.messages == [(FATAL, "the backend ended (signal 9)")]


def test_no_object_when_a_line_failed(daemon: FakeDaemon) -> None:
    """The restore object of a job stands for all its lines, so it is not saved when one failed."""
    lines = ["pgkeep: a", "pgkeep: b"]
    daemon.say(
        """
        begin('BackupStart')
        if 'a=1' in PARAMETERS:
            send('E', 'no server\\n')
            receive()
        say('RESTOREOBJ:head'); say('RESTOREOBJ_LEN:1'); send('D', 'x'); send('F')
        send('F')
        end()
        """
    )
    for line in lines:
        daemon.order("event", 20, line)
    for line in lines:
        daemon.order("backup", line)
    daemon.order("end-backup")
    assert daemon.messages == [(FATAL, "no server")]
    assert (daemon.files, daemon.status) == ([], "f")


def test_a_line_that_the_daemon_left_out(daemon: FakeDaemon) -> None:
    """Without the last line there is no restore object, and without that no restore: the job fails."""
    daemon.say(
        """
        begin('BackupStart')
        say('RESTOREOBJ:head'); say('RESTOREOBJ_LEN:1'); send('D', 'x'); send('F')
        send('F')
        end()
        """
    )
    daemon.order("event", 20, "pgkeep: a")
    daemon.order("event", 20, "pgkeep: b")
    daemon.order("backup", "pgkeep: a")
    daemon.order("end-backup")
    [(kind, text)] = daemon.messages
    assert (kind, daemon.status) == (FATAL, "f")
    assert text.startswith("a Plugin line of the FileSet was not run")


CONFIGS = {
    "an unknown key": ("bakend = /x", "line 1: bakend: expected one of backend, user, config, ring, timeout and kill_after"),
    "no key": ("backend", 'line 1: expected "key = value"'),
    "a relative path": ("# note\n\nbackend = x", "line 3: backend: expected an absolute path, once"),
    "a key twice": ("backend = /x\nbackend = /y", "line 2: backend: expected an absolute path, once"),
    "no such word": ("ring = maybe", "line 1: ring: expected yes or no"),
    "no number": ("timeout = 10s", "line 1: timeout: expected 1 to 86400 seconds"),
    "too much": ("kill_after = 86401", "line 1: kill_after: expected 0 to 86400 seconds"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_that_is_wrong(daemon: FakeDaemon, name: str) -> None:
    """A mistake in pgkeep-fd.conf fails the job and names file, line and what is expected."""
    text, message = CONFIGS[name]
    daemon.configure(text)
    daemon.backup("note('started')")
    assert daemon.messages == [(FATAL, f"{daemon.plugins}/pgkeep-fd.conf: {message}")]
    assert (daemon.status, daemon.seen) == ("f", [])


def test_configuration_that_others_can_write(daemon: FakeDaemon) -> None:
    """Whoever could write the file could run a program as the daemon, so it is refused."""
    (daemon.plugins / "pgkeep-fd.conf").chmod(0o664)
    daemon.backup("note('started')")
    path = daemon.plugins / "pgkeep-fd.conf"
    assert daemon.messages == [(FATAL, f"{path}: others than root and the daemon's user can write it")]


PROGRAMS = {
    "none": (None, 0, "no such file (2)"),
    "not for running": ("#!/bin/sh\n", 0o644, "permission denied (13)"),
    "nothing to run": ("words\n", 0o755, "not a program (8)"),
    "another's interpreter": ("#!/nowhere/python\n", 0o755, "no such file (2)"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_backend_that_cannot_be_run(daemon: FakeDaemon, care: tuple[Path, Path, str], name: str) -> None:
    """A backend that cannot be started fails the job and says which and why."""
    content, mode, why = PROGRAMS[name]
    path = daemon.directory / "bin" / "pgkeep-backend"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    # Without the key it is looked for beside the daemon.
    (daemon.plugins / "pgkeep-fd.conf").unlink()
    daemon.backup("note('started')")
    if care[2] == "valgrind" and name == "another's interpreter":
        # valgrind stands in for exec, and ends the process itself when there is no interpreter.
        assert daemon.messages == [(FATAL, "the backend ended (exit status 101)")]
    else:
        assert daemon.messages == [(FATAL, f"cannot run {path}: {why}")]
    assert daemon.status == "f"


def test_unknown_user(daemon: FakeDaemon) -> None:
    """A user that does not exist is named."""
    daemon.add_settings("user = nobody-of-that-name")
    daemon.backup("note('started')")
    assert daemon.messages == [(FATAL, 'there is no user "nobody-of-that-name"')]


@pytest.mark.parametrize("packet", ["s", "i"])
def test_packets_of_another_size(daemon: FakeDaemon, packet: str) -> None:
    """A packet of the daemon that has another size than interface 23 gives it is not used."""
    daemon.order("spoil", packet)
    daemon.backup("begin('BackupStart')\nfile('/@postgresql/a', b'1')\nsend('F')\nend()\n")
    [fatal, *_] = daemon.messages
    assert fatal[0] == FATAL
    assert "packet has" in fatal[1]
    assert daemon.status == "f"


def test_daemons_of_other_versions(make_daemon: MakeDaemon) -> None:
    """Only interface 23 is loaded; another gets one message of the daemon."""
    for interface in (14, 22, 24):
        daemon = make_daemon(interface)
        assert daemon.loaded[1] != "0"
        [(kind, text)] = daemon.messages
        assert kind == 5
        assert text.startswith(f"this daemon has plugin interface {interface} ")
        assert text.endswith("pgkeep needs Bacula 15.0, and was not loaded")


def test_plugin_in_options(daemon: FakeDaemon) -> None:
    """A Plugin line inside Options would be used for each file of the FileSet: it is refused with advice."""
    daemon.order("event", 23, COMMAND)
    assert daemon.messages == [
        (
            FATAL,
            'Plugin = "pgkeep: ..." stands in an Options block of the FileSet; it belongs into the Include, beside File',
        )
    ]
