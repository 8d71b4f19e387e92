"""
What starts and stops the server of a data directory on this host: a systemd unit, pg_ctlcluster, or nothing at all.

A server that a unit runs must be stopped by its unit: systemd would take anything else for a failure and may start it
again in the middle of a restore. And it must be started by its unit: a server that pgkeep starts itself belongs to
whatever runs pgkeep, and ends with it when that is a service.
"""

from __future__ import annotations

import enum
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.errors import RecoveryFailed, RestoreRefused

_QUESTION_SECONDS = 60
_POLL_SECONDS = 0.05
_PROPERTIES = ("Id", "LoadState", "ActiveState", "MainPID", "Environment", "ExecStart")
_LIKELY_UNITS = ("*postgres*.service", "*pgsql*.service")
_RUNNING_SYSTEM = ("running", "degraded", "starting", "maintenance", "initializing")
_ARGUMENTS = re.compile(r"argv\[\]=(.*?) ;")
_DATA_OPTION = re.compile(r"(?:^|\s)(?:-D\s*|--pgdata[= ])(\"[^\"]*\"|\S+)")


class ServiceKind(enum.Enum):
    """What runs a server; the value stands in the state of a restore."""

    SYSTEMD = "systemd"
    PG_CTLCLUSTER = "pg_ctlcluster"
    NONE = "none"
    """Somebody with ``pg_ctl``, or a script: the server is stopped by a signal and started directly."""


@dataclass(frozen=True, slots=True)
class Service:
    """
    How one server is run.

    Attributes:
        kind: By what.
        name: The unit, or version and name of pg_ctlcluster's cluster with a blank between; empty for none.
        was_running: Whether a server ran when it was looked for.
        is_stopped_by_signal: The server runs outside of its service, which could not stop it.
    """

    kind: ServiceKind = ServiceKind.NONE
    name: str = ""
    was_running: bool = False
    is_stopped_by_signal: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"kind": self.kind.value}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Service:
        """Return what ``as_dict`` described."""
        return cls(**(dict(state) | {"kind": ServiceKind(state["kind"])}))

    @property
    def start_command(self) -> list[str]:
        """The command that starts it; empty for none."""
        match self.kind:
            case ServiceKind.SYSTEMD:
                return ["systemctl", "--no-ask-password", "start", self.name]
            case ServiceKind.PG_CTLCLUSTER:
                return ["pg_ctlcluster", *self.name.split(), "start"]
            case ServiceKind.NONE:
                return []

    @property
    def stop_command(self) -> list[str]:
        """The command that stops it; empty for a signal."""
        if self.is_stopped_by_signal:
            return []
        match self.kind:
            case ServiceKind.SYSTEMD:
                return ["systemctl", "--no-ask-password", "stop", self.name]
            case ServiceKind.PG_CTLCLUSTER:
                return ["pg_ctlcluster", "--mode=fast", *self.name.split(), "stop"]
            case ServiceKind.NONE:
                return []

    def __str__(self) -> str:
        match self.kind:
            case ServiceKind.SYSTEMD:
                return f"systemd unit {self.name}"
            case ServiceKind.PG_CTLCLUSTER:
                return f"pg_ctlcluster {self.name}"
            case ServiceKind.NONE:
                return "no service of this host"


def find_service(data_directory: Path) -> Service:
    """Return what runs, or would run, the server of *data_directory*, which need not exist."""
    postmaster = running_postmaster(data_directory) if data_directory.is_dir() else None
    pid = postmaster.pid if postmaster is not None else 0
    cluster = _cluster_of(data_directory)
    if _has_systemd():
        more = [f"postgresql@{cluster[0]}-{cluster[1]}.service"] if cluster is not None else []
        units = _units(more)
        for unit in units:
            if pid and unit.get("MainPID") == str(pid):
                return Service(ServiceKind.SYSTEMD, unit["Id"], was_running=True)
        for unit in units:
            if unit["Id"] in more or _is_for(unit, data_directory):
                # Started by hand, beside its unit: systemd does not know that it runs.
                return Service(ServiceKind.SYSTEMD, unit["Id"], bool(pid), is_stopped_by_signal=bool(pid))
    if cluster is not None and shutil.which("pg_ctlcluster") is not None:
        return Service(ServiceKind.PG_CTLCLUSTER, " ".join(cluster), was_running=bool(pid))
    return Service(was_running=bool(pid))


def stop_server(service: Service, data_directory: Path, *, timeout_seconds: float) -> None:
    """
    Stop the server of *data_directory* by the means of its *service*, and wait until it has; none running is fine.

    Raises:
        RestoreRefused: It cannot be stopped by us, or did not stop in time.
    """
    postmaster = running_postmaster(data_directory)
    if postmaster is None:
        return
    try:
        if service.stop_command:
            _must(service.stop_command, timeout_seconds)
        else:
            os.kill(postmaster.pid, signal.SIGINT)
        _wait(lambda: running_postmaster(data_directory) is None, timeout_seconds)
    except ProcessLookupError:
        return
    except (_Failed, OSError) as failure:
        raise RestoreRefused(
            f"cannot stop the server in {data_directory} ({service}): {failure}",
            hint="nothing was touched: stop it yourself, and restore again",
        ) from failure


