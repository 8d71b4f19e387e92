"""Running the server's own ``pg_combinebackup`` on the backups of a chain."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.datadir.staging import staging_directory
from pgkeep.errors import ToolError
from pgkeep.jobs.restoring.request import RestoreRequest
from pgkeep.server.client_program import ClientEnvironment, ClientProgram

if TYPE_CHECKING:
    from pgkeep.datadir.combined import Combine

PROGRAM = "pg_combinebackup"

_HINT = "restore without --combine: pgkeep itself rolls the chain forward, in place"


def with_combining(request: RestoreRequest, choice: str, *, chain_bytes: int) -> RestoreRequest:
    """
    Return *request*, whose chain is to be combined by the program where that is the *choice*, and where there is one.

    Args:
        request: Of any backup.
        choice: ``pg_combinebackup``, or anything else to leave *request* as it is.
        chain_bytes: What the files of all its members add up to.

    Raises:
        ToolError: The server's programs are without it.
    """
    if choice != PROGRAM or len(request.chain) < 2:
        return request
    assert request.toolbox is not None
    # All of the chain, and the result.
    room = {staging_directory(request.data_directory): chain_bytes + request.expected_bytes}
    return replace(request, combine=request.toolbox.program(PROGRAM), beside=room)


def combine_with(program: Path, say: Callable[[str], object]) -> Combine:
    """Return what makes one directory of several with *program*."""

    def combine(members: Sequence[Path], combined: Path) -> None:
        say(f"{PROGRAM} combines {len(members)} backups")
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment = ClientEnvironment(variables | {"LC_ALL": "C"})
        # What it makes is laid down once more, and made durable there.
        command: list[str | Path] = [program, "--no-sync", "-o", combined, *members]
        with ClientProgram(command, environment, task=f"{PROGRAM} of {', '.join(m.name for m in members)}") as child:
            try:
                child.finish()
            except ToolError as error:
                raise ToolError(error.message, hint=error.hint or _HINT) from error

    return combine
