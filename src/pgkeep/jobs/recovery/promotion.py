"""Where a promoted server left the timeline that it replayed, and whether that was the target."""

from __future__ import annotations

import re

from pgkeep.errors import RecoveryFailed
from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import RecoveryTarget, TargetKind
from pgkeep.server.connection import Server

# What the history file says of a target that was not met: zero, the empty name, the epoch in any zone.
_NOT_MET = {
    TargetKind.LSN: re.compile(r"LSN 0/0+$"),
    TargetKind.XID: re.compile("transaction 0$"),
    TargetKind.NAME: re.compile('""$'),
    TargetKind.TIME: re.compile("(2000-01-01|1999-12-31) "),
}


def check_promotion(server: Server, target: RecoveryTarget, *, major: int) -> tuple[Lsn, bool]:
    """
    Return where replay left the old timeline, and whether the target was met.

    Only a time may not be met: there may be no commit after it. Any other promotion short of the target is an error,
    RecoveryFailed.
    """
    with server.replication() as replication:
        identity = replication.identify()
        history = replication.timeline_history(identity.timeline).content.decode("utf-8", "surrogateescape")
    last = [line.split("\t") for line in history.splitlines() if line.strip()][-1]
    end, reason = Lsn.parse(last[1]), last[-1]
    if Capabilities(major * 10000).fails_when_target_is_not_reached:
        return end, True
    # PostgreSQL 12 promotes at the end of WAL whatever the target; what it stopped at is in the history file, in
    # English always (StartupXLOG).
    is_met = target.kind not in _NOT_MET or _NOT_MET[target.kind].search(reason.strip()) is None
    if not is_met and target.kind is not TargetKind.TIME:
        raise RecoveryFailed(f"replay ended at {end}, before {target}", hint="the WAL held does not reach the target")
    return end, is_met
