"""
Recovery targets: where replay stops, how people write it, and the settings that tell the server.

From PostgreSQL 12 on recovery is steered by settings and a signal file; there is no recovery.conf.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from pgkeep.errors import UsageError
from pgkeep.pg.capabilities import Capabilities
from pgkeep.pg.lsn import Lsn, Timeline

MAX_TARGET_NAME_BYTES = 63
_FIRST_NORMAL_XID = 3
_XID_BITS = 32


class TargetKind(enum.Enum):
    """What replay stops at."""

    LATEST = "latest"
    """The end of the WAL."""
    IMMEDIATE = "immediate"
    """As soon as the data is consistent."""
    TIME = "time"
    LSN = "lsn"
    XID = "xid"
    NAME = "name"
    """A restore point, ``pg_create_restore_point``."""


class TargetAction(enum.Enum):
    """What the server does when it has reached the target."""

    PROMOTE = "promote"
    PAUSE = "pause"
    SHUTDOWN = "shutdown"


_VALUE_TYPES: dict[TargetKind, type[object]] = {
    TargetKind.LATEST: type(None),
    TargetKind.IMMEDIATE: type(None),
    TargetKind.TIME: dt.datetime,
    TargetKind.LSN: Lsn,
    TargetKind.XID: int,
    TargetKind.NAME: str,
}


@dataclass(frozen=True, slots=True)
class RecoveryTarget:
    """
    Where replay stops.

    Attributes:
        kind: What it stops at.
        value: An aware datetime, an Lsn, a transaction id, a restore point's name, or None, as *kind* asks.
        inclusive: Whether replay goes just past the target (TIME, LSN, XID) or stops just before it.
        timeline: ``latest``, ``current`` (that of the base backup), or a timeline's number in decimal.
        action: What comes after.
    """

    kind: TargetKind = TargetKind.LATEST
    value: dt.datetime | Lsn | int | str | None = None
    inclusive: bool = True
    timeline: str = "latest"
    action: TargetAction = TargetAction.PROMOTE

    def __post_init__(self) -> None:
        """Raise UsageError for a value that no server would take."""
        if not isinstance(self.value, _VALUE_TYPES[self.kind]):
            raise UsageError(f"recovery target {self.kind.value} cannot be {self.value!r}")
        if self.timeline not in ("latest", "current"):
            check_timeline_number(self.timeline)
        if self.kind is TargetKind.TIME and self.time.utcoffset() is None:
            raise UsageError(f"recovery target time {self.time} has no time zone")
        if self.kind is TargetKind.XID and (not 0 <= self.xid < 1 << 64 or self.xid % (1 << 32) < _FIRST_NORMAL_XID):
            raise UsageError(f"recovery target xid must be a transaction id from {_FIRST_NORMAL_XID}, found {self.xid}")
        if self.kind is TargetKind.NAME:
            size = len(self.name.encode("utf-8", "surrogateescape"))
            if not 0 < size <= MAX_TARGET_NAME_BYTES or "\0" in self.name:
                raise UsageError(
                    f"a restore point's name has 1 to {MAX_TARGET_NAME_BYTES} bytes, "
                    f'found {size} in "{self.name[:MAX_TARGET_NAME_BYTES]}"'
                )

    @property
    def time(self) -> dt.datetime:
        """The moment; only for kind TIME."""
        assert isinstance(self.value, dt.datetime)
        return self.value

    @property
    def lsn(self) -> Lsn:
        """The LSN; only for kind LSN."""
        assert isinstance(self.value, Lsn)
        return self.value

    @property
    def xid(self) -> int:
        """The transaction id, with its epoch when it was given so; only for kind XID."""
        assert isinstance(self.value, int)
        return self.value

    @property
    def name(self) -> str:
        """The restore point's name; only for kind NAME."""
        assert isinstance(self.value, str)
        return self.value

    def __str__(self) -> str:
        if self.kind is TargetKind.TIME:
            return f"time {render_target_time(self.time)}"
        if self.value is None:
            return f"{self.kind.value}"
        return f"{self.kind.value} {self.value}"


def check_timeline_number(text: str) -> Timeline:
    """Return the timeline that *text* names in decimal; raise UsageError for anything else."""
    if re.fullmatch("[1-9][0-9]{0,9}", text) is None or int(text) >= 1 << 32:
        raise UsageError(f'target timeline must be latest, current or a number, found "{text}"')
    return Timeline(int(text))


