"""
Programs that start, stop and promote a cluster by their own lights: Patroni, Pacemaker, repmgrd, pg_auto_failover.

A restore beneath such a program is a race that nobody wins: it starts what was stopped, promotes or clones another
node over what was laid down, or fences the host. What counts is whether one is alive and minds this data directory.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgkeep.datadir.postmaster import running_postmaster
from pgkeep.datadir.processes import Process, all_processes, ancestors
from pgkeep.datadir.service import Service
from pgkeep.datadir.service_search import is_same_place

_PATRONI_DIRECTORY = re.compile(r"^\s*[\"']?data_dir[\"']?\s*:\s*(\S.*?)\s*$", re.MULTILINE)
_REPMGR_DIRECTORY = re.compile(r"^\s*data_directory\s*=\s*(\S.*?)\s*$", re.MULTILINE)
_REPMGR_PLACES = ("/etc/repmgr.conf", "/etc/repmgr/*/repmgr.conf", "/etc/postgresql/*/*/repmgr.conf")
_PACEMAKER_DEFAULT = "/var/lib/pgsql/data"
_QUESTION_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Supervisor:
    """
    What minds a cluster.

    Attributes:
        name: Of the program.
        evidence: How that is known.
        hint: What to do before a restore.
    """

    name: str
    evidence: str
    hint: str


def find_supervisor(data_directory: Path, service: Service) -> Supervisor | None:
    """
    Return what minds the cluster of *data_directory*, which need not exist; None for nothing that is alive.

    Args:
        data_directory: Absolute.
        service: What runs its server: Pacemaker may mind that.
    """
    processes = list(all_processes())
    postmaster = running_postmaster(data_directory) if data_directory.is_dir() else None
    parents = {process.pid for process in ancestors(postmaster.pid)} if postmaster is not None else set()
    for program in _PROGRAMS:
        for process in processes:
            if program.name not in process.names:
                continue
            if process.pid in parents or program.minds(process, data_directory):
                return Supervisor(program.title, str(process), program.hint)
    if any("pacemakerd" in process.names for process in processes):
        return _pacemaker(data_directory, service)
    return None


def _patroni_minds(process: Process, data_directory: Path) -> bool:
    named = process.variable("PATRONI_POSTGRESQL_DATA_DIR")
    if named:
        return is_same_place(Path(named), data_directory)
    texts = [_read(path) for path in _patroni_files(process)]
    places = [value for text in texts for value in _PATRONI_DIRECTORY.findall(text)]
    if places:
        return any(is_same_place(Path(_unquoted(value)), data_directory) for value in places)
    # Its configuration is closed to us. What it leaves in a data directory is no proof, but there it is alive.
    return (data_directory / "patroni.dynamic.json").exists()


def _patroni_files(process: Process) -> Iterator[Path]:
    for word in process.words[1:]:
        path = process.path(word)
        if path.suffix in (".yml", ".yaml"):
            yield path
        elif path.is_dir():
            yield from sorted(path.glob("*.y*ml"))


def _pg_autoctl_minds(process: Process, data_directory: Path) -> bool:
    named = process.option("--pgdata", "-D") or process.variable("PGDATA")
    if named:
        return is_same_place(process.path(named), data_directory)
    return (data_directory / "postgresql-auto-failover.conf").exists()


def _repmgrd_minds(process: Process, data_directory: Path) -> bool:
    named = process.option("--config-file", "-f")
    if named:
        files: Sequence[Path] = [process.path(named)]
    else:
        files = [path for place in _REPMGR_PLACES for path in sorted(Path("/").glob(place.lstrip("/")))]
    places = [value for path in files for value in _REPMGR_DIRECTORY.findall(_read(path))]
    return any(is_same_place(Path(_unquoted(value)), data_directory) for value in places)


def _stolon_minds(process: Process, data_directory: Path) -> bool:
    named = process.option("--data-dir") or process.variable("STKEEPER_DATA_DIR")
    return bool(named) and is_same_place(process.path(named) / "postgres", data_directory)


@dataclass(frozen=True, slots=True)
class _Program:
    """A program that minds clusters: how its process is called, what tells whether it minds one, what to do then."""

    name: str
    title: str
    minds: Callable[[Process, Path], bool]
    hint: str


_ELSEWHERE = "; or restore into another directory"
_PROGRAMS = (
    _Program(
        name="patroni",
        title="Patroni",
        minds=_patroni_minds,
        hint="stop Patroni on every node (a pause is not enough: it still acts), restore, remove the cluster from its "
        "store with patronictl remove, and start it on the restored node first" + _ELSEWHERE,
    ),
    _Program(
        name="pg_autoctl",
        title="pg_auto_failover",
        minds=_pg_autoctl_minds,
        hint="stop pg_autoctl on every node, restore, and register the nodes anew" + _ELSEWHERE,
    ),
    _Program(
        name="repmgrd",
        title="repmgrd",
        minds=_repmgrd_minds,
        hint="stop repmgrd on every node, restore, and register the nodes anew" + _ELSEWHERE,
    ),
    _Program(
        name="stolon-keeper",
        title="Stolon",
        minds=_stolon_minds,
        hint="stop keepers and sentinels, restore, and let stolonctl init take the cluster over" + _ELSEWHERE,
    ),
)


def _pacemaker(data_directory: Path, service: Service) -> Supervisor | None:
    hint = (
        "take the resource out of its hands (crm_resource --meta --parameter is-managed --parameter-value false "
        "--resource NAME), restore, and give it back" + _ELSEWHERE
    )
    try:
        configuration = _cluster_information_base()
    except _NoAnswer as silence:
        if data_directory.is_dir() and any(data_directory.iterdir()):
            return Supervisor("Pacemaker", f"it runs, and does not say which clusters it minds: {silence}", hint)
        return None
    for resource in _resources(configuration):
        if _is_of(resource, data_directory, service):
            return Supervisor("Pacemaker", f"resource {resource.get('id')}", hint)
    return None


class _NoAnswer(Exception):
    """Pacemaker runs, and its configuration cannot be had."""


def _cluster_information_base() -> ET.Element:
    program = shutil.which("cibadmin")
    if program is None:
        raise _NoAnswer("there is no cibadmin")
    try:
        done = subprocess.run(
            [program, "--query", "--local"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_QUESTION_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise _NoAnswer(done.stderr.decode(errors="replace").strip() or f"status {done.returncode}")
        # The host's own cluster manager wrote it, and Python's parser loads no external entities.
        return ET.fromstring(done.stdout)  # noqa: S314
    except (OSError, subprocess.TimeoutExpired, ET.ParseError) as error:
        raise _NoAnswer(str(error)) from error


def _resources(configuration: ET.Element) -> Iterator[ET.Element]:
    """Yield the primitive resources that Pacemaker manages."""
    options = configuration.findall("./configuration/crm_config/cluster_property_set/nvpair")
    if any(option.get("name") == "maintenance-mode" and _is_true(option) for option in options):
        return
    parents = {child: parent for parent in configuration.iter() for child in parent}
    for resource in configuration.iter("primitive"):
        levels = [resource]
        while (above := parents.get(levels[-1])) is not None:
            levels.append(above)
        settings = [pair for level in levels for pair in level.findall("./meta_attributes/nvpair")]
        if not any(
            (pair.get("name") == "is-managed" and not _is_true(pair))
            or (pair.get("name") == "maintenance" and _is_true(pair))
            for pair in settings
        ):
            yield resource


def _is_of(resource: ET.Element, data_directory: Path, service: Service) -> bool:
    kind = resource.get("type", "")
    if resource.get("class") in ("systemd", "service", "lsb"):
        return bool(service.name) and f"{kind.removesuffix('.service')}.service" == service.name
    if kind not in ("pgsql", "pgsqlms"):
        return False
    pairs = resource.findall("./instance_attributes/nvpair")
    places = [pair.get("value", "") for pair in pairs if pair.get("name") in ("pgdata", "datadir")]
    return any(is_same_place(Path(place), data_directory) for place in places or [_PACEMAKER_DEFAULT])


def _is_true(pair: ET.Element) -> bool:
    return pair.get("value", "").lower() in ("true", "yes", "on", "y", "1")


def _unquoted(value: str) -> str:
    match = re.match(r"'([^']*)'|\"([^\"]*)\"|([^#]*?)\s*(?:\s#.*)?$", value)
    return next((part for part in match.groups() if part), "") if match is not None else value


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
