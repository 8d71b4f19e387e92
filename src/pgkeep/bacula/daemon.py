"""
Bacula's File Daemon on this machine: where its programs and files are, what its configuration says, whom it runs as.

Two layouts are known, Debian's and that of bacula.org; ``bacula-fd.conf`` may be anywhere when it is named.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import SettingsError, UsageError

PLUGIN = "pgkeep-fd.so"
PLUGIN_CONFIG = "pgkeep-fd.conf"

_MOST_INCLUDES = 20


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a package of Bacula keeps things."""

    name: str
    program: Path
    configuration: Path
    plugin_directory: Path


LAYOUTS = (
    Layout(
        "bacula.org",
        Path("/opt/bacula/bin/bacula-fd"),
        Path("/opt/bacula/etc/bacula-fd.conf"),
        Path("/opt/bacula/plugins"),
    ),
    Layout("Debian", Path("/usr/sbin/bacula-fd"), Path("/etc/bacula/bacula-fd.conf"), Path("/usr/lib/bacula")),
    Layout("source", Path("/sbin/bacula-fd"), Path("/etc/bacula/bacula-fd.conf"), Path("/usr/lib/bacula/plugins")),
)


@dataclass(frozen=True, slots=True)
class FileDaemon:
    """
    One File Daemon.

    Attributes:
        configuration: Its ``bacula-fd.conf``.
        plugin_directory: Where it looks for plugins, or would if it were told to.
        is_told: Whether its configuration names that directory.
        program: Its program; None when it is not known.
        uid: Whom it runs as.
        pid: Its process; None when it does not run.
    """

    configuration: Path
    plugin_directory: Path
    is_told: bool
    program: Path | None
    uid: int
    pid: int | None

    @property
    def user(self) -> str:
        """Name of the account that it runs as."""
        return account_name(self.uid)

    @property
    def plugin(self) -> Path:
        """Where the plugin belongs."""
        return self.plugin_directory / PLUGIN

    @property
    def plugin_config(self) -> Path:
        """The file beside the plugin that says which backend to run."""
        return self.plugin_directory / PLUGIN_CONFIG


def find_daemon(*, fd_config: Path | None = None, plugin_directory: Path | None = None) -> FileDaemon:
    """
    Return this machine's File Daemon.

    Args:
        fd_config: Its configuration file; None looks in the known layouts.
        plugin_directory: Where it is to look for plugins; None takes what its configuration says, then the layout's.

    Raises:
        UsageError: Nothing was named, and nothing was found.
        SettingsError: The configuration cannot be read.
    """
    layout = _layout(fd_config)
    if fd_config is None and layout is None:
        places = " or ".join(dict.fromkeys(str(one.configuration) for one in LAYOUTS))
        raise UsageError(f"no File Daemon found: there is no {places}", hint="name its configuration with --fd-config")
    configuration = fd_config if fd_config is not None else layout.configuration if layout is not None else Path()
    directives = file_daemon_directives(configuration)
    told = directives.get("plugindirectory")
    directory = plugin_directory or (Path(told) if told else layout.plugin_directory if layout is not None else None)
    if directory is None:
        raise UsageError(
            f"{configuration} has no Plugin Directory, and its place tells nothing",
            hint="name the directory with --plugin-dir, and in bacula-fd.conf",
        )
    pid = _running(configuration, is_only=layout is not None)
    program = _program_of(pid) if pid is not None else layout.program if layout is not None else None
    return FileDaemon(
        configuration=configuration,
        plugin_directory=directory,
        is_told=told is not None and Path(told) == directory,
        program=program if program is not None and program.exists() else None,
        uid=os.stat(f"/proc/{pid}").st_uid if pid is not None else 0,
        pid=pid,
    )


def file_daemon_directives(configuration: Path) -> dict[str, str]:
    """
    Return what the resource ``FileDaemon`` says, by directive in lower case without blanks.

    Bacula does not care for case and blanks in the name of a directive; ``FileDaemon`` may be called ``Client``.
    """
    found: dict[str, str] = {}
    inside = ""
    for part in _parts(configuration):
        if part == "}":
            inside = ""
        elif part.endswith("{"):
            inside = _plain(part[:-1])
        elif inside in ("filedaemon", "client"):
            name, equals, value = part.partition("=")
            if equals:
                found[_plain(name)] = _unquoted(value.strip())
    return found


def account_name(uid: int) -> str:
    """Return the name of an account; its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _layout(fd_config: Path | None) -> Layout | None:
    if fd_config is not None:
        return next((one for one in LAYOUTS if one.configuration == fd_config), None)
    return next((one for one in LAYOUTS if one.configuration.exists()), None)


def _parts(configuration: Path, depth: int = 0) -> Iterator[str]:
    """Yield the heads of resources with their brace, ``directive = value``, and closing braces, in order."""
    if depth > _MOST_INCLUDES:
        raise SettingsError(f"{configuration}: files include each other without an end")
    try:
        text = configuration.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SettingsError(
            f"{configuration}: {(error.strerror or '').lower()}", hint="run as root, or name another --fd-config"
        ) from error
    for line in text.splitlines():
        if line.strip().startswith("@") and not line.strip().startswith("@|"):
            yield from _parts(configuration.parent / _unquoted(line.strip()[1:]), depth + 1)
            continue
        # A quoted value may hold any of the characters that divide.
        for part in re.findall(r'(?:"(?:\\.|[^"\\])*"|[^"#;{}])*[{;}]?|#.*', line):
            word = part.strip()
            if word.startswith("#"):
                break
            ending = word[-1:] if word[-1:] in ("{", "}") else ""
            if ending == "}" and word[:-1].strip():
                yield word[:-1].strip()
                word = "}"
            word = word.rstrip(";").strip()
            if word:
                yield word


def _plain(name: str) -> str:
    return re.sub(r"\s", "", name).lower()


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _running(configuration: Path, *, is_only: bool) -> int | None:
    """Return the process of the daemon with that configuration; *is_only* takes one that names none, too."""
    for entry in sorted(Path("/proc").glob("[0-9]*")):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if os.path.basename(words[0]) != b"bacula-fd":
                continue
        except OSError:
            continue
        named = [os.fsdecode(word) for word in words]
        if str(configuration) in named or (is_only and "-c" not in named):
            return int(entry.name)
    return None


def _program_of(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return None