def start_server(service: Service, data_directory: Path, *, timeout_seconds: float) -> None:
    """
    Start the server of *data_directory* by the means of its *service*, which is not NONE, and wait until it is ready.

    Raises:
        RecoveryFailed: The command failed, started another server, or none that is ready in time.
    """
    shown = shlex.join(service.start_command)
    try:
        _must(service.start_command, timeout_seconds)
        _wait(lambda: _is_up(data_directory), timeout_seconds)
    except (_Failed, OSError) as failure:
        is_running = running_postmaster(data_directory) is not None
        raise RecoveryFailed(
            f"{shown}: {failure}" + ("" if is_running else f"; no server runs in {data_directory}"),
            hint="the restored cluster is whole, and its fence is lifted: find out what keeps its service from "
            "starting it",
        ) from failure


class _Failed(Exception):
    """What a service said when it did not do as told, as one line."""


def _must(command: Sequence[str], timeout_seconds: float) -> None:
    try:
        done = _run(command, timeout_seconds)
    except subprocess.TimeoutExpired:
        raise _Failed(f"not done after {timeout_seconds:g} s") from None
    if done.status != 0:
        said = (line.strip() for line in (done.errors + done.output).splitlines())
        raise _Failed(next(filter(None, said), f"it ended with status {done.status}"))


def _wait(condition: Callable[[], bool], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise _Failed(f"not done after {timeout_seconds:g} s")
        pause.wait(_POLL_SECONDS)


def _is_up(data_directory: Path) -> bool:
    postmaster = running_postmaster(data_directory)
    return postmaster is not None and postmaster.status in ("ready", "standby")


def _has_systemd() -> bool:
    if shutil.which("systemctl") is None:
        return False
    # The program is in many containers, and says "offline" there.
    return _answer(["systemctl", "is-system-running"]).strip() in _RUNNING_SYSTEM


def _units(more: Sequence[str]) -> list[dict[str, str]]:
    """Return the properties of every service that is loaded, and of those on disk that may be PostgreSQL's."""
    listing = _answer(
        ["systemctl", "list-unit-files", "--type=service", "--no-legend", "--no-pager", "--plain", *_LIKELY_UNITS]
    )
    names = [line.split()[0] for line in listing.splitlines() if line.split()]
    # A template, such as postgresql@.service, is no unit.
    names = [name for name in names if "@." not in name]
    shown = _answer(
        ["systemctl", "show", "--no-pager", f"--property={','.join(_PROPERTIES)}", "*.service", *more, *names]
    )
    return [unit for unit in _blocks(shown) if unit.get("LoadState") == "loaded" and unit.get("Id")]


def _blocks(text: str) -> Iterator[dict[str, str]]:
    for block in text.split("\n\n"):
        yield dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _is_for(unit: Mapping[str, str], data_directory: Path) -> bool:
    """Tell whether *unit*, by its definition, runs the server of *data_directory*."""
    found = []
    for assignment in _words(unit.get("Environment", "")):
        name, _, value = assignment.partition("=")
        if name == "PGDATA":
            found.append(value)
    for arguments in _ARGUMENTS.findall(unit.get("ExecStart", "")):
        if "postgres" in arguments or "postmaster" in arguments or "pg_ctl" in arguments:
            found += [value.strip('"') for value in _DATA_OPTION.findall(arguments)]
    return any(value.startswith("/") and is_same_place(Path(value), data_directory) for value in found)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _cluster_of(data_directory: Path) -> tuple[str, str] | None:
    """Return version and name of the cluster that Debian's programs know in *data_directory*; None for none."""
    if shutil.which("pg_lsclusters") is None:
        return None
    try:
        clusters = json.loads(_answer(["pg_lsclusters", "--json"]) or "[]")
    except ValueError:
        return None
    for cluster in clusters:
        # A cluster whose configuration names no directory has null there.
        if cluster.get("pgdata") and is_same_place(Path(cluster["pgdata"]), data_directory):
            return str(cluster["version"]), str(cluster["cluster"])
    return None


def is_same_place(first: Path, second: Path) -> bool:
    """Tell whether two paths lead to the same directory, which need not exist."""
    return os.path.realpath(first) == os.path.realpath(second)


class _Done(NamedTuple):
    status: int
    output: str
    errors: str


def _answer(command: Sequence[str]) -> str:
    """Return what *command* prints, whatever its exit status; nothing when it cannot be run."""
    try:
        return _run(command, _QUESTION_SECONDS).output
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _run(command: Sequence[str], timeout_seconds: float) -> _Done:
    # libpq's variables are not for the server, but Debian's programs may have been given another place by theirs.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PG") or name == "PG_CLUSTER_CONF_ROOT"
    }
    # Files and not pipes: a server that inherits one would keep us waiting for its end.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd="/",
            env=environment | {"LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            timeout=timeout_seconds,
            check=False,
        )
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return _Done(done.returncode, *texts)
