"""Which archive commands say for certain where WAL goes."""

from __future__ import annotations

import pytest

from pgkeep.server.archive_command import derive_archive_directory


@pytest.mark.parametrize(
    ("command", "directory"),
    [
        ("cp %p /wal/%f", "/wal"),
        ('cp "%p" "/var/lib/wal archive/%f"', "/var/lib/wal archive"),
        ("cp -i %p /wal/%f </dev/null", "/wal"),
        ("cp -i %p /wal/%f < /dev/null", "/wal"),
        ("/bin/cp --preserve=timestamps -n %p /wal/main//%f", "/wal/main"),
        ("test ! -f /mnt/server/archivedir/%f && cp %p /mnt/server/archivedir/%f", "/mnt/server/archivedir"),
        ('test ! -f "/a b/%f" && cp "%p" "/a b/%f"', "/a b"),
        ("cp %p ../archive/%f", "/var/lib/postgresql/archive"),
        ("cp %p /%f", "/"),
    ],
)
def test_plain_copy_is_understood(command: str, directory: str) -> None:
    """A plain copy, as PostgreSQL's manual shows it, names its directory."""
    assert derive_archive_directory(command, data_directory="/var/lib/postgresql/data") == directory


@pytest.mark.parametrize(
    "command",
    [
        "",
        "/bin/true",
        "cp %p /wal/%f.bak",
        "cp %p /wal/",
        "cp %p /wal/%f /other/%f",
        "cp %f /wal/%p",
        "cp %p /wal/%p/%f",
        "cp %p /wal/$(hostname)/%f",
        "cp %p $HOME/%f",
        "cp %p ~/wal/%f",
        "cp %p /wal/%f || true",
        "cp %p /wal/%f; sync",
        "cp %p /wal/%f && sync",
        "cp %p /wal/%f > /dev/null",
        "gzip < %p > /wal/%f",
        "rsync -a %p backup:/wal/%f",
        "scp %p backup:/wal/%f",
        "pgbackrest --stanza=main archive-push %p",
        "test ! -f /other/%f && cp %p /wal/%f",
        "test -f /wal/%f && cp %p /wal/%f",
        "cp --parents %p /wal/%f",
        "cp %p '/wal/%f",
        "cp %p /wal/%%f",
        "cp %p /w*/%f",
        "(cp %p /wal/%f)",
    ],
)
def test_doubtful_command_is_not_guessed_at(command: str) -> None:
    """Whatever is more than a plain copy, or does something else, names no directory."""
    assert derive_archive_directory(command, data_directory="/data") is None
