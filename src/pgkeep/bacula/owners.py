"""Numbers of users and groups, by name."""

from __future__ import annotations

import functools
import grp
import pwd


@functools.lru_cache(maxsize=1024)
def user_number(name: str) -> int:
    """Return the number of user *name*; 0 for a name that this host does not know, or none."""
    try:
        return pwd.getpwnam(name).pw_uid if name else 0
    except KeyError:
        return int(name) if name.isdigit() else 0


@functools.lru_cache(maxsize=1024)
def group_number(name: str) -> int:
    """Return the number of group *name*; 0 for a name that this host does not know, or none."""
    try:
        return grp.getgrnam(name).gr_gid if name else 0
    except KeyError:
        return int(name) if name.isdigit() else 0
