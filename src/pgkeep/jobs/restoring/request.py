"""What a door asks of a restore."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pgkeep.jobs.recovery.plan import RecoveryPlan
from pgkeep.jobs.recovery.standby_plan import StandbyPlan
from pgkeep.jobs.restoring.audit_file import AuditFile
from pgkeep.jobs.restoring.state import WAL_PLAN_FILE, RestoreState
from pgkeep.pg.recovery import RecoveryTarget
from pgkeep.server.tools import Toolbox
from pgkeep.streams.record import RecordHead, RecordTail
from pgkeep.vault.wal_archive import WalArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreRequest:
    """
    What a door asks for.

    Attributes:
        recovery: The chosen base and target.
        tail: Of the base's record.
        chain: Ids of the backups whose files are rolled forward, the Full first and the base last; empty for a base
            that holds every file itself.
        combine: The program that makes one backup of a chain; None to roll it forward in place.
        expected_bytes: What is restored needs this much room.
        data_directory: Where to; absolute.
        tablespaces: OID to absolute directory, for those that do not go where they were.
        overwrite_existing: Move away what stands there.
        wipe: With that, remove it instead, for ever.
        start: Run phases 4 to 6; otherwise they are prepared and happen when the server is started.
        archive: Where the WAL comes from.
        vault_path: The vault that *archive* is in.
        cluster_name: The cluster's name there.
        toolbox: Programs of the backup's major version; None where there are none, so that nothing can be started.
        timeout_seconds: For phase 4; 0 waits for ever.
        workers: Threads for the lay-down.
        user: Who shall own the files; empty to find out.
        tablespace_bytes: How much of the backup goes into each tablespace, by OID.
        beside: Other directories that the restore fills, with the bytes that go into each.
        port: The restored server's port; 0 for the one in its configuration.
        private_wal: The directory of WAL that goes with the restore; None when *archive* stays.
        asked: What was asked for, by which a second run of the same restore is known.
        unfinished: The same restore, begun by an earlier run that did not come to its end; None to begin anew.
        options: For phases 5 and 6: names of parameters and their values.
        standby: How it will follow a primary; None for a cluster that is promoted.
        retain_days: After how many days what an earlier restore moved away is removed; 0 for never.
        audit: Keeps what is said; *say* and *warn* are its own then. None to keep nothing.
        is_drill: The server is stopped behind its fence when it was checked, and nothing outside the places named here
            is written.
        say: Takes one line for the log.
        warn: Takes one warning.
    """

    recovery: RecoveryPlan
    tail: RecordTail
    chain: tuple[str, ...] = ()
    combine: Path | None = None
    expected_bytes: int
    data_directory: Path
    tablespaces: dict[int, Path] = field(default_factory=dict)
    overwrite_existing: bool = False
    wipe: bool = False
    start: bool = False
    archive: WalArchive
    vault_path: Path
    cluster_name: str
    toolbox: Toolbox | None
    timeout_seconds: int = 3600
    workers: int = 2
    user: str = ""
    tablespace_bytes: dict[int, int] = field(default_factory=dict)
    beside: dict[Path, int] = field(default_factory=dict)
    port: int = 0
    private_wal: Path | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    unfinished: RestoreState | None = None
    options: dict[str, Any] = field(default_factory=dict)
    retain_days: int = 0
    standby: StandbyPlan | None = None
    audit: AuditFile | None = None
    is_drill: bool = False
    say: Callable[[str], None]
    warn: Callable[[str], None]

    @property
    def base(self) -> RecordHead:
        """The backup whose files are laid down."""
        return self.recovery.base

    @property
    def target(self) -> RecoveryTarget:
        """Where replay stops, on a timeline named by its number, so that server and plan agree."""
        return replace(self.recovery.target, timeline=str(int(self.recovery.timeline)))

    @property
    def major(self) -> int:
        """The backup's major version."""
        return self.base.server_version // 10000

    @property
    def wal_plan_path(self) -> Path:
        """Where ``archive-get`` finds which WAL this restore cannot do without."""
        return self.data_directory / WAL_PLAN_FILE

    @property
    def is_copy(self) -> bool:
        """Whether it goes to another directory than where it came from: a drill takes the place of nothing."""
        return self.is_drill or str(self.data_directory) != self.base.data_directory

    @property
    def is_elsewhere(self) -> bool:
        """Whether it certainly goes elsewhere than where it came from: another directory, or another host."""
        # A backup over the stream records the server's address at most, which says nothing of this host.
        is_known = self.base.transport == "local" and bool(self.base.host)
        return self.is_copy or (is_known and self.base.host != socket.gethostname())
