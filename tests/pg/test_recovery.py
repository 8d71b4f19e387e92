from __future__ import annotations

import contextlib
import datetime as dt
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError, PgkeepError, UsageError
from pgkeep.pg.capabilities import SUPPORTED_MAJORS
from pgkeep.pg.lsn import Lsn
from pgkeep.pg.recovery import (
    RECOVERY_SETTING_NAMES,
    RecoveryTarget,
    TargetAction,
    TargetKind,
    fence_settings,
    parse_target,
    parse_target_time,
    recovery_settings,
    render_setting,
    render_settings,
    render_target_time,
    standby_settings,
)
from tests.lab.cluster import Cluster, wait_for
from tests.lab.server_user import server_user

BERLIN = ZoneInfo("Europe/Berlin")
NOW = dt.datetime(2026, 11, 20, 21, 0, tzinfo=dt.UTC)


def parse(text: str, zone: dt.tzinfo = BERLIN) -> dt.datetime:
    """Return the moment that *text* names for a person in *zone*."""
    return parse_target_time(text, local_zone=zone, now=NOW)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-20T20:48:00Z", "2026-11-20 20:48:00.000000"),
        ("2026-11-20t20:48:00z", "2026-11-20 20:48:00.000000"),
        ("2026-11-20 20:48:00+00", "2026-11-20 20:48:00.000000"),
        ("2026-11-20 20:48:00 -03:00", "2026-11-20 23:48:00.000000"),
        ("2026-11-20 20:48:00+0530", "2026-11-20 15:18:00.000000"),
        ("2026-11-20 20:48", "2026-11-20 19:48:00.000000"),
        ("  2026-11-20   20:48:00.5  ", "2026-11-20 19:48:00.500000"),
        ("2026-07-20 20:48:00", "2026-07-20 18:48:00.000000"),
        ("2026-11-20 20:48:00.123456789Z", "2026-11-20 20:48:00.123456"),
        ("2026-11-20 20:48:00,25Z", "2026-11-20 20:48:00.250000"),
        ("2026-11-20 20:48:00 America/Sao_Paulo", "2026-11-20 23:48:00.000000"),
        ("2026-11-20 20:48:00 UTC", "2026-11-20 20:48:00.000000"),
        ("20261120T204800Z", "2026-11-20 20:48:00.000000"),
        ("20261120T2048", "2026-11-20 19:48:00.000000"),
        ("90 min ago", "2026-11-20 19:30:00.000000"),
        ("2 Days ago", "2026-11-18 21:00:00.000000"),
        ("2026-10-25 02:30:00+02:00", "2026-10-25 00:30:00.000000"),
    ],
)
def test_times_are_read_as_people_write_them(text: str, utc: str) -> None:
    """Each form names the moment that a person in Berlin means by it."""
    moment = parse(text)
    assert moment.utcoffset() is not None
    assert render_target_time(moment.astimezone(dt.UTC)) == utc + "+00:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'not a date and time: ""'),
        ("yesterday", 'not a date and time: "yesterday"'),
        ("2026-11-20", 'not a date and time: "2026-11-20"'),
        ("20:48", 'not a date and time: "20:48"'),
        ("20.11.2026 20:48", 'not a date and time: "20.11.2026 20:48"'),
        ("2026-11-20 20:48:00.", 'not a date and time: "2026-11-20 20:48:00."'),
        ("２０２６-11-20 20:48", 'not a date and time: "２０２６-11-20 20:48"'),
        ("2026-11-20 20:48:00 EDTX", 'unknown time zone "EDTX" in "2026-11-20 20:48:00 EDTX"'),
        (
            "2026-11-20 20:48:00 a/../../etc/passwd",
            'unknown time zone "a/../../etc/passwd" in "2026-11-20 20:48:00 a/../../etc/passwd"',
        ),
        ("2026-11-20 20:48:00 Europe", 'unknown time zone "Europe" in "2026-11-20 20:48:00 Europe"'),
        ("2026-11-20 20:48:00+01:60", 'no such offset from UTC: "+01:60" in "2026-11-20 20:48:00+01:60"'),
        ("2026-11-20 20:48:00+16", 'no such offset from UTC: "+16" in "2026-11-20 20:48:00+16"'),
        (
            "0001-01-01 00:00:00+01:00",
            'no such date and time: "0001-01-01 00:00:00+01:00": it is outside of the years 1 to 9999',
        ),
        ("999999999 days ago", 'target time is before all calendars: "999999999 days ago"'),
    ],
)
def test_other_texts_are_refused(text: str, message: str) -> None:
    """What is no moment is refused with the text that was given."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["2026-02-29 10:00", "2026-11-20 24:00", "2026-11-20 20:48:60", "2026-13-01 10:00"])
def test_days_and_hours_that_do_not_exist_are_refused(text: str) -> None:
    """The calendar is checked; what it said follows the text."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value).startswith(f'no such date and time: "{text}": ')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "2026-10-25 02:30:00",
            (
                "local time 2026-10-25 02:30:00 happened twice in Europe/Berlin: "
                "it is 2026-10-25 02:30:00+02:00 or 2026-10-25 02:30:00+01:00"
            ),
        ),
        (
            "2026-03-29 02:30:00",
            (
                "local time 2026-03-29 02:30:00 was skipped in Europe/Berlin: "
                "it is 2026-03-29 03:30:00+02:00 or 2026-03-29 01:30:00+01:00"
            ),
        ),
        (
            "2026-10-25 02:30:00 Europe/Paris",
            (
                "local time 2026-10-25 02:30:00 happened twice in Europe/Paris: "
                "it is 2026-10-25 02:30:00+02:00 or 2026-10-25 02:30:00+01:00"
            ),
        ),
    ],
)
def test_a_local_time_that_names_no_one_moment_is_refused(text: str, message: str) -> None:
    """When the clocks change, both moments are named, and the offset must be given."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert str(caught.value) == message
    assert caught.value.hint == "write the offset that you mean"


@given(st.datetimes(timezones=st.timezones()))
def test_what_is_rendered_is_parsed_back(moment: dt.datetime) -> None:
    """A moment of any zone survives the form that the server takes, to the microsecond."""
    try:
        text = render_target_time(moment)
    except OverflowError:
        return  # the ends of the calendar, where UTC has no such year
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d", text)
    with contextlib.suppress(UsageError):
        assert parse(text) == moment.astimezone(dt.UTC)


@given(st.text(), st.timezones())
def test_any_text_is_a_moment_or_a_usage_error(text: str, zone: dt.tzinfo) -> None:
    """No text makes the parser fail in another way."""
    for candidate in (text, f"2026-11-20 20:48:00{text}", f"2026-{text}-20 20:48", "2026-11-20 20:48"):
        with contextlib.suppress(UsageError):
            assert parse(candidate, zone).utcoffset() is not None


def target(**arguments: str) -> RecoveryTarget:
    """Return the target that a person in Berlin asked for."""
    return parse_target(local_zone=BERLIN, now=NOW, **arguments)  # type: ignore[arg-type]


def test_each_kind_of_target_is_understood() -> None:
    """Nothing given is the end of the WAL; everything else is of the kind that it was given as."""
    assert target() == RecoveryTarget()
    assert target(time="2026-11-20T20:48:00Z").time == dt.datetime(2026, 11, 20, 20, 48, tzinfo=dt.UTC)
    assert target(lsn="2/4000028").lsn == Lsn.parse("2/04000028")
    assert target(xid="4711").xid == 4711
    assert target(name="before the upgrade").name == "before the upgrade"
    assert target(immediate="yes").kind is TargetKind.IMMEDIATE
    assert str(target(lsn="2/4000028")) == "lsn 2/04000028"
    assert str(target()) == "latest"
    assert str(target(time="2026-11-20T20:48:00Z")) == "time 2026-11-20 20:48:00.000000+00:00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time": "2026-11-20 20:48", "lsn": "0/1"}, "more than one recovery target: time, lsn"),
        ({"name": "x", "immediate": "yes"}, "more than one recovery target: name, immediate"),
        ({"xid": "abc"}, 'recovery target xid must be a transaction id, found "abc"'),
        ({"xid": "2"}, "recovery target xid must be a transaction id from 3, found 2"),
        ({"xid": str(2**64 + 5)}, f"recovery target xid must be a transaction id from 3, found {2**64 + 5}"),
        ({"name": "ä" * 32}, f'a restore point\'s name has 1 to 63 bytes, found 64 in "{"ä" * 32}"'),
        ({"timeline": "newest"}, 'target timeline must be latest, current or a number, found "newest"'),
        ({"timeline": "0"}, 'target timeline must be latest, current or a number, found "0"'),
        ({"timeline": "4294967296"}, 'target timeline must be latest, current or a number, found "4294967296"'),
    ],
)
def test_an_impossible_target_is_refused(arguments: dict[str, str], message: str) -> None:
    """Exactly one target, and one that a server takes."""
    with pytest.raises(UsageError) as caught:
        target(**arguments)
    assert str(caught.value) == message


def test_a_wrong_lsn_is_refused() -> None:
    """An LSN is read as everywhere else."""
    with pytest.raises(FormatError) as caught:
        target(lsn="latest")
    assert str(caught.value) == 'not an LSN: expected something like 2/04000028, found "latest"'


def test_a_time_without_zone_is_refused() -> None:
    """A target can be made by a program, too, and then it must be as exact."""
    with pytest.raises(UsageError) as caught:
        RecoveryTarget(TargetKind.TIME, dt.datetime(2026, 11, 20))  # noqa: DTZ001 - that is the mistake
    assert str(caught.value) == "recovery target time 2026-11-20 00:00:00 has no time zone"


values = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("'\\\n\r\t "))


def read_setting(line: str) -> tuple[str, str]:
    """Return name and value of a line as the server's scanner reads it."""
    match = re.fullmatch(r"(\S+) = '((?:[^'\\\n]|''|\\.)*)'\n", line)
    assert match is not None, line
    escapes = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
    value = re.sub(r"''|\\(.)", lambda found: escapes.get(found[1], found[1]) if found[1] else "'", match[2])
    return match[1], value


