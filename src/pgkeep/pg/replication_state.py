"""
What a server is to other servers: its slots, subscriptions and publications, whom it follows and who follows it.

A physical backup has the subscriptions and publications in its data but no slot, a dump has no slot and not all of a
subscription: so all of it goes into the record. LSNs are texts as the server prints them, times are ISO-8601 in UTC.
Fields are as the views of PostgreSQL 18 have them; what an older server does not know has its default.
"""

from __future__ import annotations

import msgspec


class Slot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One line of ``pg_replication_slots``.

    Attributes:
        slot_name: Its name.
        slot_type: ``physical`` or ``logical``.
        plugin: Of a logical slot; empty otherwise.
        database: Of a logical slot; empty otherwise.
        temporary: Whether it ends with the session that made it.
        active: Whether somebody streamed from it.
        xmin: Oldest transaction that it keeps from vacuum; empty for none.
        catalog_xmin: The same for system catalogs.
        restart_lsn: WAL from here on is kept; empty when nothing is reserved.
        confirmed_flush_lsn: Up to where a logical slot's consumer has confirmed.
        wal_status: From 13 on ``reserved``, ``extended``, ``unreserved`` or ``lost``.
        safe_wal_size: From 13 on: bytes that may be written before it is in danger; None for no limit.
        two_phase: From 14 on: whether prepared transactions are decoded.
        two_phase_at: From 18 on: since which LSN.
        inactive_since: From 17 on.
        conflicting: From 16 on: whether a logical slot of a standby was invalidated by a conflict.
        invalidation_reason: From 17 on; empty for a slot that is valid.
        failover: From 17 on: whether standbys are to have it, too.
        synced: From 17 on: whether it is a copy of one of the primary's.
    """

    slot_name: str
    slot_type: str
    plugin: str = ""
    database: str = ""
    temporary: bool = False
    active: bool = False
    xmin: str = ""
    catalog_xmin: str = ""
    restart_lsn: str = ""
    confirmed_flush_lsn: str = ""
    wal_status: str = ""
    safe_wal_size: int | None = None
    two_phase: bool = False
    two_phase_at: str = ""
    inactive_since: str = ""
    conflicting: bool = False
    invalidation_reason: str = ""
    failover: bool = False
    synced: bool = False

    @property
    def is_physical(self) -> bool:
        """Whether it is for physical replication."""
        return self.slot_type == "physical"

    @property
    def loss(self) -> str:
        """Why nobody could stream from it any more; empty when one could."""
        if self.invalidation_reason:
            return self.invalidation_reason
        if self.conflicting:
            return "conflict"
        return "WAL removed" if self.wal_status == "lost" else ""


class Subscription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One line of ``pg_subscription``.

    Attributes:
        name: Its name.
        database: Where it is.
        owner: Name of the owning role.
        enabled: Whether it was.
        conninfo: How it reaches its publisher, without passwords; empty when the role may not know.
        has_password: Whether a password was left out of *conninfo*.
        slot_name: The publisher's slot; empty for none.
        publications: Names of the publications.
        synchronous_commit: Of its workers.
        binary: From 14 on.
        streaming: ``off``, ``on`` (from 14 on) or ``parallel`` (from 16 on).
        two_phase: From 15 on.
        disable_on_error: From 15 on.
        skip_lsn: From 15 on: a transaction that is to be skipped; empty for none.
        password_required: From 16 on.
        run_as_owner: From 16 on.
        origin: From 16 on: ``any`` or ``none``.
        failover: From 17 on: whether the publisher's standbys are to have the slot, too.
    """

    name: str
    database: str
    owner: str = ""
    enabled: bool = False
    conninfo: str = ""
    has_password: bool = False
    slot_name: str = ""
    publications: list[str] = msgspec.field(default_factory=list)
    synchronous_commit: str = "off"
    binary: bool = False
    streaming: str = "off"
    two_phase: bool = False
    disable_on_error: bool = False
    skip_lsn: str = ""
    password_required: bool = True
    run_as_owner: bool = False
    origin: str = "any"
    failover: bool = False


class Publication(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A publication: what it publishes stands in the data; *all_tables* says whether that is everything."""

    name: str
    database: str
    owner: str = ""
    all_tables: bool = False


class Follower(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who streamed from the server: a line of ``pg_stat_replication``."""

    application_name: str = ""
    client_addr: str = ""
    state: str = ""
    sync_state: str = ""
    slot_name: str = ""


class ServerRole(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What one server was in the topology.

    Attributes:
        host: Name or address by which it was reached; empty for a local socket.
        port: Its port.
        is_standby: Whether it was in recovery.
        lsn: End of WAL: inserted on a primary, replayed on a standby; empty when it had replayed nothing.
        signal_files: Which of ``standby.signal`` and ``recovery.signal`` were there; None when the role may not look.
        settings: What makes a standby one, and what a primary asks of its standbys, as ``SHOW`` prints it; only what
            is not empty. ``primary_conninfo`` has no password, ``restore_command`` is its program alone.
        has_password: Whether a password was left out of ``primary_conninfo``.
        slots: Its slots; of the server that was backed up they stand in the state itself.
    """

    host: str = ""
    port: int = 0
    is_standby: bool = False
    lsn: str = ""
    signal_files: list[str] | None = None
    settings: dict[str, str] = msgspec.field(default_factory=dict)
    has_password: bool = False
    slots: list[Slot] = msgspec.field(default_factory=list)

    @property
    def word(self) -> str:
        """``primary`` or ``standby``."""
        return "standby" if self.is_standby else "primary"


class ReplicationState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    The replication state of a server, as it was when a backup of it ended.

    Attributes:
        captured_at: When; by the server's clock.
        major: The server's major version.
        server: What the server was.
        slots: By name; pgkeep's own temporary ones are not among them.
        subscriptions: By database and name.
        publications: By database and name; of the databases that the role may connect to.
        followers: Who streamed from it.
        standbys: Other servers that were asked, ``standby_host``.
    """

    captured_at: str = ""
    major: int = 0
    server: ServerRole = msgspec.field(default_factory=ServerRole)
    slots: list[Slot] = msgspec.field(default_factory=list)
    subscriptions: list[Subscription] = msgspec.field(default_factory=list)
    publications: list[Publication] = msgspec.field(default_factory=list)
    followers: list[Follower] = msgspec.field(default_factory=list)
    standbys: list[ServerRole] = msgspec.field(default_factory=list)

    @property
    def summary(self) -> str:
        """Say how much there is: ``2 replication slots, 0 subscriptions``."""
        return f"{len(self.slots)} replication slots, {len(self.subscriptions)} subscriptions"
