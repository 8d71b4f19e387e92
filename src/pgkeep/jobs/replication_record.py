"""The replication state of the server in the record of a backup, of whatever mode."""

from __future__ import annotations

import msgspec

from pgkeep.errors import ServerError
from pgkeep.modes.contract import BackupRequest
from pgkeep.server.connection import Server
from pgkeep.streams.record import RecordHead


def with_replication_state(head: RecordHead, request: BackupRequest, server: Server | None) -> RecordHead:
    """
    Return *head* with the replication state of *server*, where that is asked for.

    It is asked at the end: what a slot is worth to a restore is where it stood when the backup ended. A state that
    cannot be had costs a warning, never the backup; of a server that does not answer nothing is recorded.
    """
    if not request.track_replication_state or server is None:
        return head
    from pgkeep.server.replication_state import capture

    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        request.warn(text)

    try:
        state = capture(server, standby_hosts=request.standby_hosts, warn=warn)
    except (ServerError, ValueError) as error:
        # A ValueError is an answer in a form that nobody has seen yet.
        problem = error.message if isinstance(error, ServerError) else str(error)
        warn(f"the replication state is not recorded: {problem}")
        return msgspec.structs.replace(head, warnings=[*head.warnings, *warnings])
    request.say(f"captured {state.summary}")
    return msgspec.structs.replace(head, replication=state, warnings=[*head.warnings, *warnings])
