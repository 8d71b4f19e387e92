"""
The configuration file and the restore profiles: sections of ``name = value`` lines.

A line that begins with ``#`` or ``;`` is a comment; there are none behind a value, since a password may hold either
sign. A value in double quotes keeps its blanks; inside quotes a backslash takes the next character literally. There
are no continuation lines and no interpolation.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field

from pgkeep.errors import SettingsError
from pgkeep.settings.assignment import Assignment, Origin, Rank, carries_password
from pgkeep.settings.parameter import Place
from pgkeep.settings.table import find

DEFAULT_PATH = "/etc/pgkeep/pgkeep.conf"
MAX_BYTES = 1 << 20

_SECTION = re.compile(r"\[\s*([^\]\s]+)\s*\]")
_CLUSTER = re.compile(r"cluster:([A-Za-z0-9_][A-Za-z0-9_.-]{0,62})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """
    A configuration file, taken apart; names and values are not judged yet.

    Attributes:
        path: Where it was read from.
        shared: Assignments of [connection] and [options], in order.
        by_cluster: Cluster name to the assignments of its section.
        profile: Assignments of [restore]; only a restore profile has them.
    """

    path: str
    shared: list[Assignment] = field(default_factory=list)
    by_cluster: dict[str, list[Assignment]] = field(default_factory=dict)
    profile: list[Assignment] = field(default_factory=list)

    def assignments(self, cluster: str | None) -> list[Assignment]:
        """Return what holds for *cluster*, which need not have a section."""
        return [*self.shared, *self.profile, *self.by_cluster.get(cluster or "", [])]


def read_config(path: str | None) -> ConfigFile:
    """
    Return the configuration file at *path*; None is the default file, which may be absent.

    Raises:
        SettingsError: It is absent, malformed, writable by group or others, or readable by others with a password.
    """
    if path is None and not os.path.lexists(DEFAULT_PATH):
        return ConfigFile(DEFAULT_PATH)
    return parse_config(*_read(path or DEFAULT_PATH))


def read_profile(path: str) -> ConfigFile:
    """Return the restore profile at *path*: a file with one section, [restore], protected as a configuration file."""
    text, path, file_mode = _read(path)
    return parse_config(text, path, file_mode, is_profile=True)


def profile_path(config: ConfigFile, name: str) -> str:
    """Return the path of the restore profile *name*, a value of ``profile``: beside the configuration file."""
    return os.path.join(os.path.dirname(config.path), "restore.d", f"{name}.conf")


def parse_config(text: str, path: str, file_mode: int = 0o600, *, is_profile: bool = False) -> ConfigFile:
    """
    Return *text* taken apart.

    Args:
        text: Content of the file.
        path: For messages.
        file_mode: Its permission bits.
        is_profile: Expect [restore] in place of [connection], [options] and [cluster:<id>].
    """
    config = ConfigFile(path)
    seen: dict[str, int] = {}
    target: list[Assignment] | None = None
    rank, place = Rank.OPTIONS, Place.CONFIG
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = line.strip()
        where = f"in {path}, line {number}"
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = _section(line, where, is_profile=is_profile)
            if section in seen:
                raise SettingsError(f"section [{section}] stands twice {where}: first at line {seen[section]}")
            seen[section] = number
            target, rank, place = _target(config, section)
            continue
        if target is None:
            raise SettingsError(f"a section must come before the first parameter {where}")
        name, value = _name_and_value(line, where)
        target.append(Assignment(name, value, Origin(rank, place, where)))
    _refuse_exposed(config, file_mode)
    return config


def _section(line: str, where: str, *, is_profile: bool) -> str:
    match = _SECTION.fullmatch(line)
    section = match[1] if match else line
    known = ("restore",) if is_profile else ("connection", "options")
    if match is None or not (section in known or (not is_profile and _CLUSTER.fullmatch(section))):
        expected = "[restore]" if is_profile else "[connection], [options] or [cluster:<id>]"
        raise SettingsError(f"section must be {expected}, found {line} {where}")
    return section


def _target(config: ConfigFile, section: str) -> tuple[list[Assignment], Rank, Place]:
    if section == "restore":
        return config.profile, Rank.PROFILE, Place.RESTORE | Place.PROFILE
    if section.startswith("cluster:"):
        return config.by_cluster.setdefault(section.removeprefix("cluster:"), []), Rank.CLUSTER, Place.CONFIG
    return config.shared, Rank.OPTIONS, Place.CONFIG


def _name_and_value(line: str, where: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    name, value = name.strip(), value.strip()
    # The line is never shown: it may be a part of a password.
    if not equals or _NAME.fullmatch(name) is None:
        raise SettingsError(f"line must be a section, a comment or name = value {where}")
    if value.startswith('"'):
        match = _QUOTED.fullmatch(value)
        if match is None:
            raise SettingsError(f"value of {name} must end with the double quote that it begins with {where}")
        value = _ESCAPE.sub(r"\1", match[1])
    return name, value


def _refuse_exposed(config: ConfigFile, file_mode: int) -> None:
    """Raise SettingsError when *file_mode* lets others change the file, or read a password in it."""
    if file_mode & 0o022:
        raise SettingsError(
            f"{config.path} must not be writable by group or others, found mode {file_mode:04o}",
            hint=f'run "chmod go-w {config.path}"',
        )
    sections = [config.shared, config.profile, *config.by_cluster.values()]
    for assignment in (assignment for section in sections for assignment in section):
        parameter = find(assignment.name)
        if file_mode & 0o004 and parameter is not None and carries_password(parameter, assignment.text):
            raise SettingsError(
                f"{config.path} holds a password and must not be readable by others, found mode {file_mode:04o}",
                hint=f'run "chmod o-r {config.path}", or move the password into a pgpass file',
            )


def _read(path: str) -> tuple[str, str, int]:
    """Return content, path and permission bits of the regular file at *path*, the bits being those of what was read."""
    try:
        # Not blocking: a FIFO in this place must be an error, not a wait.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SettingsError(f"{path} must be a regular file")
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SettingsError(f"cannot read {path}: {reason}") from error
    if len(content) > MAX_BYTES:
        raise SettingsError(f"{path} must have at most {MAX_BYTES} bytes")
    try:
        return content.decode(), path, stat.S_IMODE(status.st_mode)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} must be UTF-8, found another byte at offset {error.start}") from error