@given(values)
def test_a_value_survives_the_servers_quoting(value: str) -> None:
    """Whatever a value holds, one line says it."""
    line = render_setting("restore_command", value)
    assert line.count("\n") == 1
    assert read_setting(line) == ("restore_command", value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("restore command", "x", 'not the name of a setting: "restore command"'),
        ("a\nb", "x", 'not the name of a setting: "a\nb"'),
        ("", "x", 'not the name of a setting: ""'),
        ("cluster_name", "a\0b", "the value of cluster_name holds a zero byte"),
    ],
)
def test_a_setting_that_no_file_can_hold_is_refused(name: str, value: str, message: str) -> None:
    """A name cannot smuggle in another line, and a value cannot end early."""
    with pytest.raises(UsageError) as caught:
        render_setting(name, value)
    assert str(caught.value) == message


TARGETS = [
    RecoveryTarget(),
    RecoveryTarget(TargetKind.IMMEDIATE),
    RecoveryTarget(TargetKind.TIME, NOW),
    RecoveryTarget(TargetKind.LSN, Lsn(4711), inclusive=False),
    RecoveryTarget(TargetKind.XID, (3 << 32) + 4711, action=TargetAction.SHUTDOWN),
    RecoveryTarget(TargetKind.NAME, "it's", timeline="7", action=TargetAction.PAUSE),
]


