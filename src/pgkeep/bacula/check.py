"""
Named tests of what lies between a File Daemon and the server: plugin, daemon, backend, server.

They read and ask only. Each asks the real thing as the daemon would: the plugin is loaded in a process of its own, the
backend runs as its user and connects to the server.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgkeep.bacula.daemon import FileDaemon, account_name
from pgkeep.bacula.install import own_plugin
from pgkeep.bacula.plugin_config import PluginConfig, read_plugin_config
from pgkeep.errors import CheckFailed, PgkeepError
from pgkeep.jobs.check_spool import SpoolChecks
from pgkeep.jobs.named_tests import CheckResult, NamedTest, Warned, run_tests
from pgkeep.settings.plugin_line import parse_plugin_line
from pgkeep.wire.packet import HEADER_BYTES, PacketKind, encode, encode_text, parse_header

TIMEOUT_SECONDS = 60
PLAIN_API = "1"

_TROUBLE = frozenset({PacketKind.ERROR, PacketKind.FATAL, PacketKind.JOB_ERROR})


def check(
    daemon: FileDaemon, *, plugin_line: str, state_dir: Path, spool: SpoolChecks | None = None
) -> Iterator[CheckResult]:
    """
    Run every test, one after the other, and yield its result as soon as it is known.

    Args:
        daemon: Whose plugin is checked.
        plugin_line: The line of the FileSet, with which the server is asked.
        state_dir: Where the backend keeps what it remembers.
        spool: The tests of the line's spool; None when it has none on this host.
    """
    return run_tests(_Tests(daemon, plugin_line, state_dir, spool).all())


class _Tests:
    def __init__(self, daemon: FileDaemon, plugin_line: str, state_dir: Path, spool: SpoolChecks | None) -> None:
        self._daemon = daemon
        self._plugin_line = plugin_line
        self._state_dir = state_dir
        self._spool = spool
        self._config = PluginConfig()

    def all(self) -> Iterator[NamedTest]:
        """Yield the tests, each after those that it needs."""
        yield "daemon", self._test_daemon, ()
        yield "directory", self._test_directory, ()
        yield "plugin", self._test_plugin, ()
        yield "loads", self._test_loads, ("plugin",)
        yield "configuration", self._test_configuration, ()
        yield "backend", self._test_backend, ("configuration",)
        yield "state", self._test_state, ("configuration",)
        yield "server", self._test_server, ("backend",)
        if self._spool is not None:
            yield from self._spool.tests()

    def _test_daemon(self) -> str:
        daemon = self._daemon
        if daemon.pid is None:
            raise Warned(
                f"{daemon.configuration}: no File Daemon runs with it here", hint="the tests go on as if root ran it"
            )
        started = os.stat(f"/proc/{daemon.pid}").st_mtime
        if daemon.plugin.exists() and daemon.plugin.stat().st_ctime > started:
            raise Warned(
                f"bacula-fd (process {daemon.pid}) has run since before the plugin was put there",
                hint="restart bacula-fd: it loads plugins when it starts",
            )
        return f"bacula-fd, process {daemon.pid}, runs as {daemon.user}"

    def _test_directory(self) -> str:
        daemon = self._daemon
        if not daemon.is_told:
            raise CheckFailed(
                f"{daemon.configuration} does not name {daemon.plugin_directory}",
                hint=f'add Plugin Directory = "{daemon.plugin_directory}" to the resource FileDaemon, and restart it',
            )
        return f"Plugin Directory is {daemon.plugin_directory}"

    def _test_plugin(self) -> str:
        path = self._daemon.plugin
        install = 'run "pgkeep bacula install"'
        try:
            status = path.lstat()
        except FileNotFoundError:
            raise CheckFailed(f"there is no {path}", hint=install) from None
        except OSError as error:
            raise CheckFailed(f"{path}: {(error.strerror or '').lower()}", hint="run as root") from error
        if not stat.S_ISREG(status.st_mode):
            raise CheckFailed(f"{path} is not a regular file; the daemon passes over it without a word", hint=install)
        if status.st_uid not in (0, self._daemon.uid):
            raise CheckFailed(
                f"{path} belongs to {account_name(status.st_uid)}, who could run anything as {self._daemon.user}",
                hint=f"chown root {path}",
            )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CheckFailed(f"{path} can be written by others", hint=f"chmod 0644 {path}")
        try:
            ours = own_plugin().read_bytes()
        except PgkeepError:
            return f"{path}, {status.st_size} bytes"
        if ours != path.read_bytes():
            raise Warned(f"{path} is not the one that came with this pgkeep", hint=install)
        return f"{path}, {status.st_size} bytes, of this pgkeep"

    def _test_loads(self) -> str:
        words = [sys.executable, "-m", "pgkeep.bacula.plugin_loading", str(self._daemon.plugin)]
        done = _finish(words, uid=self._daemon.uid)
        try:
            verdict: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise CheckFailed(f"loading it ended with status {done.returncode}") from None
        if "problem" in verdict:
            raise CheckFailed(f"the daemon would refuse it: {verdict['problem']}")
        return f"version {verdict['version']} loads as in Bacula 15.0"

    def _test_configuration(self) -> str:
        path = self._daemon.plugin_config
        self._config = read_plugin_config(path, daemon_uid=self._daemon.uid)
        if self._config.backend is None:
            program = self._daemon.program
            if program is None:
                raise CheckFailed(f"{path} names no backend, and the daemon's program is not known")
            self._config = PluginConfig(program.with_name("pgkeep-backend"), self._config.user, self._config.config)
        if self._config.user and self._daemon.uid not in (0, _uid(self._config.user)):
            raise CheckFailed(
                f"{path}: user {self._config.user}: the daemon is {self._daemon.user} and cannot become it"
            )
        return f"{path}: backend {self._config.backend}, user {self._user}"

    def _test_backend(self) -> str:
        program = self._config.backend
        assert program is not None
        done = _finish([str(program), "--version"], uid=_uid(self._user))
        if done.returncode != 0 or not done.stdout.startswith(b"pgkeep-backend "):
            raise CheckFailed(
                f"{program} as {self._user} ended with status {done.returncode}: {_last_line(done.stderr)}",
                hint=f"every directory above it must let {self._user} through",
            )
        return f"{done.stdout.decode().strip()} runs as {self._user}"

    def _test_state(self) -> str:
        path = self._state_dir
        done = _finish(["test", "-d", str(path), "-a", "-w", str(path), "-a", "-x", str(path)], uid=_uid(self._user))
        if done.returncode != 0:
            raise CheckFailed(
                f"{path} is no directory that {self._user} can write", hint=f"install -d -m 0700 -o {self._user} {path}"
            )
        return f"{path} can be written by {self._user}"

    def _test_server(self) -> str:
        program = self._config.backend
        assert program is not None
        environment = _environment() | ({"PGKEEP_CONFIG": str(self._config.config)} if self._config.config else {})
        done = _finish([str(program)], uid=_uid(self._user), typed=self._question("version"), env=environment)
        answers = list(_packets(done.stdout))
        for kind, text in answers:
            if kind in _TROUBLE:
                message, _, hint = text.strip().partition("\n")
                raise CheckFailed(message, hint=hint.partition("\n")[0])
        found = re.search(r"version=(\S.*)", "\n".join(text for _, text in answers))
        if done.returncode != 0 or found is None:
            raise CheckFailed(f"the backend ended with status {done.returncode}: {_last_line(done.stderr)}")
        return f"PostgreSQL {found[1].strip()} answers to {self._plugin_line}"

    @property
    def _user(self) -> str:
        return self._config.user or self._daemon.user

    def _question(self, parameter: str) -> bytes:
        """Return a whole session that asks one question, in plain PTCOMM: what ``.query`` makes the plugin say."""
        line = parse_plugin_line(self._plugin_line)
        words = [f"{name}={value if value is not None else '1'}" for name, value in line.words]
        texts: list[str | None] = [
            *("Job", "Name=check", "JobID=0", "Type=E", "WorkingDir=/", None),
            *("Params", *words, f"query={parameter}", None),
            "QueryStart",
        ]
        packets = [encode(PacketKind.END) if text is None else encode_text(PacketKind.COMMAND, text) for text in texts]
        hello = encode_text(PacketKind.COMMAND, f"Hello pgkeep {PLAIN_API}")
        return b"".join([hello, *packets, encode(PacketKind.TERMINATE)])


def _packets(stream: bytes) -> Iterator[tuple[PacketKind, str]]:
    while len(stream) >= HEADER_BYTES:
        kind, length = parse_header(stream[:HEADER_BYTES])
        yield kind, stream[HEADER_BYTES : HEADER_BYTES + length].decode(errors="replace")
        stream = stream[HEADER_BYTES + length :]


def _finish(
    words: list[str], *, uid: int, typed: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end as *uid*, as far as we may become it."""
    reading, writing = os.pipe()
    try:
        # A question fits into a pipe. Its end stays open: for a backend the end of its input is the end of the job.
        os.write(writing, typed)
        return subprocess.run(
            words,
            stdin=reading,
            capture_output=True,
            env=_environment() if env is None else env,
            cwd="/",
            timeout=TIMEOUT_SECONDS,
            check=False,
            **_as_user(uid),
        )
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{Path(words[0]).name} did not end within {TIMEOUT_SECONDS} s") from None
    except OSError as error:
        raise CheckFailed(f"{words[0]}: {(error.strerror or '').lower()}") from error
    finally:
        os.close(reading)
        os.close(writing)


def _environment() -> dict[str, str]:
    """What the plugin gives to a backend: no variable of the person who runs the check."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/", "LANG": "C.UTF-8"}


def _as_user(uid: int) -> dict[str, Any]:
    if uid == os.geteuid():
        return {}
    if os.geteuid() != 0:
        raise CheckFailed(f"cannot become {account_name(uid)} to try it", hint="run as root")
    account = pwd.getpwuid(uid)
    return {"user": uid, "group": account.pw_gid, "extra_groups": os.getgrouplist(account.pw_name, account.pw_gid)}


def _uid(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        if user.isdigit():
            return int(user)
        raise CheckFailed(f'there is no account "{user}"') from None


def _last_line(output: bytes) -> str:
    lines = output.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
