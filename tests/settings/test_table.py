"""The table: what must hold for every row, and the names and numbers that are fixed for ever."""

from __future__ import annotations

import pytest

from pgkeep.settings import BY_NAME, MODES, PARAMETERS, VERBS, Kind, Parameter, Place, find, parse_value, restore_menu
from pgkeep.settings.options import default_in_words
from pgkeep.settings.table import nearest_name
from pgkeep.settings.values import expected_range, render_value

KNOWN_NAMES = """
mode cluster_id config abort_on_error debug timeout tmpdir bin_dir unix_user
host db_host port db_port user db_user password db_password pgpass_file passfile service dbname db_name role
connection_timeout connect_timeout sslmode sslrootcert sslcert sslkey
database databases db exclude_database exclude dump_format compression_level compress include_blobs
parallel_jobs jobs parallel_tables large_table_threshold dump_options dump_opt pg_dump_options lock_wait_timeout
include_globals pitr_label start_fast wal_segment_overlap exclude_tablespace verify_checksum archive_dir
wal_archive_dir transport switch_wal switch_wal_timeout stop_wait_wal_archive pitr_block_summary_days
cdp_window_seconds slot_name track_replication_state backup_from_standby standby_host standby_hosts
recovery_target_time recovery_target_lsn recovery_target_xid recovery_target_name
"""

MENU = """
restore_mode target_time target_lsn target_xid target_name target_timeline target_inclusive recovery_target_action
target_database new_database pgdata_dir tablespace_map wal_restore_dir overwrite_existing wipe_pgdata dry_run_restore
start_postgresql_after_restore restore_timeout restore_replication_state recreate_replication_slots
recreate_subscriptions restore_as_standby primary_conninfo skip_wal_replay verify_checksum_after post_restore_sql
pgdata_backup_retain_days host port user pgpass_file profile jobs restore_globals verify_amcheck_after
post_restore_sql_timeout target_table
"""

RANGES = {
    "port": (None, 1, 65535),
    "connection_timeout": (30, 1, 600),
    "parallel_jobs": (4, 1, 64),
    "compression_level": (0, 0, 22),
    "large_table_threshold": (10 << 30, 0, 1 << 60),
    "wal_segment_overlap": (2, 1, 32),
    "pitr_block_summary_days": (14, 1, 365),
    "cdp_window_seconds": (300, 10, 86400),
}

each_parameter = pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)


@pytest.mark.parametrize("name", KNOWN_NAMES.split())
def test_names_of_existing_filesets_are_known(name: str) -> None:
    """Whoever comes from another plugin keeps the parameters that he has."""
    assert find(name) is not None


def test_menu_numbers_stay() -> None:
    """A script that addresses a menu item by number gets the same item for ever."""
    menu = restore_menu()
    assert [parameter.menu for parameter in menu] == list(range(1, len(MENU.split()) + 1))
    assert [parameter.menu_name or parameter.name for parameter in menu] == MENU.split()


def test_menu_fits_the_console() -> None:
    """The console shows at most 64 items with names of at most 30 columns."""
    assert len(restore_menu()) <= 64
    assert all(len(parameter.menu_name or parameter.name) <= 30 for parameter in restore_menu())


@pytest.mark.parametrize(("name", "expected"), RANGES.items())
def test_promised_ranges(name: str, expected: tuple[int | None, int, int]) -> None:
    """The documented defaults and ranges are those of the table."""
    parameter = BY_NAME[name]
    assert (parameter.default, parameter.minimum, parameter.maximum) == expected


def test_every_name_has_one_meaning() -> None:
    """No name or alias stands for two parameters."""
    names = [name for parameter in PARAMETERS for name in parameter.names]
    assert sorted(names) == sorted(set(names))
    assert all(name == name.lower() and name.isascii() and "-" not in name for name in names)


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_one_meaning(verb: str) -> None:
    """No two options of one verb share a name, negations included."""
    flags = [flag for p in PARAMETERS if verb in p.verbs for flag in p.cli_flags]
    flags += [f"--no-{flag.removeprefix('--')}" for p in PARAMETERS if p.kind is Kind.BOOL for flag in p.cli_flags[:1]]
    assert sorted(flags) == sorted(set(flags))


@each_parameter
def test_default_is_acceptable(parameter: Parameter) -> None:
    """A default, written down, is read back as itself; there is one, or words for what happens."""
    if parameter.default is None:
        assert parameter.default_text
    elif parameter.default != ():
        assert parse_value(parameter, render_value(parameter, parameter.default)) == parameter.default
    assert default_in_words(parameter)


@each_parameter
def test_example_is_acceptable(parameter: Parameter) -> None:
    """The manual's example works."""
    assert parameter.example or parameter.name == "password"
    parse_value(parameter, parameter.example)


@each_parameter
def test_row_is_complete(parameter: Parameter) -> None:
    """Help, places, verbs and modes are those that exist."""
    assert parameter.help.endswith(".")
    assert parameter.places
    assert set(parameter.verbs) <= set(VERBS)
    assert set(parameter.modes) <= set(MODES)
    assert (Place.CLI in parameter.places) == bool(parameter.verbs)
    assert (parameter.menu is None) or Place.RESTORE in parameter.places
    assert not parameter.pattern or parameter.pattern_text
    assert parameter.kind not in {Kind.INTEGER, Kind.SIZE, Kind.DURATION} or expected_range(parameter)
    assert all(choice == choice.lower() for choice in parameter.choices)
    assert set(parameter.synonyms.values()) <= set(parameter.choices)


def test_password_is_neither_on_the_command_line_nor_in_the_catalog() -> None:
    """The password has no flag and no menu item."""
    password = BY_NAME["password"]
    assert password.is_secret
    assert not password.places & (Place.CLI | Place.RESTORE)
    assert password.cli_flags == ()


def test_only_the_configuration_file_allows_restores() -> None:
    """Nobody lifts a host's refusal of restores from elsewhere."""
    assert BY_NAME["allow_restore"].places == Place.CONFIG


@pytest.mark.parametrize("spelling", ["parallel_jobs", "PARALLEL_JOBS", "Parallel-Jobs", " jobs "])
def test_spelling_of_names(spelling: str) -> None:
    """Case and hyphens do not matter in a name."""
    assert find(spelling) is BY_NAME["parallel_jobs"]


def test_suggestion_is_one_that_may_stand_there() -> None:
    """A suggestion for the command line is never a parameter that has no flag."""
    assert nearest_name("databse", Place.CLI) == "database"
    assert nearest_name("pasword", Place.PLUGIN_LINE) == "password"
    assert nearest_name("pasword", Place.CLI) == ""
    assert nearest_name("zzzzzz", Place.CLI) == ""
