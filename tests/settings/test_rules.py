"""Rules between parameters: contradictions, consequences, warnings."""

from __future__ import annotations

import pytest

from pgkeep.errors import PgkeepError, SettingsError, UsageError
from pgkeep.settings import (
    COMMAND_LINE,
    RESTORE_MENU,
    Rank,
    Resolved,
    assignments,
    parse_config,
    parse_plugin_line,
    resolve,
)


def backup(line: str) -> Resolved:
    """Return the settings of a backup with this Plugin line."""
    return resolve(parse_plugin_line(f"pgkeep: {line}").assignments(), verb="backup")


def restore(**options: str) -> Resolved:
    """Return the settings of a restore with these options on the command line."""
    return resolve(assignments(options, COMMAND_LINE), verb="restore")


def test_meaningless_in_this_mode_is_warned_of() -> None:
    """What has no meaning in the job's mode is ignored with one warning each, never silently."""
    assert backup("mode=pitr dump_format=tar port=1 parallel_tables=2").warnings == (
        "dump_format has no meaning in mode pitr and is ignored in the Plugin line",
        "parallel_tables has no meaning in mode pitr and is ignored in the Plugin line",
    )
    assert restore(restore_mode="dump", pgdata_dir="/a").warnings == (
        "pgdata_dir has no meaning in mode dump and is ignored on the command line",
    )


def test_no_warning_for_what_serves_other_jobs() -> None:
    """The configuration file serves all modes, and a Plugin line both backup and restore."""
    config = parse_config("[options]\ndump_format = tar\nstart_fast = yes\n", "x.conf")
    line = parse_plugin_line("pgkeep: mode=pitr start_fast pgdata_dir=/a").assignments()
    assert resolve(line, verb="backup", config=config).warnings == ()
    assert resolve(line, verb="restore", config=config).warnings == ()
    with_mode = [*line, *assignments({"restore_mode": "dump"}, RESTORE_MENU)]
    assert resolve(with_mode, verb="restore", config=config).warnings == (
        "pgdata_dir has no meaning in mode dump and is ignored in the Plugin line",
    )


@pytest.mark.parametrize(
    ("line", "algorithm", "level"),
    [
        ("mode=dump", "auto", 0),
        ("mode=parallel_dump compression_level=12", "zstd", 12),
        ("compression_level=6", "gzip", 6),
        ("compress=zstd", "zstd", 0),
        ("compress=zstd compression_level=22", "zstd", 22),
        ("compress=none compression_level=0", "none", 0),
    ],
)
def test_compression_level_alone_means_gzip(line: str, algorithm: str, level: int) -> None:
    """A level without an algorithm is gzip's, as in pg_dump, but where zstd is usual."""
    resolved = backup(line)
    assert (resolved.text("compress"), resolved.number("compression_level")) == (algorithm, level)
    assert resolved.warnings == ()


def test_level_without_compression_is_warned_of() -> None:
    """A level beside an explicit `none` is ignored with a warning."""
    assert backup("compress=none compression_level=3").warnings == (
        "compression_level has no meaning with compress=none in the Plugin line",
    )


def test_standby_host_asks_for_a_standby() -> None:
    """Naming a standby is enough to back up from it, unless that was refused in so many words."""
    assert backup("mode=pitr standby_host=a").flag("backup_from_standby")
    refused = backup("mode=pitr standby_host=a backup_from_standby=no")
    assert not refused.flag("backup_from_standby")
    assert refused.warnings == ("standby_host has no meaning with backup_from_standby=no in the Plugin line",)


def test_lsn_wins_over_time() -> None:
    """Of an LSN and a time the LSN holds, and the log says so."""
    resolved = restore(target_lsn="2/04000028", recovery_target_time="2026-04-23T14:30:00Z")
    assert resolved.text("target_lsn") == "2/04000028"
    assert resolved.text("target_time") is None
    assert resolved.warnings == ("target_lsn wins over target_time, which is ignored",)


def test_master_switch_wins() -> None:
    """With replication state off nothing of it is restored, whatever the finer switches say."""
    resolved = restore(restore_replication_state="no", recreate_replication_slots="yes")
    assert not resolved.flag("recreate_replication_slots")
    assert resolved.text("recreate_subscriptions") == "no"
    assert resolved.warnings == (
        "recreate_replication_slots has no meaning with restore_replication_state=no on the command line",
    )


