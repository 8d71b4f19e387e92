"""
What phases 3 to 6 of one restore need, in a file: they go on from it when nothing else of the restore is left.

The door that planned the restore may be gone, and the vault's record with it: ``pgkeep finish`` and ``pgkeep rollback``
know the data directory only. The file is JSON; fields are only ever added.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import msgspec

from pgkeep.datadir.owner import Owner
from pgkeep.datadir.target import Target
from pgkeep.errors import FormatError
from pgkeep.jobs.recovery.standby_state import StandbyState
from pgkeep.jobs.restoring.own_configuration import OutsideState
from pgkeep.jobs.restoring.set_aside import Aside
from pgkeep.jobs.restoring.settings import restore_command
from pgkeep.pg.lsn import Lsn, SystemIdentifier, Timeline
from pgkeep.pg.recovery import RecoveryTarget, TargetAction, TargetKind
from pgkeep.vault.layout import WAL_DIRECTORY
from pgkeep.vault.wal_archive import WalArchive

STATE_FORMAT = 1
WAL_PLAN_FILE = "pgkeep.wal-plan.json"


class StoredAside(msgspec.Struct, frozen=True):
    """An ``Aside``, as text."""

    path: str
    new_path: str
    is_contents: bool = False


class StoredEnd(msgspec.Struct, frozen=True, kw_only=True):
    """A ``ReplayEnd``, as text; *last_commit* is empty when there was none."""

    lsn: str
    timeline: int
    last_commit: str = ""
    is_promoted: bool
    is_target_met: bool = True


class RestoreState(msgspec.Struct, frozen=True, kw_only=True):
    """
    One restore, from the end of phase 1 on.

    Attributes:
        restore_id: Bacula's job id, or when the restore began: ``20261121T081500Z``.
        backup_id: The base.
        system_identifier: The cluster's.
        data_directory: Absolute.
        version_directory: The directory inside each tablespace that belongs to the server's version.
        tablespaces: OID to absolute directory; empty for a tablespace inside ``pg_tblspc``.
        owner: User and group of what is restored, by number; None for whoever runs pgkeep.
        major: Of the server.
        superuser: Name of the role with OID 10.
        stop_lsn: Where the base becomes consistent.
        timeline: The timeline that replay follows.
        target_kind: What replay stops at.
        target_value: As ``RecoveryTarget`` has it, as text; empty for a kind without.
        target_inclusive: Just past the target, or just before it.
        target_action: What the server does then.
        archived_end: End of the WAL that is held along the history.
        segment_size: Bytes.
        has_hole: Whether more WAL is held behind a hole that begins at *archived_end*.
        recovery_settings: For ``postgresql.auto.conf`` until recovery is over, beside the target and what lasts.
        lasting: For ``postgresql.auto.conf``, also when recovery is over.
        minimums: Settings that must not be lower while WAL is replayed.
        vault: Where the WAL comes from.
        cluster: The cluster's name there.
        bin_directory: Programs of *major*; empty where there are none.
        timeout_seconds: For phase 4; 0 waits for ever.
        backup_label: The base's.
        tablespace_map: With the places of this restore.
        configuration: What a ``postgresql.conf`` must set when the backup holds none.
        wal_plan: Text of the restore's WAL plan.
        asides: What is moved away in phase 2, in the order of the moves.
        wiped: What is removed in phase 2 instead, for ever.
        wiped_identities: Of these directories: device and inode as phase 1 found them, ``65025:131``.
        is_wiping: Whether the first of it is gone.
        wal_link: What ``pg_wal`` is, and was, a link to; empty when it is a directory like others.
        wal_directory: Where that leads.
        is_cleared: Whether all of that is out of the way.
        chain: Ids of the backups that are rolled forward, oldest first; empty where there is only one.
        applied: Those of them that are laid down for good.
        phases_done: 1 to 6.
        access: The directory of the private socket, as long as the server is fenced.
        is_past_target: Whether the replay goes on to the end of the WAL, since the target was not reached.
        server_past_target: Process and start of the server that does; empty before it runs.
        end: Where the replay ended; None before that.
        is_lifting: Whether the fence is being lifted: recovery is over, and the server may run as configured.
        is_given_up: Whether a rollback has begun.
        others: Places of tablespaces that another restore had taken before; known when a rollback has begun.
        is_emptied: Whether it has taken out of the way what was restored.
        is_asked_to_start: Whether this restore was to run phases 4 to 6 by itself.
        asked: What was asked for, by which a second run of the same restore is known.
        options: For phases 5 and 6: names of parameters and their values.
        replication: What the cluster was to other servers, as a backup recorded it; empty where none did.
        is_copy: Whether the original may live on: this goes to another directory or another host.
        subscriptions: Those that phase 5 found, as they were then.
        server: How the server is run on this host, as ``Service`` has it.
        left_out: OIDs of tablespaces that the backup does not hold on purpose.
        libraries: Versions of what sorted text where the backup was made.
        audit_file: Path of the audit file; empty when there is none.
        private_wal: Directory of WAL that goes when nobody needs it any more; empty when the vault has it.
        standby: What the server follows when it is to be a standby; None for one that is promoted.
        outside: What is known of configuration outside the data directory.
        ran_by_hand: Whether somebody else has run the restored server, before pgkeep took it up again.
        is_drill: Whether it is stopped behind its fence when it was checked, and never opened.
    """

    restore_id: str
    backup_id: str
    system_identifier: str
    data_directory: str
    version_directory: str
    tablespaces: dict[str, str]
    owner: tuple[int, int] | None
    major: int
    superuser: str
    stop_lsn: str
    timeline: int
    target_kind: str
    target_value: str
    target_inclusive: bool
    target_action: str
    archived_end: str
    segment_size: int
    has_hole: bool
    recovery_settings: dict[str, str]
    lasting: dict[str, str]
    minimums: dict[str, int]
    vault: str
    cluster: str
    bin_directory: str
    timeout_seconds: int
    backup_label: str
    tablespace_map: str
    configuration: dict[str, str]
    wal_plan: str
    asides: list[StoredAside] = []
    wiped: list[str] = []
    wiped_identities: list[str] = []
    is_wiping: bool = False
    wal_link: str = ""
    wal_directory: str = ""
    is_cleared: bool = False
    chain: list[str] = []
    applied: list[str] = []
    phases_done: int = 1
    access: str = ""
    is_past_target: bool = False
    server_past_target: str = ""
    end: StoredEnd | None = None
    is_lifting: bool = False
    is_given_up: bool = False
    others: list[str] = []
    is_emptied: bool = False
    is_asked_to_start: bool = False
    asked: dict[str, Any] = {}
    options: dict[str, Any] = {}
    replication: dict[str, Any] = {}
    is_copy: bool = False
    subscriptions: list[dict[str, Any]] = []
    server: dict[str, Any] = {}
    left_out: list[int] = []
    libraries: dict[str, str] = {}
    audit_file: str = ""
    private_wal: str = ""
    standby: StandbyState | None = None
    outside: OutsideState = OutsideState()
    ran_by_hand: bool = False
    is_drill: bool = False
    format: int = STATE_FORMAT

    @property
    def directory(self) -> Path:
        """The data directory."""
        return Path(self.data_directory)

    @property
    def owner_of_files(self) -> Owner | None:
        """Who owns what is restored; None for whoever runs pgkeep."""
        return Owner(*self.owner) if self.owner is not None else None

    @property
    def target_directories(self) -> Target:
        """The directories of the restore."""
        return Target(
            data_directory=self.directory,
            version_directory=self.version_directory,
            tablespaces={int(oid): Path(place) if place else None for oid, place in self.tablespaces.items()},
            owner=self.owner_of_files,
        )

    @property
    def places(self) -> dict[int, Path]:
        """The tablespaces that have a directory of their own, by OID."""
        return {int(oid): Path(place) for oid, place in self.tablespaces.items() if place}

    @property
    def wal_plan_path(self) -> Path:
        """Where ``archive-get`` finds which WAL this restore cannot do without."""
        return self.directory / WAL_PLAN_FILE

    @property
    def log_path(self) -> Path:
        """Takes what the server says in phases 4 to 6."""
        return self.directory.with_name(f"{self.directory.name}.pgkeep-restore.log")

    @property
    def archive(self) -> WalArchive:
        """The archive that the WAL comes from; nothing is looked at before it is asked for a file."""
        return WalArchive(
            Path(self.vault, self.cluster, WAL_DIRECTORY),
            system_identifier=SystemIdentifier(int(self.system_identifier)),
            segment_size=self.segment_size,
        )

    @property
    def target(self) -> RecoveryTarget:
        """Where replay stops, on a timeline named by its number."""
        kind = TargetKind(self.target_kind)
        return RecoveryTarget(
            kind,
            _value_of(kind, self.target_value),
            inclusive=self.target_inclusive,
            timeline=str(self.timeline),
            action=TargetAction(self.target_action),
        )

    @property
    def end_of_backup(self) -> Lsn:
        """Where the base becomes consistent."""
        return Lsn.parse(self.stop_lsn)

    @property
    def end_of_wal(self) -> Lsn:
        """End of the WAL that is held along the history."""
        return Lsn.parse(self.archived_end)

    @property
    def moved(self) -> list[Aside]:
        """What was moved away, in the order of the moves."""
        return [Aside(Path(aside.path), Path(aside.new_path), aside.is_contents) for aside in self.asides]

    def restore_command(self, socket: Path | None) -> str:
        """Return the restore_command; *socket* is where pgkeep answers meanwhile, if it does."""
        return restore_command(Path(self.vault), self.cluster)(self.wal_plan_path, socket)

    def render(self) -> bytes:
        """Return the content of the state file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def parse(cls, content: bytes, *, name: str = "the state of the restore") -> RestoreState:
        """Return the state in *content*; raise FormatError, in which *name* stands for it, when it is not one."""
        try:
            state = msgspec.json.decode(content, type=cls)
            if state.format != STATE_FORMAT:
                raise FormatError(f"{name} has format {state.format}, expected {STATE_FORMAT}")
            # What it names is looked at now, and not when a phase needs it.
            _ = (state.target, state.end_of_backup, state.end_of_wal, state.places, Timeline(state.timeline))
        except (msgspec.MsgspecError, ValueError) as error:
            raise FormatError(f"{name} is not readable: {error}") from error
        return state


def _value_of(kind: TargetKind, text: str) -> dt.datetime | Lsn | int | str | None:
    match kind:
        case TargetKind.TIME:
            return dt.datetime.fromisoformat(text)
        case TargetKind.LSN:
            return Lsn.parse(text)
        case TargetKind.XID:
            return int(text)
        case TargetKind.NAME:
            return text
        case _:
            return None


def text_of_target(target: RecoveryTarget) -> str:
    """Return the value of *target* as the state has it."""
    if target.kind is TargetKind.TIME:
        return target.time.isoformat()
    return "" if target.value is None else str(target.value)
