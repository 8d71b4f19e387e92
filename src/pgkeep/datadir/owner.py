"""Who owns a data directory: the account that the server runs under."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import RestoreRefused


@dataclass(frozen=True, slots=True)
class Owner:
    """A user and its group, by number."""

    uid: int
    gid: int

    @classmethod
    def of(cls, path: Path) -> Owner:
        """Return who owns *path*."""
        status = os.stat(path)
        return cls(status.st_uid, status.st_gid)

    @classmethod
    def named(cls, user: str) -> Owner:
        """Return the account called *user* with its primary group; raise RestoreRefused when there is none."""
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise RestoreRefused(
                f'there is no user "{user}" on this host to own the restored files',
                hint="create the account, or name another one",
            ) from None
        return cls(entry.pw_uid, entry.pw_gid)

    @property
    def user_name(self) -> str:
        """The user's name, or its number where it has none."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def all_groups(self) -> list[int]:
        """Every group of the user, the owner's own first."""
        try:
            name = pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return [self.gid]
        return os.getgrouplist(name, self.gid)


def owner_of_restored_files(target: Path, *, user: str = "", recorded: str = "") -> Owner | None:
    """
    Return who is to own what is laid down at *target*; None to leave it to whoever runs pgkeep.

    Only root can choose. A server refuses to run as root, so root's files would be of no use: an account is found or
    the restore is refused.

    Args:
        target: The data directory to be; need not exist.
        user: The account that was asked for; empty when none was.
        recorded: The owner in the backup; empty when unknown.

    Raises:
        RestoreRefused: pgkeep runs as root and no account fits, or the one asked for does not exist, or pgkeep does not
            run as root and another account than its own was asked for.
    """
    if os.geteuid() != 0:
        if user and Owner.named(user).uid != os.geteuid():
            raise RestoreRefused(
                f'only root can restore for another user: asked for "{user}", running as '
                f'"{Owner(os.geteuid(), os.getegid()).user_name}"'
            )
        return None
    if user:
        return Owner.named(user)
    if target.is_dir() and os.stat(target).st_uid != 0:
        return Owner.of(target)
    for name in (recorded, "postgres"):
        if name and name != "root":
            try:
                return Owner.named(name)
            except RestoreRefused:
                continue
    raise RestoreRefused(
        "root cannot own the restored files, because PostgreSQL does not run as root",
        hint="create the user postgres, or name the account that will run the server",
    )


def refuse_foreign_links(path: Path) -> None:
    """
    Raise RestoreRefused where root would be led elsewhere by a link that somebody else made on the way to *path*.

    Such a link must belong to who owns what it leads to, who could have written there by himself. One that leads
    nowhere is fine.
    """
    if os.geteuid() != 0:
        return
    for place in (*reversed(path.parents), path):
        if not place.is_symlink() or not place.exists():
            continue
        maker, found = os.lstat(place).st_uid, os.stat(place).st_uid
        if maker not in (0, found):
            raise RestoreRefused(
                f'{place} is a link of "{Owner(maker, 0).user_name}" to {os.path.realpath(place)}, '
                f'which belongs to "{Owner(found, 0).user_name}"',
                hint="name the directory itself, or let root make the link",
            )
        refuse_foreign_links(place.parent / os.readlink(place))
