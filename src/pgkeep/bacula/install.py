"""Put the plugin where a File Daemon looks for it, and say what else that daemon needs."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgkeep.bacula.daemon import PLUGIN, FileDaemon
from pgkeep.bacula.plugin_config import PluginConfig, read_plugin_config
from pgkeep.errors import SettingsError, UsageError

PROGRAM = "pgkeep-backend"
SERVER_ACCOUNT = "postgres"
"""Whom the backend runs as below a daemon of root's, unless somebody says otherwise: who owns the server's files."""


@dataclass(frozen=True, slots=True)
class Installed:
    """
    What was done, and what is left to do.

    Attributes:
        lines: What was done, a sentence each.
        to_do: What only the administrator can do, in order.
    """

    lines: list[str]
    to_do: list[str]


def install(
    daemon: FileDaemon,
    *,
    plugin: Path | None = None,
    backend: Path | None = None,
    user: str | None = None,
    config: Path | None = None,
    state_dir: Path,
) -> Installed:
    """
    Copy the plugin into the daemon's Plugin Directory, and write what it goes by.

    A ``pgkeep-fd.conf`` that is already there stays as it is but for *backend*, *user* and *config* where given.

    Args:
        daemon: Whose plugin it will be.
        plugin: The built plugin; None for the one that came with this pgkeep.
        backend: None for the one that came with this pgkeep.
        user: Whom the backend runs as; None for `SERVER_ACCOUNT` below root, otherwise the daemon's own account.
        config: A ``pgkeep.conf`` other than the default one.
        state_dir: What the backend remembers between jobs goes there; made for its account when it is missing.

    Raises:
        UsageError: There is no such plugin or backend or account.
        SettingsError: A file or directory cannot be written.
    """
    source = plugin or own_plugin()
    kept = read_plugin_config(daemon.plugin_config, daemon_uid=daemon.uid) if daemon.plugin_config.exists() else None
    wanted = replace(
        kept or PluginConfig(own_backend() if backend is None else backend, default_user(daemon)),
        **_given(backend=backend, user=user, config=config),
    )
    for path in (source, wanted.backend):
        if path is not None and not path.is_file():
            raise UsageError(f"there is no file {path}")
    uid = _uid_of(wanted.user) if wanted.user else daemon.uid
    lines = []
    try:
        daemon.plugin_directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        _copy(source, daemon.plugin)
        lines.append(f"copied {source} to {daemon.plugin}")
        if wanted == kept:
            lines.append(f"left {daemon.plugin_config} as it is")
        else:
            _write(daemon.plugin_config, wanted.render())
            as_whom = f" as {wanted.user}" if wanted.user else ""
            lines.append(f"wrote {daemon.plugin_config}: {wanted.backend or PROGRAM} runs{as_whom}")
        if _make_state(state_dir, uid):
            lines.append(f"made {state_dir} for what pgkeep remembers between jobs")
    except OSError as error:
        raise SettingsError(
            f"{error.filename or daemon.plugin_directory}: {(error.strerror or '').lower()}",
            hint=f"run as root, or as the user who owns {daemon.plugin_directory}",
        ) from error
    return Installed(lines, list(_to_do(daemon)))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def own_plugin() -> Path:
    """Return the plugin that belongs to this pgkeep; raise UsageError when none was built."""
    places = [Path(sys.prefix) / "lib/pgkeep" / PLUGIN, Path("/usr/lib/pgkeep") / PLUGIN]
    for path in places:
        if path.is_file():
            return path
    raise UsageError(
        f"there is no {' or '.join(str(path) for path in places)}",
        hint="build it with make in the directory bridge of the sources, then name it with --plugin",
    )


def own_backend() -> Path:
    """Return the backend that belongs to this pgkeep; raise UsageError when it is not installed."""
    path = Path(sys.executable).with_name(PROGRAM)
    if path.is_file():
        return path
    found = shutil.which(PROGRAM)
    if found is None:
        raise UsageError(f"there is no {path}, nor is {PROGRAM} anywhere in PATH", hint="name it with --backend")
    return Path(found)


def default_user(daemon: FileDaemon) -> str:
    """Return whom the backend should run as; empty for the daemon's own account."""
    if daemon.uid != 0:
        return ""
    try:
        return pwd.getpwnam(SERVER_ACCOUNT).pw_name
    except KeyError:
        return ""


def _uid_of(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(f'there is no account "{user}"') from None


def _copy(source: Path, target: Path) -> None:
    """Make *target* a regular file with the content of *source*, by rename: a daemon may have the old one mapped."""
    # The daemon passes over symbolic links without a word.
    unfinished = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, unfinished)
    unfinished.chmod(0o644)
    unfinished.replace(target)


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.chmod(0o644)
    unfinished.replace(path)


def _make_state(state_dir: Path, uid: int) -> bool:
    if state_dir.exists():
        return False
    state_dir.mkdir(mode=0o700, parents=True)
    if os.geteuid() == 0:
        os.chown(state_dir, uid, pwd.getpwuid(uid).pw_gid)
    return True


def _to_do(daemon: FileDaemon) -> Iterator[str]:
    if not daemon.is_told:
        directive = f'Plugin Directory = "{daemon.plugin_directory}"'
        yield f"add to the resource FileDaemon in {daemon.configuration}: {directive}"
    yield "restart bacula-fd: it loads plugins when it starts, a reload is not enough"
    yield 'add to the FileSet, in an Include with "signature = XXHASH64": Plugin = "pgkeep: mode=pitr"'
    yield 'set "Accurate = yes" in the Job'
    yield "run pgkeep bacula check on this machine"
