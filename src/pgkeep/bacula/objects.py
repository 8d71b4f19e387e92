"""
What describes a backup to the Director: the restore object, the plugin objects, the table of restore options.

The restore object holds the record's head, without its list of files, so that a restore can judge the target before
the first byte arrives. It must be small: Bacula keeps at most 64 KiB of all of them together. What does not fit is
trimmed in the order of ``TRIMMED``, and the head then names it in ``details["trimmed"]``.

Where there is room it holds the heads of the backups that it builds on, too. A VirtualFull keeps the objects of its
jobs, but one that is made from a VirtualFull loses those of that: Bacula looks for them by numbers of the first jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from pgkeep.errors import FormatError
from pgkeep.settings import Parameter, render_value, restore_menu
from pgkeep.streams.record import RECORD_FORMAT, RecordHead, RecordTail

RESTORE_OBJECT = "pgkeep"
OBJECT_BESIDE = "beside"
"""What the bridge calls the restore object of another Plugin line of the same restore."""
OPTIONS_OBJECT = "RestoreOptions"

MAX_OBJECTS_BYTES = 65_536 - 4_096
"""What the objects of all Plugin lines of a job may take; the rest is room for the lines themselves."""

MAX_NAME_BYTES = 120
"""Texts of a plugin object are cut to this: the catalog keeps little more."""

TRIMMED = (
    "databases",
    "details.databases",
    "warnings",
    "damaged",
    "replication",
    "backup_label",
    "tablespace_map",
    "settings",
    "history",
    "libraries",
)
"""What is left out of the restore object, one after the other, until it fits; all of it stands in the record."""

TRIMMED_BELOW = TRIMMED[:5]
"""What the heads of other backups always lack."""


class HeadBelow(msgspec.Struct, kw_only=True):
    """What a backup builds on."""

    head: RecordHead
    tail: RecordTail


class HeadObject(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The content of a restore object."""

    format: int
    head: RecordHead
    tail: RecordTail
    below: list[HeadBelow] = []


_decoder = msgspec.json.Decoder(HeadObject)


def render_head_object(
    head: RecordHead, tail: RecordTail, *, lines: int = 1, below: Iterable[tuple[RecordHead, RecordTail]] = ()
) -> bytes:
    """
    Return the restore object of a backup.

    Args:
        head: The record's head.
        tail: The record's tail.
        lines: How many Plugin lines of the job share the room.
        below: Head and tail of each backup with files that it builds on, the newest first; as many as find room.
    """
    limit = MAX_OBJECTS_BYTES // max(1, lines)
    trimmed: list[str] = []
    rest = iter(TRIMMED)
    while True:
        content = msgspec.json.encode(HeadObject(format=RECORD_FORMAT, head=head, tail=tail))
        if len(content) <= limit:
            return _with_below(content, head, tail, limit, below)
        name = next(rest, None)
        if name is None:
            raise FormatError(
                f"the head of backup {head.backup_id} takes {len(content)} bytes, {limit} are left for it"
            )
        trimmed.append(name)
        head = _without(head, name, trimmed)


def _with_below(
    alone: bytes,
    head: RecordHead,
    tail: RecordTail,
    limit: int,
    below: Iterable[tuple[RecordHead, RecordTail]],
) -> bytes:
    """Return the object that is *alone* without those *below*, with as many of them as have room within *limit*."""
    found: list[HeadBelow] = []
    room = limit - len(alone) - len(b',"below":[]')
    for one, its_tail in below:
        lean = HeadBelow(head=_lean(one), tail=its_tail)
        room -= len(msgspec.json.encode(lean)) + 1
        if room < 0:
            break
        found.append(lean)
    return msgspec.json.encode(HeadObject(format=RECORD_FORMAT, head=head, tail=tail, below=found))


def _lean(head: RecordHead) -> RecordHead:
    """Return *head* without what grows with the cluster and is not asked for before the record itself has come."""
    trimmed = list(head.details.get("trimmed", []))
    for name in TRIMMED_BELOW:
        if name not in trimmed:
            trimmed.append(name)
            head = _without(head, name, trimmed)
    return head


def parse_head_object(content: bytes) -> tuple[RecordHead, RecordTail]:
    """Return head and tail of a restore object; raise FormatError when it is none that this version reads."""
    found = _parsed(content)
    return found.head, found.tail


