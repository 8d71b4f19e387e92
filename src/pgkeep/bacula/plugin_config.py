"""
``pgkeep-fd.conf``, the file beside the plugin: which backend it runs, and as whom.

The plugin reads it itself at each job (``bridge/config.c``); here it is written, and checked before a job does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgkeep.errors import SettingsError

_NUMBERS = {"timeout": 1, "kill_after": 0}
_TUNING = ("ring", *_NUMBERS)
_KEYS = ("backend", "user", "config", *_TUNING)
_MOST_SECONDS = 86400


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """
    What the plugin goes by.

    Attributes:
        backend: Path of ``pgkeep-backend``; None for the one beside the daemon's program.
        user: Whom the backend runs as; empty for the daemon's own account.
        config: Path of ``pgkeep.conf``; None leaves it to the backend.
        tuning: What only the plugin itself goes by, as it stands in the file: ring, timeout, kill_after.
    """

    backend: Path | None = None
    user: str = ""
    config: Path | None = None
    tuning: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> str:
        """Return the text of the file."""
        lines = ["# Read by pgkeep-fd.so at each job; written by `pgkeep bacula install`."]
        if self.backend is not None:
            lines.append(f"backend = {self.backend}")
        if self.user:
            lines.append(f"user = {self.user}")
        if self.config is not None:
            lines.append(f"config = {self.config}")
        lines += (f"{key} = {value}" for key, value in self.tuning.items())
        return "\n".join(lines) + "\n"


def read_plugin_config(path: Path, *, daemon_uid: int) -> PluginConfig:
    """
    Return what the file at *path* says; the defaults when there is none.

    Raises:
        SettingsError: The plugin would refuse it.
    """
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return PluginConfig()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"{path}: not a regular file")
    if status.st_uid not in (0, daemon_uid) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(f"{path}: others than root and the daemon's user can write it", hint=f"chmod go-w {path}")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        problem = _problem(key, value) if equals else 'expected "key = value"'
        if key in found and not problem:
            problem = f"{key} is there twice"
        if problem:
            raise SettingsError(f"{path}: line {number}: {problem}")
        found[key] = value
    return PluginConfig(
        backend=Path(found["backend"]) if "backend" in found else None,
        user=found.get("user", ""),
        config=Path(found["config"]) if "config" in found else None,
        tuning={key: value for key, value in found.items() if key in _TUNING},
    )


def _problem(key: str, value: str) -> str:
    """Return what is wrong with one line; empty when nothing is."""
    if key not in _KEYS:
        return f'expected one of {", ".join(_KEYS)}, found "{key}"'
    if key in ("backend", "config") and not os.path.isabs(value):
        return f'{key}: expected an absolute path, found "{value}"'
    if key == "user" and not value:
        return "user: expected the name of a user, found nothing"
    if key == "ring" and value not in ("yes", "no"):
        return f'ring: expected yes or no, found "{value}"'
    if key in _NUMBERS and not (value.isascii() and value.isdigit() and _NUMBERS[key] <= int(value) <= _MOST_SECONDS):
        return f'{key}: expected {_NUMBERS[key]} to {_MOST_SECONDS} seconds, found "{value}"'
    return ""