@pytest.mark.parametrize("version", SUPPORTED_MAJORS)
@pytest.mark.parametrize("wanted", TARGETS, ids=str)
def test_one_target_is_set_and_it_comes_last(wanted: RecoveryTarget, version: int) -> None:
    """All targets but one are set back, before the one that counts is set; each name is one that can be removed."""
    settings = recovery_settings(wanted, major=version, restore_command="get %f %p")
    targets = {
        name: value for name, value in settings.items() if re.fullmatch("recovery_target(_time|_lsn|_xid|_name)?", name)
    }
    assert len(targets) == 5
    filled = [name for name, value in targets.items() if value]
    assert len(filled) == (wanted.kind is not TargetKind.LATEST)
    assert not filled or list(targets)[-1] == filled[0]
    assert set(settings) <= RECOVERY_SETTING_NAMES
    assert ("promote_trigger_file" in settings) == (version < 16)
    assert set(standby_settings(major=version, primary_conninfo="host=a")) <= RECOVERY_SETTING_NAMES


def test_a_64_bit_transaction_id_loses_its_epoch() -> None:
    """The server's setting takes the 32-bit id."""
    assert recovery_settings(TARGETS[4], major=18, restore_command="")["recovery_target_xid"] == "4711"


def test_a_pause_needs_a_server_that_answers() -> None:
    """Without hot standby the server would stop instead of pausing."""
    paused = recovery_settings(TARGETS[5], major=18, restore_command="", hot_standby=False)
    promoted = recovery_settings(TARGETS[0], major=18, restore_command="", hot_standby=False)
    assert (paused["hot_standby"], promoted["hot_standby"]) == ("on", "off")


