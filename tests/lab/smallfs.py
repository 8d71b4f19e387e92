"""A file system of a few megabytes, which fills up."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.server_user import server_directory, server_user

_MNT_DETACH = 2


@contextmanager
def small_filesystem(size_mb: int, *, inodes: int = 0) -> Iterator[Path]:
    """
    Yield the root of an empty file system with room for *size_mb* MiB; it belongs to the server's account.

    It has room for as many files and directories as there are *inodes*; 0 for plenty.

    Root mounts it. For anybody else a child mounts it in a namespace of its own, and the path leads through the
    child's root; do not resolve that path, or it names the empty directory beneath the mount.
    """
    with server_directory() as mount_point:
        options = f"size={size_mb}m,mode=0755" + (f",nr_inodes={inodes}" if inodes else "")
        if os.geteuid() == 0:
            mount(mount_point, f"{options},uid={server_user().uid},gid={server_user().gid}")
            try:
                yield mount_point
            finally:
                unmount(mount_point)
        else:
            with _mounted_by_a_child(mount_point, options) as path:
                yield path


def mount(mount_point: Path, options: str) -> None:
    """Mount a new tmpfs; by the system call, because a small Debian has no program for it."""
    _call("mount", b"tmpfs", os.fsencode(mount_point), b"tmpfs", 0, options.encode())


def unmount(mount_point: Path) -> None:
    """Take the file system away from the tree, and free it once the last process lets go of its files."""
    _call("umount2", os.fsencode(mount_point), _MNT_DETACH)


def _call(function: str, *arguments: object) -> None:
    if ctypes.CDLL(None, use_errno=True)[function](*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


@contextmanager
def _mounted_by_a_child(mount_point: Path, options: str) -> Iterator[Path]:
    """Mount in a user namespace, where anybody may; it ends with the child."""
    child = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", __name__, mount_point, options],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            if not child.stdout.readline():
                reason = child.stderr.read().decode().strip()
                raise RuntimeError(f"an account that is not root needs user namespaces for this test: {reason}")
            yield Path(f"/proc/{child.pid}/root{mount_point}")
        finally:
            child.kill()


def main() -> None:
    """Mount at the first argument with the options in the second, say so, and wait for the end of the input."""
    mount(Path(sys.argv[1]), sys.argv[2])
    print("mounted", flush=True)  # noqa: T201 - the parent waits for it
    sys.stdin.read()


if __name__ == "__main__":
    main()
