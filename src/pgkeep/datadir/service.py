"""
What starts and stops the server of a data directory on this host: a systemd unit, pg_ctlcluster, or nothing at all.

A server that a unit runs must be stopped by its unit: systemd would take anything else for a failure and may start it
again in the middle of a restore. And it must be started by its unit: a server that pgkeep starts itself belongs to
whatever runs pgkeep, and ends with it when that is a service.
"""

from __future__ import annotations

import enum
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.errors import RecoveryFailed, RestoreRefused

_POLL_SECONDS = 0.05


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
            _stop_by_command(service, data_directory, timeout_seconds)
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


def _stop_by_command(service: Service, data_directory: Path, timeout_seconds: float) -> None:
    try:
        _must(service.stop_command, timeout_seconds)
    except _Failed:
        # pg_ctl gives up after a minute, while the server writes its last checkpoint.
        postmaster = running_postmaster(data_directory)
        if postmaster is not None and postmaster.status != "stopping":
            raise


class _Failed(Exception):
    """What a service said when it did not do as told, as one line."""


def _must(command: Sequence[str], timeout_seconds: float) -> None:
    try:
        done = run_program(command, timeout_seconds)
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


class Answer(NamedTuple):
    """What a program said."""

    status: int
    output: str
    errors: str


def run_program(command: Sequence[str], timeout_seconds: float) -> Answer:
    """Run *command* and wait for it; errors are those of ``subprocess.run``."""
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
    return Answer(done.returncode, *texts)