@given(st.sampled_from(["time", "lsn", "xid", "name", "timeline"]), st.text())
def test_any_text_is_a_target_or_pgkeeps_own_error(key: str, text: str) -> None:
    """Whatever a person writes, the answer is a target or says what is wrong."""
    with contextlib.suppress(PgkeepError):
        target(**{key: text})


def test_a_server_stops_where_it_is_told(
    cluster: Cluster, run_cluster: Callable[[Cluster], Cluster], lab_directory: Path
) -> None:
    """
    Every kind of target is reached, although an earlier recovery left another target behind.

    The restore point's name and the path of the archive hold what a quoting mistake would trip over.
    """
    archive = lab_directory / "it's an \\archive"
    cluster.archive_to(archive)
    cluster.sql("ALTER SYSTEM SET recovery_target_name = 'left behind'")
    cluster.sql("CREATE TABLE t (i int)")
    cluster.stop()
    base = lab_directory / "base"
    shutil.copytree(cluster.data_directory, base, symlinks=True)
    cluster.start()
    cluster.sql("INSERT INTO t VALUES (1)")
    cluster.sql("SELECT pg_create_restore_point('it''s \\ ä')")
    lsn = Lsn.parse(cluster.current_lsn())
    moment = cluster.value("SELECT clock_timestamp()")
    xid = cluster.value("INSERT INTO t VALUES (2) RETURNING txid_current()")
    cluster.sql("INSERT INTO t VALUES (3)")
    last = cluster.switch_wal()
    wait_for((archive / last).exists, f"{last} is archived")
    cluster.stop()

    wanted = {
        RecoveryTarget(): 3,
        RecoveryTarget(TargetKind.TIME, moment): 1,
        RecoveryTarget(TargetKind.LSN, lsn, inclusive=False): 1,
        RecoveryTarget(TargetKind.XID, xid, timeline="1"): 2,
        RecoveryTarget(TargetKind.NAME, "it's \\ ä", action=TargetAction.PAUSE): 1,
    }
    for number, (target, rows) in enumerate(wanted.items()):
        directory = lab_directory / f"restored{number}"
        shutil.copytree(base, directory, symlinks=True)
        restore_command = f'cp "{archive}/%f" %p'
        settings = recovery_settings(target, major=cluster.major, restore_command=restore_command)
        settings |= fence_settings(major=cluster.major, socket_directory=str(lab_directory))
        with (directory / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
            file.write(render_settings(settings))
        (directory / "recovery.signal").touch()
        server_user().own(directory)
        restored = run_cluster(Cluster(cluster.installation, directory)).start()
        is_paused = target.action is TargetAction.PAUSE
        wait_for(
            lambda server=restored, paused=is_paused: _has_arrived(server, paused=paused),  # type: ignore[misc]
            f"{target} is reached",
        )
        assert (target, restored.value("SELECT count(*) FROM t")) == (target, rows)
        assert restored.value("SHOW archive_command") == "false"
        restored.stop()


def _has_arrived(server: Cluster, *, paused: bool) -> bool:
    if paused:
        return bool(server.value("SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() END"))
    return not server.value("SELECT pg_is_in_recovery()")