def parse_target(
    *,
    time: str = "",
    lsn: str = "",
    xid: str = "",
    name: str = "",
    immediate: bool = False,
    inclusive: bool = True,
    timeline: str = "latest",
    action: TargetAction = TargetAction.PROMOTE,
    local_zone: dt.tzinfo,
    now: dt.datetime,
) -> RecoveryTarget:
    """
    Return the target that a person asked for; empty texts were not given, and none at all means the end of the WAL.

    Raises:
        UsageError: More than one target is given, or one cannot be read.
    """
    given = {"time": time, "lsn": lsn, "xid": xid, "name": name, "immediate": "yes" if immediate else ""}
    named = [key for key, text in given.items() if text]
    if len(named) > 1:
        raise UsageError(f"more than one recovery target: {', '.join(named)}", hint="give exactly one of them")
    kind, value = TargetKind.LATEST, None
    if named:
        kind = TargetKind(named[0])
        value = _parse_value(kind, given[named[0]], local_zone=local_zone, now=now)
    return RecoveryTarget(kind, value, inclusive=inclusive, timeline=timeline, action=action)


def _parse_value(
    kind: TargetKind, text: str, *, local_zone: dt.tzinfo, now: dt.datetime
) -> dt.datetime | Lsn | int | str | None:
    if kind is TargetKind.TIME:
        return parse_target_time(text, local_zone=local_zone, now=now)
    if kind is TargetKind.LSN:
        return Lsn.parse(text)
    if kind is TargetKind.XID:
        if re.fullmatch("[0-9]{1,20}", text.strip()) is None:
            raise UsageError(f'recovery target xid must be a transaction id, found "{text}"')
        return int(text)
    return text if kind is TargetKind.NAME else None


_MOMENT = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})(?:[Tt]|\s+)"
    r"(?P<hour>\d{2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"\s*(?P<zone>[A-Za-z+-].*)?",
    re.ASCII,
)
_BASIC_MOMENT = re.compile(
    r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})[Tt]"
    r"(?P<hour>\d{2})(?P<minute>\d{2})(?:(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"\s*(?P<zone>[A-Za-z+-].*)?",
    re.ASCII,
)
_OFFSET = re.compile(r"([+-])(\d{2})(?::?(\d{2}))?", re.ASCII)
_ZONE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+/-]*", re.ASCII)
_AGO = re.compile(r"(\d{1,9})\s*(s|sec|seconds?|min|minutes?|h|hours?|d|days?)\s+ago", re.ASCII)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_OFFSET_MINUTES = 16 * 60


def parse_target_time(text: str, *, local_zone: dt.tzinfo, now: dt.datetime) -> dt.datetime:
    """
    Return the moment that *text* names, aware.

    Understood are ISO-8601 with ``T`` or a blank, seconds and their fraction optional, followed by ``Z``, a numeric
    offset (``+02``, ``+0200``, ``+02:00``), a zone's name (``Europe/Berlin``), or nothing, which means *local_zone*;
    the form of a backup id (``20261120T204800Z``); and ``10 min ago`` (s, min, h, d), counted from *now*, aware.
    Digits beyond microseconds are dropped: PostgreSQL has none.

    Raises:
        UsageError: *text* is none of these; there is no such day or hour; the local time happened twice or never.
    """
    stripped = text.strip()
    ago = _AGO.fullmatch(stripped.lower())
    if ago is not None:
        try:
            return now - dt.timedelta(seconds=int(ago[1]) * _UNIT_SECONDS[ago[2][0]])
        except OverflowError:
            raise UsageError(f'target time is before all calendars: "{text}"') from None
    match = _MOMENT.fullmatch(stripped) or _BASIC_MOMENT.fullmatch(stripped)
    if match is None:
        raise UsageError(
            f'not a date and time: "{text}"', hint="write it like 2026-11-20 20:48:00+01:00 or 2026-11-20T19:48:00Z"
        )
    try:
        naive = dt.datetime(
            int(match["year"]),
            int(match["month"]),
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            int(match["second"] or 0),
            int((match["fraction"] or "0").ljust(6, "0")[:6]),
            tzinfo=dt.UTC,
        ).replace(tzinfo=None)
    except ValueError as error:
        raise UsageError(f'no such date and time: "{text}": {error}') from None
    zone = _parse_zone(match["zone"], text) if match["zone"] else local_zone
    try:
        return _place(naive, zone)
    except OverflowError:
        raise UsageError(f'no such date and time: "{text}": it is outside of the years 1 to 9999') from None


