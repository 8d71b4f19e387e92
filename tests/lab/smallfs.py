"""A file system of a few megabytes, which fills up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.cluster import wait_for
from tests.lab.server_user import server_directory, server_user


@contextmanager
def small_filesystem(size_mb: int) -> Iterator[Path]:
    """
    Yield the root of an empty file system with room for *size_mb* MiB; it belongs to the server's account.

    Root mounts it. For anybody else a child mounts it in a namespace of its own, and the path leads through the
    child's root; do not resolve that path, or it names the empty directory beneath the mount.
    """
    with server_directory() as mount_point:
        options = f"size={size_mb}m,mode=0755,uid={server_user().uid},gid={server_user().gid}"
        if os.geteuid() == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", mount_point], check=True)
            try:
                yield mount_point
            finally:
                # Lazily: a server that is still about to die may hold a file.
                subprocess.run(["umount", "--lazy", mount_point], check=True)
        else:
            with _mounted_by_a_child(mount_point, f"size={size_mb}m,mode=0755") as path:
                yield path


@contextmanager
def _mounted_by_a_child(mount_point: Path, options: str) -> Iterator[Path]:
    script = f'mount -t tmpfs -o {options} tmpfs "$0" && touch "$0/.mounted" && exec cat'
    child = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, mount_point],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with child:
        path = Path(f"/proc/{child.pid}/root{mount_point}")
        try:
            wait_for(lambda: (path / ".mounted").exists() or child.poll() is not None, "the file system is mounted")
            if child.returncode is not None:
                assert child.stderr is not None
                reason = child.stderr.read().decode().strip()
                raise RuntimeError(f"an account that is not root needs user namespaces for this test: {reason}")
            (path / ".mounted").unlink()
            yield path
        finally:
            child.kill()
