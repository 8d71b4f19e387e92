"""
What a server of a given version can do: every difference between PostgreSQL 12 and 18 that pgkeep minds, once.

Each property says why it exists. Nothing else in pgkeep compares version numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgkeep.errors import ServerError

SUPPORTED_MAJORS = range(12, 19)


def major_of(server_version: int) -> int:
    """Return the major version of ``server_version_num``: 18 of 180006."""
    return server_version // 10000


def version_text(server_version: int) -> str:
    """Return ``server_version_num`` as people write it: ``18.6`` of 180006, ``9.6.24`` of 90624."""
    if server_version >= 100000:
        return f"{server_version // 10000}.{server_version % 10000}"
    return f"{server_version // 10000}.{server_version // 100 % 100}.{server_version % 100}"


def check_supported(server_version: int) -> int:
    """Return the major version of *server_version*; raise ServerError when pgkeep does not support it."""
    major = major_of(server_version)
    if major not in SUPPORTED_MAJORS:
        raise ServerError(
            f"server is PostgreSQL {version_text(server_version)}, "
            f"supported are {SUPPORTED_MAJORS.start} to {SUPPORTED_MAJORS.stop - 1}"
        )
    return major


@dataclass(frozen=True, slots=True)
class Capabilities:
    """
    What the server of one version can do.

    Attributes:
        server_version: ``server_version_num``: 120022, 180006.
    """

    server_version: int

    @property
    def major(self) -> int:
        """The major version."""
        return major_of(self.server_version)

    # The backup functions.

    @property
    def start_function(self) -> str:
        """``pg_start_backup`` until 14; 15 dropped exclusive backups and renamed the functions."""
        return "pg_backup_start" if self.major >= 15 else "pg_start_backup"

    @property
    def stop_function(self) -> str:
        """``pg_stop_backup`` until 14; the reason is that of ``start_function``."""
        return "pg_backup_stop" if self.major >= 15 else "pg_stop_backup"

    @property
    def start_signature(self) -> str:
        """The start function with its argument types; non-exclusive is an argument until 14."""
        arguments = "text, boolean" if self.major >= 15 else "text, boolean, boolean"
        return f"{self.start_function}({arguments})"

    @property
    def stop_signature(self) -> str:
        """The stop function with its argument types; the reason is that of ``start_signature``."""
        return f"{self.stop_function}({'boolean' if self.major >= 15 else 'boolean, boolean'})"

    @property
    def start_backup_sql(self) -> str:
        """A query with the parameters label and fast, whose value is the start LSN; non-exclusive in every version."""
        return (
            "SELECT pg_catalog.pg_backup_start(%s, %s)"
            if self.major >= 15
            else "SELECT pg_catalog.pg_start_backup(%s, %s, false)"
        )

    @property
    def stop_backup_sql(self) -> str:
        """A query with the parameter wait_for_archive, whose row is stop LSN, label, tablespace map."""
        return (
            "SELECT lsn, labelfile, spcmapfile FROM pg_catalog.pg_backup_stop(%s)"
            if self.major >= 15
            else "SELECT lsn, labelfile, spcmapfile FROM pg_catalog.pg_stop_backup(false, %s)"
        )

    # BASE_BACKUP and the rest of the replication protocol.

    @property
    def has_base_backup_messages(self) -> bool:
        """
        15 sends all archives in one COPY, with messages that begin archives, and takes options in parentheses.

        Before, each tablespace is a COPY of its own, and the two zero blocks that end a tar archive are not sent.
        """
        return self.major >= 15

    @property
    def has_server_compression(self) -> bool:
        """15 brought COMPRESSION; a build may still lack lz4 or zstd."""
        return self.major >= 15

    @property
    def has_manifest(self) -> bool:
        """13 brought ``backup_manifest``."""
        return self.major >= 13

    @property
    def has_manifest_system_identifier(self) -> bool:
        """17 writes manifests of version 2, which name the cluster."""
        return self.major >= 17

    @property
    def has_incremental_backup(self) -> bool:
        """17 brought WAL summaries, UPLOAD_MANIFEST and INCREMENTAL."""
        return self.major >= 17

    @property
    def has_read_replication_slot(self) -> bool:
        """15 brought READ_REPLICATION_SLOT; before, a slot's position needs an SQL connection."""
        return self.major >= 15

    @property
    def has_slot_wal_status(self) -> bool:
        """13 brought ``max_slot_wal_keep_size`` and ``wal_status``; before, what a slot keeps has no bound."""
        return self.major >= 13

    @property
    def has_failover_slots(self) -> bool:
        """17 can synchronise logical slots to a standby."""
        return self.major >= 17

    @property
    def has_two_phase_slots(self) -> bool:
        """14 can decode prepared transactions; the slot says whether."""
        return self.major >= 14

    @property
    def has_binary_subscriptions(self) -> bool:
        """14 brought ``binary`` and ``streaming`` for subscriptions."""
        return self.major >= 14

    @property
    def has_two_phase_subscriptions(self) -> bool:
        """15 brought ``two_phase`` and ``disable_on_error`` for subscriptions."""
        return self.major >= 15

    @property
    def has_subscription_origin(self) -> bool:
        """16 brought ``origin``, ``password_required`` and ``run_as_owner`` for subscriptions."""
        return self.major >= 16

    @property
    def has_nullable_slot_name(self) -> bool:
        """12 calls ``pg_subscription.subslotname`` never null, although ALTER SUBSCRIPTION makes it so."""
        return self.major >= 13

    @property
    def has_event_trigger_switch(self) -> bool:
        """17 has the setting ``event_triggers``, as a way past one that is broken."""
        return self.major >= 17

    # What is on disk.

    @property
    def has_wal_summaries_directory(self) -> bool:
        """17 keeps WAL summaries in ``pg_wal/summaries``."""
        return self.major >= 17

    @property
    def has_in_place_tablespaces(self) -> bool:
        """
        ``allow_in_place_tablespaces`` came with 15.0 and was given to the older branches: 14.5, 13.8, 12.12.

        Such a tablespace is a directory, not a link, in ``pg_tblspc``, and stands in no tablespace map.
        """
        return self.server_version >= {12: 120012, 13: 130008, 14: 140005}.get(self.major, 0)

    @property
    def streams_in_place_tablespaces(self) -> bool:
        """Until 15, BASE_BACKUP leaves the files of in-place tablespaces out, without a word."""
        return self.major >= 16

    @property
    def has_stats_temp_directory(self) -> bool:
        """``stats_temp_directory`` was dropped in 15, when statistics moved to shared memory."""
        return self.major < 15

    # Databases.

    @property
    def has_locale_provider(self) -> bool:
        """15 lets each database choose who collates: libc or ICU; 17 adds a builtin provider."""
        return self.major >= 15

    @property
    def locale_column(self) -> str:
        """The column of ``pg_database`` with the locale of ICU; 17 renamed it for the builtin one; empty before 15."""
        return "datlocale" if self.major >= 17 else "daticulocale" if self.major >= 15 else ""

    @property
    def has_icu_rules(self) -> bool:
        """16 brought additional collation rules for ICU."""
        return self.major >= 16

    @property
    def has_forced_drop(self) -> bool:
        """13 brought ``DROP DATABASE … WITH (FORCE)``, which ends the sessions in it."""
        return self.major >= 13

    # Settings of a session.

    @property
    def has_idle_session_timeout(self) -> bool:
        """14 can end a session that does nothing, which a backup session mostly does."""
        return self.major >= 14

    @property
    def has_transaction_timeout(self) -> bool:
        """17 can end a transaction that takes long, which the snapshot of a dump does."""
        return self.major >= 17

    # Archiving and recovery.

    @property
    def has_archive_library(self) -> bool:
        """15 brought ``archive_library`` beside ``archive_command``."""
        return self.major >= 15

    @property
    def has_wal_keep_size(self) -> bool:
        """13 replaced ``wal_keep_segments``, a number of segments, by ``wal_keep_size``."""
        return self.major >= 13

    @property
    def has_promote_trigger_file(self) -> bool:
        """``promote_trigger_file`` was dropped in 16."""
        return self.major < 16

    @property
    def has_recovery_init_sync_method(self) -> bool:
        """14 brought ``recovery_init_sync_method``: syncfs instead of one fsync per file before crash recovery."""
        return self.major >= 14

    @property
    def fails_when_target_is_not_reached(self) -> bool:
        """13 ends recovery with an error when WAL ends before the target; 12 promotes quietly."""
        return self.major >= 13

    # Rights.

    @property
    def has_read_all_data_role(self) -> bool:
        """14 brought ``pg_read_all_data``; before, a role that dumps needs rights table by table, or superuser."""
        return self.major >= 14

    @property
    def has_checkpoint_role(self) -> bool:
        """15 brought ``pg_checkpoint``; before, only a superuser may run CHECKPOINT."""
        return self.major >= 15

    # Data and catalogs.

    @property
    def has_tid_range_scan(self) -> bool:
        """14 reads a ctid range without reading the whole table, so that a table can be copied in ranges."""
        return self.major >= 14

    @property
    def has_analyze_only(self) -> bool:
        """18 analyzes with a table what inherits from it, unless ``ANALYZE ONLY`` says not to."""
        return self.major >= 18

    @property
    def has_database_collation_version(self) -> bool:
        """15 records the collation version of each database, ``pg_database.datcollversion``."""
        return self.major >= 15

    @property
    def has_verify_heapam(self) -> bool:
        """14's ``amcheck`` checks tables, too; before, only B-tree indexes."""
        return self.major >= 14

    @property
    def has_icu_databases(self) -> bool:
        """15 brought ``pg_database.datlocprovider``."""
        return self.major >= 15

    @property
    def has_checkpointer_view(self) -> bool:
        """17 moved the checkpoint counters from ``pg_stat_bgwriter`` to ``pg_stat_checkpointer``."""
        return self.major >= 17