def _parse_zone(name: str, text: str) -> dt.tzinfo:
    if name in ("Z", "z"):
        return dt.UTC
    offset = _OFFSET.fullmatch(name)
    if offset is not None:
        minutes = int(offset[2]) * 60 + int(offset[3] or 0)
        if int(offset[3] or 0) > 59 or minutes >= _MAX_OFFSET_MINUTES:
            raise UsageError(f'no such offset from UTC: "{name}" in "{text}"')
        return dt.timezone(dt.timedelta(minutes=-minutes if offset[1] == "-" else minutes))
    if _ZONE_NAME.fullmatch(name) is not None:
        # ZoneInfoNotFoundError is a KeyError; a directory of zones, such as Europe, is an OSError.
        with contextlib.suppress(KeyError, ValueError, OSError):
            return ZoneInfo(name)
    raise UsageError(f'unknown time zone "{name}" in "{text}"', hint="write the offset from UTC in digits: +01:00")


def _place(naive: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """Return *naive* in *zone*; raise UsageError when it happened there twice or never."""
    first, second = (naive.replace(tzinfo=zone, fold=fold) for fold in (0, 1))
    before, after = first.utcoffset(), second.utcoffset()
    assert before is not None
    assert after is not None
    if before != after:
        # By PEP 495 fold 0 takes the offset before the change: clocks put back have the larger one before.
        what = "happened twice" if before > after else "was skipped"
        candidates = [moment.astimezone(dt.UTC).astimezone(zone).isoformat(sep=" ") for moment in (first, second)]
        raise UsageError(
            f"local time {naive.isoformat(sep=' ')} {what} in {zone}: it is {candidates[0]} or {candidates[1]}",
            hint="write the offset that you mean",
        )
    # The same moment with a fixed offset, so that nothing downstream depends on a zone's rules.
    first.astimezone(dt.UTC)
    return naive.replace(tzinfo=dt.UTC if not before else dt.timezone(before))


def render_target_time(moment: dt.datetime) -> str:
    """Return *moment* as the server takes it in every version: numeric offset, microseconds, no ``T`` and no ``Z``."""
    offset = moment.utcoffset()
    if offset is None or offset.seconds % 60 or offset.microseconds:
        moment = moment.astimezone(dt.UTC)
    return moment.isoformat(sep=" ", timespec="microseconds")


_TARGET_SETTINGS = (
    "recovery_target",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_xid",
    "recovery_target_name",
)
_STALE_SETTINGS = {
    "primary_conninfo": "",
    "primary_slot_name": "",
    "archive_cleanup_command": "",
    "recovery_end_command": "",
    "recovery_min_apply_delay": "0",
}


def recovery_settings(
    target: RecoveryTarget, *, major: int, restore_command: str, hot_standby: bool = True
) -> dict[str, str]:
    """
    Return the settings that make a server with ``recovery.signal`` replay to *target*, in the order to write them.

    What an earlier recovery or a standby's life may have left behind is set back: a second target is fatal, a delay
    would hold up replay, a clean-up command would delete from somebody's archive.

    Args:
        target: Where to stop.
        major: The server's major version.
        restore_command: As the server runs it, with ``%f`` and ``%p``.
        hot_standby: Whether the server answers queries while it replays; a pause at the target needs it.
    """
    settings = dict(_STALE_SETTINGS)
    if Capabilities(major * 10000).has_promote_trigger_file:
        settings["promote_trigger_file"] = ""
    settings |= {
        "restore_command": restore_command,
        "hot_standby": "on" if hot_standby or target.action is TargetAction.PAUSE else "off",
        "recovery_target_timeline": target.timeline,
        "recovery_target_inclusive": "on" if target.inclusive else "off",
        "recovery_target_action": target.action.value,
    }
    # The server reads these in order and calls a target set before an empty one a second target: empty ones first.
    settings |= dict.fromkeys(_TARGET_SETTINGS, "")
    chosen = _target_setting(target)
    if chosen is not None:
        name, value = chosen
        del settings[name]
        settings[name] = value
    return settings


def _target_setting(target: RecoveryTarget) -> tuple[str, str] | None:
    match target.kind:
        case TargetKind.LATEST:
            return None
        case TargetKind.IMMEDIATE:
            return "recovery_target", "immediate"
        case TargetKind.TIME:
            return "recovery_target_time", render_target_time(target.time)
        case TargetKind.LSN:
            return "recovery_target_lsn", str(target.lsn)
        case TargetKind.XID:
            # A 64-bit id, as txid_current() gives it, is the 32-bit id and its epoch.
            return "recovery_target_xid", str(target.xid % (1 << _XID_BITS))
        case TargetKind.NAME:
            return "recovery_target_name", target.name


def standby_settings(
    *, major: int, primary_conninfo: str, primary_slot_name: str = "", restore_command: str = ""
) -> dict[str, str]:
    """Return the settings that make a server with ``standby.signal`` follow a primary and its newest timeline."""
    settings = dict(_STALE_SETTINGS)
    if Capabilities(major * 10000).has_promote_trigger_file:
        settings["promote_trigger_file"] = ""
    settings |= {
        "primary_conninfo": primary_conninfo,
        "primary_slot_name": primary_slot_name,
        "restore_command": restore_command,
        "hot_standby": "on",
        "recovery_target_timeline": "latest",
    }
    return settings | dict.fromkeys(_TARGET_SETTINGS, "")


def lasting_standby_settings(primary_conninfo: str) -> dict[str, str]:
    """Return what a standby goes on with when the WAL of its restore is replayed: none of it is in force for ever."""
    settings = {"primary_conninfo": primary_conninfo, "primary_slot_name": "", "recovery_target_timeline": "latest"}
    return settings | dict.fromkeys(_TARGET_SETTINGS, "")


def isolation_settings(*, major: int) -> dict[str, str]:
    """Return the least that keeps a server from the old world, for a file: whoever starts it finds it shut off."""
    settings = {
        "listen_addresses": "",
        "max_logical_replication_workers": "0",
        # A failing command makes the server keep the segments until the real one is back.
        "archive_command": "false",
    }
    if Capabilities(major * 10000).has_archive_library:
        settings["archive_library"] = ""
    return settings


def fence_settings(*, major: int, socket_directory: str) -> dict[str, str]:
    """
    Return the settings under which a restored server harms nobody until it is released.

    It listens on a socket in *socket_directory* only, starts no logical replication, keeps its WAL instead of sending
    it to the old archive, and waits for no synchronous standby. What the cluster wants of every session, such as a
    library that is not on this host, must not shut pgkeep out.
    """
    settings = isolation_settings(major=major) | {
        "unix_socket_directories": socket_directory,
        "synchronous_standby_names": "",
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "default_transaction_read_only": "off",
        # A page of the size that the old host had may not be there; the server that stays asks for what it wants.
        "huge_pages": "try",
    }
    capabilities = Capabilities(major * 10000)
    if capabilities.has_archive_library:
        settings["archive_library"] = ""
    if capabilities.has_failover_slots:
        settings["sync_replication_slots"] = "off"
    if capabilities.has_event_trigger_switch:
        # A trigger on login would run in our sessions, and might keep them out.
        settings["event_triggers"] = "off"
    return settings


RECOVERY_SETTING_NAMES = frozenset(
    {
        *_STALE_SETTINGS,
        *_TARGET_SETTINGS,
        "promote_trigger_file",
        "restore_command",
        "hot_standby",
        "recovery_target_timeline",
        "recovery_target_inclusive",
        "recovery_target_action",
    }
)
"""The names of all settings that ``recovery_settings`` and ``standby_settings`` may write."""

_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?", re.ASCII)
_ESCAPES = {"'": "''", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def render_setting(name: str, value: str) -> str:
    """
    Return the line of a configuration file that sets *name* to *value*, with its line end.

    Raises:
        UsageError: *name* is not one, or *value* holds a zero byte.

    Source:
        PostgreSQL ``src/backend/utils/misc/guc-file.l``, ``DeescapeQuotedString``.
    """
    if _SETTING_NAME.fullmatch(name) is None:
        raise UsageError(f'not the name of a setting: "{name}"')
    if "\0" in value:
        raise UsageError(f"the value of {name} holds a zero byte")
    return f"{name} = '{''.join(_ESCAPES.get(letter, letter) for letter in value)}'\n"


def render_settings(settings: Mapping[str, str]) -> str:
    """Return the lines of a configuration file for *settings*, in their order."""
    return "".join(render_setting(name, value) for name, value in settings.items())