def test_wiping_needs_leave_to_overwrite() -> None:
    """wipe_pgdata alone allows nothing, and the log says so."""
    resolved = restore(wipe_pgdata="yes")
    assert not resolved.flag("overwrite_existing")
    assert resolved.warnings == ("wipe_pgdata has no meaning without overwrite_existing=yes on the command line",)


REFUSED_BACKUPS = [
    ("compression_level=10", "compression_level must be from 1 to 9 for gzip, found 10 in the Plugin line"),
    (
        "compress=lz4 compression_level=13",
        "compression_level must be from 1 to 12 for lz4, found 13 in the Plugin line",
    ),
    (
        "mode=pitr exclude_tablespace=scratch",
        "exclude_tablespace makes a backup that lacks files of the cluster in the Plugin line",
    ),
]

REFUSED_RESTORES = [
    (
        {"target_xid": "74215", "target_name": "x"},
        UsageError,
        "one recovery target is possible, found target_xid on the command line and target_name on the command line",
    ),
    (
        {"target_lsn": "2/04000028", "target_time": "2026-04-23", "target_immediate": "yes"},
        UsageError,
        "one recovery target is possible, found target_lsn on the command line and skip_wal_replay on the command line",
    ),
    (
        {"restore_as_standby": "yes", "target_name": "x"},
        UsageError,
        "restore_as_standby has no recovery target, found target_name on the command line",
    ),
    ({"new_database": "b"}, UsageError, "new_database needs exactly one target_database by name, found none"),
    (
        {"new_database": "b", "target_database": "a,c"},
        UsageError,
        "new_database needs exactly one target_database by name, found a, c",
    ),
    (
        {"new_database": "b", "target_database": "a*"},
        UsageError,
        "new_database needs exactly one target_database by name, found a*",
    ),
    (
        {"pgdata_dir": "/srv/a", "wal_restore_dir": "/srv/a/wal"},
        UsageError,
        "wal_restore_dir must lie outside pgdata_dir /srv/a, found /srv/a/wal on the command line",
    ),
]


@pytest.mark.parametrize(("line", "message"), REFUSED_BACKUPS)
def test_contradictory_backup_is_refused(line: str, message: str) -> None:
    """A backup that cannot be what was asked for is refused before anything is read."""
    with pytest.raises(SettingsError) as caught:
        backup(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(("options", "error", "message"), REFUSED_RESTORES)
def test_contradictory_restore_is_refused(options: dict[str, str], error: type[PgkeepError], message: str) -> None:
    """PostgreSQL takes one recovery target; we refuse two before it does."""
    with pytest.raises(error) as caught:
        restore(**options)
    assert str(caught.value) == message


def test_incomplete_backup_can_be_accepted() -> None:
    """Leaving out a tablespace needs a second word."""
    assert backup("mode=pitr exclude_tablespace=scratch allow_incomplete").names("exclude_tablespace") == ("scratch",)


def test_neighbouring_directory_is_outside() -> None:
    """A directory whose name merely begins like the data directory's lies outside of it."""
    resolved = restore(pgdata_dir="/srv/a", wal_restore_dir="/srv/a-wal")
    assert resolved.origin("wal_restore_dir").rank is Rank.LINE


@pytest.mark.parametrize(("name", "value"), [("target_timeline", "3"), ("recovery_target_action", "pause")])
def test_a_standby_follows_its_primary(name: str, value: str) -> None:
    """A standby has no timeline and no end of its own; the Plugin line's, which is the backup's, does not count."""
    with pytest.raises(UsageError) as caught:
        restore(restore_as_standby="yes", **{name: value})
    assert caught.value.message == f"restore_as_standby has no {name}, found one on the command line"
    line = parse_plugin_line("pgkeep: mode=pitr recovery_target_action=pause").assignments()
    asked = [*line, *assignments({"restore_as_standby": "yes"}, RESTORE_MENU)]
    assert resolve(asked, verb="restore").flag("restore_as_standby")


def test_a_primary_without_a_standby() -> None:
    """Who names a primary for what will be no standby is told."""
    assert restore(primary_conninfo="host=a").warnings == (
        "primary_conninfo has no meaning without restore_as_standby on the command line",
    )
    assert restore(primary_conninfo="host=a", restore_as_standby="yes").warnings == ()
