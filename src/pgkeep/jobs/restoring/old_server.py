"""The server that a restore replaces: stopped before anything is moved, and started again when all is put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pgkeep.datadir.configured_start import start_as_configured
from pgkeep.datadir.instance import Instance
from pgkeep.datadir.postmaster import read_control_file, running_postmaster
from pgkeep.datadir.service import Service, stop_server
from pgkeep.jobs.restoring.state import RestoreState

STOP_SECONDS = 3600
"""How long its last checkpoint may take."""
_START_SECONDS = 300

Say = Callable[[str], None]


def service_of(state: RestoreState) -> Service:
    """Return what runs the server of the data directory, as phase 1 found it."""
    return Service.from_dict(state.server) if state.server else Service()


def stop_old_server(state: RestoreState, *, say: Say, warn: Say) -> None:
    """Stop the server that runs where the restore goes; raise RestoreRefused when that cannot be done."""
    postmaster = running_postmaster(state.directory) if state.directory.is_dir() else None
    if postmaster is None:
        return
    service = service_of(state)
    say(f"stopping the server in {state.directory}: process {postmaster.pid}, {service}")
    stop_server(service, state.directory, timeout_seconds=STOP_SECONDS)
    cluster_state = read_control_file(state.directory).state
    if not cluster_state.is_clean:
        warn(f"the server in {state.directory} did not stop in order: its control file says {cluster_state.value}")


def start_old_server(state: RestoreState, *, say: Say, warn: Say) -> None:
    """Start the server that ran before the restore, which is all back in its place, by the means by which it ran."""
    service = service_of(state)
    if not service.was_running or running_postmaster(state.directory) is not None:
        return
    instance = Instance(state.directory, bin_directory=Path(state.bin_directory), log_path=state.log_path)
    start_as_configured(instance, service, timeout_seconds=max(_START_SECONDS, state.timeout_seconds), warn=warn)
    say(f"the server of {state.directory} runs as before")
