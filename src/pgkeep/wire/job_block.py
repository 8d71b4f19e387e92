"""The blocks that open a conversation: who speaks, which job it is, and what the Plugin line says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pgkeep.errors import WireError

PLUGIN_NAME = "pgkeep"
EXTENDED_API = "1001"
"""pgkeep's extensions, version 1; any other number is plain PTCOMM."""

HELLO_ANSWER = "Hello Bacula"

_HELLO = re.compile(r"Hello (\S+) (\S+)")
_LINES = re.compile(r"([1-9][0-9]{0,4}) ([1-9][0-9]{0,4})")
_MAX_DIGITS = 19
_FLAGS = {"0": False, "1": True}


@dataclass(frozen=True, slots=True)
class Hello:
    """The bridge's first word."""

    plugin: str
    api: str

    @property
    def is_extended(self) -> bool:
        """Whether pgkeep's own protocol is asked for."""
        return self.plugin == PLUGIN_NAME and self.api == EXTENDED_API


def parse_hello(text: str) -> Hello:
    """Return what ``Hello <plugin> <api>`` says."""
    found = _HELLO.fullmatch(text)
    if found is None:
        raise WireError(f'the conversation opens with "Hello <plugin> <api>", found "{text[:80]}"')
    return Hello(found[1], found[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class JobBlock:
    """
    What the Director and the daemon say of a job; keys that are not known are passed over.

    Attributes:
        name: The unique name of the job.
        job_id: 0 in a console's session.
        type: ``B``, ``R``, or ``E`` for estimate, listing and query.
        level: ``F``, ``D``, ``I``; empty where there is none.
        since: Seconds since the epoch; 0 where there is none.
        where: Where a restore goes; None when the key did not come, which a restore by a regular expression does.
        regex_where: The expression; None when the key did not come.
        replace: ``a``, ``w``, ``o``, ``n``; empty when the key did not come.
        previous: The unique name of the job that this one builds on; empty for none.
        has_previous: Whether the key came: plain bridges often leave it out.
        is_accurate: Whether the catalog's list of files can be asked.
        fd_name: The daemon.
        client: The client, as the Director calls it.
        fd_version: The daemon's version.
        lines: How many of pgkeep's lines the FileSet has.
        line: Which of them this is, from 1.
        run: Tells this run of the job from an earlier one of the same name, which Bacula called incomplete; 0 when the
            key did not come.
        ring: Descriptor, number and size of the slots, as text; empty for no ring.
        working_directory: The daemon's.
    """

    name: str = ""
    job_id: int = 0
    type: str = ""
    level: str = ""
    since: int = 0
    where: str | None = None
    regex_where: str | None = None
    replace: str = ""
    previous: str = ""
    has_previous: bool = False
    is_accurate: bool = False
    fd_name: str = ""
    client: str = ""
    fd_version: str = ""
    lines: int = 1
    line: int = 1
    run: int = 0
    ring: str = ""
    working_directory: str = ""


def parse_job_block(lines: Iterable[str]) -> JobBlock:
    """Return what *lines*, ``key=value`` each, say; raise WireError for a value that makes no sense."""
    keys: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise WireError(f'a line of the Job block is "key=value", found "{line[:80]}"')
        if key in keys and keys[key] != value:
            raise WireError(f'the Job block says {key} twice, "{keys[key][:80]}" and "{value[:80]}"')
        keys[key] = value
    if "Name" not in keys or "Type" not in keys:
        missing = "Name" if "Name" not in keys else "Type"
        raise WireError(f"the Job block lacks the key {missing}")
    if keys["Type"] not in ("B", "R", "E"):
        raise WireError(f'the job\'s Type is B, R or E, found "{keys["Type"][:80]}"')
    if keys.get("Level", "") not in ("", "F", "D", "I"):
        raise WireError(f'the job\'s Level is F, D or I, found "{keys["Level"][:80]}"')
    if keys.get("Replace", "") not in ("", "a", "w", "o", "n"):
        raise WireError(f'Replace is one of a, w, o, n, found "{keys["Replace"][:80]}"')
    found = _LINES.fullmatch(keys.get("Lines", "1 1"))
    if found is None or int(found[2]) > int(found[1]):
        raise WireError(f'Lines is "<number> <index>", found "{keys["Lines"][:80]}"')
    accurate = keys.get("Accurate", "0")
    if accurate not in _FLAGS:
        raise WireError(f'Accurate is 0 or 1, found "{accurate[:80]}"')
    return JobBlock(
        name=_safe_name(keys["Name"]),
        job_id=_number(keys, "JobID"),
        type=keys["Type"],
        level=keys.get("Level", ""),
        since=_number(keys, "Since"),
        where=keys.get("Where"),
        regex_where=keys.get("RegexWhere"),
        replace=keys.get("Replace", ""),
        previous=_safe_name(keys.get("PrevJobName", "")),
        has_previous="PrevJobName" in keys,
        is_accurate=_FLAGS[accurate],
        fd_name=keys.get("FDName", ""),
        client=keys.get("ClientName", ""),
        fd_version=keys.get("FDVersion", ""),
        lines=int(found[1]),
        line=int(found[2]),
        run=_number(keys, "Run"),
        ring=keys.get("Ring", ""),
        working_directory=keys.get("WorkingDir", ""),
    )


def _number(keys: dict[str, str], key: str) -> int:
    value = keys.get(key, "0")
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS):
        raise WireError(f'{key} is a number, found "{value[:80]}"')
    return int(value)


def _safe_name(name: str) -> str:
    # Unique job names become names of files.
    if "/" in name or "\0" in name or name in (".", "..") or len(name) > 200:
        raise WireError(f'not the name of a job: "{name[:80]}"')
    return name
