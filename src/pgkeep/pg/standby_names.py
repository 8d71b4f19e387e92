"""
The names in ``synchronous_standby_names``.

Source:
    ``src/backend/replication/syncrep_gram.y`` and ``syncrep_scanner.l``; names are compared with ``pg_strcasecmp``.
"""

from __future__ import annotations

import re

_NAME = re.compile(r'"(?:[^"]|"")*"|[^\s,()"]+')
_METHOD = re.compile(r"\s*(?:(?:any|first)\s+)?\d+\s*\((?P<names>.*)\)\s*", re.IGNORECASE | re.DOTALL)


def standby_names(setting: str) -> list[str]:
    """Return the names in *setting*, without their quotes; ``*`` stands for any standby."""
    match = _METHOD.fullmatch(setting)
    text = match["names"] if match is not None else setting
    return [name[1:-1].replace('""', '"') if name.startswith('"') else name for name in _NAME.findall(text)]


def is_synchronous(name: str, setting: str) -> bool:
    """Tell whether a standby called *name* is one that *setting* lets commits wait for."""
    return any(known == "*" or known.lower() == name.lower() for known in standby_names(setting))
