"""Whether a server's data directory can be read on this host, and is the server's own."""

from __future__ import annotations

import os
from pathlib import Path

from pgkeep.datadir.postmaster import read_control_file, read_postmaster_file
from pgkeep.errors import PgkeepError
from pgkeep.modes.physical_base import ServerFacts
from pgkeep.server import queries
from pgkeep.server.connection import Server

_START_TOLERANCE_SECONDS = 5


def why_not_local(server: Server, facts: ServerFacts) -> str:
    """
    Return why the data directory cannot be read here; empty when it can.

    The same path may exist here with another cluster in it, or with a copy of this one, when the server runs on another
    host. So the directory must hold this cluster's control file, and the lock file of a server that started when this
    one did.
    """
    data_directory = Path(facts.files.data_directory)
    if not data_directory.is_dir():
        return f"{data_directory} is not on this host"
    if not os.access(data_directory, os.R_OK | os.X_OK):
        return f"no right to read {data_directory}"
    try:
        control = read_control_file(data_directory)
        postmaster = read_postmaster_file(data_directory)
    except PgkeepError as error:
        return str(error)
    problem = ""
    if control.system_identifier != facts.identity.system_identifier:
        problem = f"{data_directory} on this host belongs to system identifier {control.system_identifier}"
    elif postmaster is None:
        problem = f"no server runs in {data_directory} on this host"
    elif abs(postmaster.start_time - queries.start_time(server).timestamp()) > _START_TOLERANCE_SECONDS:
        problem = f"the server in {data_directory} on this host is not the one that was connected to"
    return problem
