"""One parameter: what it is called, what it may hold, where it may be given. Data, and no behaviour beyond naming."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DUMP_MODES = ("dump", "parallel_dump")
PHYSICAL_MODES = ("pitr", "pitr_block")
WAL_MODES = ("pitr", "pitr_block", "cdp")
MODES = ("dump", "parallel_dump", "pitr", "pitr_block", "cdp")

VERBS = (
    "init",
    "check",
    "backup",
    "restore",
    "finish",
    "rollback",
    "info",
    "verify",
    "expire",
    "merge",
    "drill",
    "receive",
    "archive-push",
    "archive-get",
    "grants",
    "demo",
)


class Kind(enum.Enum):
    """What the text of a value stands for; the value is the name that the reference page prints."""

    BOOL = "yes or no"
    INTEGER = "integer"
    SIZE = "size"
    """Parsed to bytes."""
    DURATION = "duration"
    """Parsed to seconds."""
    CHOICE = "choice"
    TEXT = "text"
    TIME = "time"
    """Kept as text: reading it needs the zone and the moment of the job."""
    TIMEZONE = "time zone"
    PATH = "path"
    """Absolute."""
    LIST = "list"
    """Parsed to a tuple of texts."""
    WORDS = "words"
    """Split as a shell would; parsed to a tuple of texts."""
    MAP = "map"
    """``key:/path`` elements; parsed to a tuple of pairs."""


class Place(enum.Flag):
    """Where a parameter may be given."""

    PLUGIN_LINE = enum.auto()
    CONFIG = enum.auto()
    CLI = enum.auto()
    RESTORE = enum.auto()
    """Restore options: Bacula's menu and ``where=``, which the catalog keeps; and a restore profile."""
    PROFILE = enum.auto()
    """A restore profile only: what must not be in a catalog."""


class Group(enum.Enum):
    """A chapter of the reference page; the value is its heading."""

    GENERAL = "General"
    CONNECTION = "Connection"
    DUMP = "Logical dumps"
    PHYSICAL = "Physical backups and WAL"
    REPLICATION = "Standbys and replication state"
    VAULT = "Vault"
    RESTORE = "Restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """
    One row of the table.

    Attributes:
        name: Canonical name, lower case with underscores.
        kind: How its text is read.
        group: Chapter of the reference page; CONNECTION also names the section of the configuration file.
        help: One or more sentences for the manual; the first one is shown by ``--help``.
        default: Typed; None when nothing is set.
        default_text: What happens when it is not set, for defaults that are not a constant.
        minimum: Inclusive; bytes, seconds or units by kind; for LIST the smallest number of elements.
        maximum: Inclusive; for TEXT the largest length in UTF-8 bytes.
        unit: What an INTEGER counts, for the manual; for DURATION the unit of a number without one, seconds when empty.
        choices: Lower case; for TEXT and PATH, words accepted beside what the kind accepts.
        synonyms: Other spellings of choices.
        pattern: A regular expression that the whole text must match.
        pattern_text: The same in words: ``must be ...``.
        aliases: Other names of the same parameter.
        modes: Modes in which it has a meaning; all of them when empty.
        places: Where it may be given.
        verbs: Verbs of the command line that take it.
        flags: Names on the command line, the one to show first; made from the name when empty.
        menu: Number in Bacula's restore menu, 1 to 64; fixed for ever, since scripts address items by number.
        menu_name: Its name there, when that differs.
        example: A value as one would write it.
        since: The pgkeep version that brought it.
        is_secret: Never printed, logged or put into an error.
    """

    name: str
    kind: Kind
    group: Group
    help: str
    default: Any = None
    default_text: str = ""
    minimum: int | None = None
    maximum: int | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    pattern: str = ""
    pattern_text: str = ""
    aliases: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    places: Place
    verbs: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    menu: int | None = None
    menu_name: str = ""
    example: str = ""
    since: str = "0.1"
    is_secret: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The canonical name and every alias."""
        return (self.name, *self.aliases)

    @property
    def cli_flags(self) -> tuple[str, ...]:
        """Its names on the command line, the one to show first; empty when it has none."""
        if Place.CLI not in self.places:
            return ()
        return self.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def summary(self) -> str:
        """The first sentence of the help."""
        return self.help.split(". ")[0].rstrip(".") + "."

    @property
    def section(self) -> str:
        """The section of the configuration file that suits it; ``[cluster:<id>]`` takes all."""
        return "connection" if self.group is Group.CONNECTION else "options"