def parse_heads_below(content: bytes) -> list[tuple[RecordHead, RecordTail]]:
    """Return head and tail of each backup below that of a restore object, as far as the object holds them."""
    return [(one.head, one.tail) for one in _parsed(content).below]


def _parsed(content: bytes) -> HeadObject:
    try:
        found = _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"the restore object is damaged: {error}") from error
    if found.format != RECORD_FORMAT:
        raise FormatError(f"the restore object has format {found.format}, this version reads {RECORD_FORMAT}")
    return found


def _without(head: RecordHead, name: str, trimmed: Iterable[str]) -> RecordHead:
    details = {**head.details, "trimmed": list(trimmed)}
    if name == "details.databases":
        details.pop("databases", None)
        return msgspec.structs.replace(head, details=details)
    empty = None if name == "replication" else type(getattr(head, name))()
    return msgspec.structs.replace(head, details=details, **{name: empty})


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginObject:
    """
    One thing that a user can choose to restore.

    Attributes:
        path: Name of a file of the job, with the slash before it; a directory's ends with one.
        category: What it is, for the console.
        name: What it is called.
        source: Which server it comes from.
        uuid: The system identifier.
        size: Bytes.
        status: ``OK``, ``WARNING``, ``ERROR`` or ``FATAL``.
    """

    path: str
    category: str
    name: str
    source: str
    uuid: str
    size: int
    status: str = "OK"

    def commands(self) -> list[str]:
        """Return the commands that announce it. No text is empty: the catalog would take the next one for it."""
        return [
            f"PLUGINOBJ:{self.path}",
            f"PLUGINOBJ_CAT:{self.category}",
            "PLUGINOBJ_TYPE:PostgreSQL",
            f"PLUGINOBJ_NAME:{_cut(self.name)}",
            f"PLUGINOBJ_SRC:{_cut(self.source)}",
            f"PLUGINOBJ_UUID:{_cut(self.uuid)}",
            f"PLUGINOBJ_SIZE:{max(0, self.size)}",
            "PLUGINOBJ_COUNT:1",
            f"PLUGINOBJ_STATUS:{self.status}",
        ]


def plugin_objects(head: RecordHead, tail: RecordTail, *, source: str, sizes: dict[str, int]) -> list[PluginObject]:
    """
    Return what the backup offers to restore: each database of a dump, else the cluster.

    Args:
        head: The record's head.
        tail: Its tail.
        source: Where the server is.
        sizes: Virtual path to bytes, for the dumps.
    """
    uuid = head.system_identifier
    status = "WARNING" if head.warnings or head.is_damaged else "OK"
    if head.mode.endswith("dump"):
        is_directory = head.details.get("format") in ("directory", "parallel", "parallel-2")
        return [
            PluginObject(
                path=f"/{database.path}/" if is_directory else f"/{database.path}",
                category="Database",
                name=database.name,
                source=source,
                uuid=uuid,
                size=sizes.get(database.path, database.size_bytes),
                status=status,
            )
            for database in head.databases
        ]
    root = str(head.details.get("root", ""))
    return [
        PluginObject(
            path=f"/{root}/",
            category="Cluster",
            name=head.cluster,
            source=source,
            uuid=uuid,
            size=tail.bytes,
            status=status,
        )
    ]


def restore_options_text() -> str:
    """
    Return the table of restore options, as Bacula's menu takes it.

    Its order is that of the menu's numbers, which only ever grow: scripts address the items by number. Everything is a
    text, because the console mistreats the other types.
    """
    lines = ["# Plugin configuration file", "# Version 1"]
    for parameter in restore_menu():
        lines.append(f'OptPrompt="{_escaped(parameter.summary.replace("`", ""))}"')
        lines.append(f'OptDefault="{_escaped(_default(parameter))}"')
        lines.append(f"{parameter.menu_name or parameter.name}=@STR@")
        lines.append("")
    return "\n".join(lines) + "\n"


def _default(parameter: Parameter) -> str:
    if parameter.default_text:
        return parameter.default_text.replace("`", "")
    return render_value(parameter, parameter.default) or "none"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _cut(text: str) -> str:
    encoded = text.encode("utf-8", "replace")[:MAX_NAME_BYTES]
    return encoded.decode("utf-8", "ignore").replace("\n", " ") or "none"
