from __future__ import annotations

import pytest

from pgkeep.errors import ServerError
from pgkeep.pg.capabilities import SUPPORTED_MAJORS, Capabilities, check_supported, version_text
from tests.lab.cluster import Cluster


@pytest.mark.parametrize("version", SUPPORTED_MAJORS)
def test_each_supported_major_is_taken(version: int) -> None:
    """12 to 18 are supported."""
    assert check_supported(version * 10000 + 6) == version


@pytest.mark.parametrize(
    ("server_version", "text"), [(90624, "9.6.24"), (110022, "11.22"), (190000, "19.0"), (0, "0.0.0")]
)
def test_other_versions_are_refused(server_version: int, text: str) -> None:
    """Older and newer servers are refused by name."""
    assert version_text(server_version) == text
    with pytest.raises(ServerError) as caught:
        check_supported(server_version)
    assert str(caught.value) == f"server is PostgreSQL {text}, supported are 12 to 18"


@pytest.mark.parametrize(
    ("server_version", "expected"),
    [(120011, False), (120012, True), (130007, False), (140004, False), (140005, True), (150000, True), (180006, True)],
)
def test_in_place_tablespaces_came_with_a_minor(server_version: int, expected: bool) -> None:
    """The older branches got them late."""
    assert Capabilities(server_version).has_in_place_tablespaces is expected


SETTINGS = {
    "stats_temp_directory": "has_stats_temp_directory",
    "idle_session_timeout": "has_idle_session_timeout",
    "transaction_timeout": "has_transaction_timeout",
    "archive_library": "has_archive_library",
    "wal_keep_size": "has_wal_keep_size",
    "max_slot_wal_keep_size": "has_slot_wal_status",
    "promote_trigger_file": "has_promote_trigger_file",
    "recovery_init_sync_method": "has_recovery_init_sync_method",
    "allow_in_place_tablespaces": "has_in_place_tablespaces",
    "summarize_wal": "has_incremental_backup",
    "sync_replication_slots": "has_failover_slots",
}


def test_a_servers_settings_roles_and_columns_are_as_expected(shared_cluster: Cluster) -> None:
    """What the server has is what its version says."""
    capabilities = Capabilities(shared_cluster.value("SELECT current_setting('server_version_num')::int"))
    assert capabilities.major == shared_cluster.major
    for setting, capability in SETTINGS.items():
        is_there = shared_cluster.value("SELECT count(*) = 1 FROM pg_settings WHERE name = %s", [setting])
        assert (setting, is_there) == (setting, getattr(capabilities, capability))
    for role, capability in (("pg_read_all_data", "has_read_all_data_role"), ("pg_checkpoint", "has_checkpoint_role")):
        is_there = shared_cluster.value("SELECT count(*) = 1 FROM pg_roles WHERE rolname = %s", [role])
        assert (role, is_there) == (role, getattr(capabilities, capability))
    for column, capability in (
        ("datcollversion", "has_database_collation_version"),
        ("datlocprovider", "has_icu_databases"),
    ):
        is_there = shared_cluster.value(
            "SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 'pg_database'::regclass AND attname = %s", [column]
        )
        assert (column, is_there) == (column, getattr(capabilities, capability))
    has_view = shared_cluster.value("SELECT to_regclass('pg_catalog.pg_stat_checkpointer') IS NOT NULL")
    assert has_view == capabilities.has_checkpointer_view
    for function in (capabilities.start_function, capabilities.stop_function):
        assert shared_cluster.value("SELECT count(*) > 0 FROM pg_proc WHERE proname = %s", [function])


def test_a_backup_can_be_started_and_stopped(shared_cluster: Cluster) -> None:
    """The two queries bring the server into backup mode and out of it."""
    capabilities = Capabilities(shared_cluster.major * 10000)
    with shared_cluster.connect() as session:
        row = session.execute(capabilities.start_backup_sql, ["test", True]).fetchone()
        assert row is not None
        stopped = session.execute(capabilities.stop_backup_sql, [False]).fetchone()
        assert stopped is not None
        assert stopped[1].startswith(f"START WAL LOCATION: {row[0]} ")


@pytest.mark.pg(">=14")
def test_a_range_of_row_places_is_scanned_directly(shared_cluster: Cluster) -> None:
    """A condition on ctid is a TID range scan where the version says so."""
    shared_cluster.sql("CREATE TABLE IF NOT EXISTS ctid_ranges (i int)")
    plan = shared_cluster.sql("EXPLAIN SELECT * FROM ctid_ranges WHERE ctid >= '(0,0)' AND ctid < '(10,0)'")
    assert "Tid Range Scan" in plan[0][0]
    assert Capabilities(shared_cluster.major * 10000).has_tid_range_scan
