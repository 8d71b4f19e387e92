"""Finding out what runs the server of a data directory on this host."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.datadir.service import Service, ServiceKind, run_program

_QUESTION_SECONDS = 60
_PROPERTIES = ("Id", "LoadState", "ActiveState", "MainPID", "Environment", "ExecStart")
_LIKELY_UNITS = ("*postgres*.service", "*pgsql*.service")
_RUNNING_SYSTEM = ("running", "degraded", "starting", "maintenance", "initializing")
_ARGUMENTS = re.compile(r"argv\[\]=(.*?) ;")
_DATA_OPTION = re.compile(r"(?:^|\s)(?:-D\s*|--pgdata[= ])(\"[^\"]*\"|\S+)")


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


def _answer(command: Sequence[str]) -> str:
    """Return what *command* prints, whatever its exit status; nothing when it cannot be run."""
    try:
        return run_program(command, _QUESTION_SECONDS).output
    except (OSError, subprocess.TimeoutExpired):
        return ""
