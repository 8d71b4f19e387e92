"""
Where PostgreSQL's own programs are, and which of them may be used for which server.

A *toolbox* is one directory with programs of one version. The rule for dumps: the server's own major version, and not
older than its minor version. Another major is used only where the operator names its directory, because a dump tool
knows the system catalogs of its own time only: 15.20 keeps ``pg_attver=…`` in ``pg_attribute.attoptions``, and a
pg_dump that does not know it writes DDL which no server accepts (see ``pg_dump.check_attribute_options``).
"""

from __future__ import annotations

import functools
import glob
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pgkeep.errors import ToolError

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
_USUAL_PLACES = (
    "/usr/lib/postgresql/*/bin",  # Debian
    "/usr/pgsql-*/bin",  # PGDG on RHEL
    "/usr/local/pgsql/bin",  # make install
)
_SIGNS = ("pg_dump", "postgres", "psql")
"""Any of these makes a directory a toolbox; server packages and client packages differ."""


class ToolVersion(NamedTuple):
    """A version as the programs print it; beta versions count as minor 0."""

    major: int
    minor: int

    @classmethod
    def of_server(cls, server_version: int) -> ToolVersion:
        """Return the version behind ``server_version_num``: 150020 is 15.20."""
        return cls(server_version // 10000, server_version % 10000)

    @classmethod
    def parse(cls, text: str) -> ToolVersion:
        """Return the version in the output of ``pg_dump --version``; raise ToolError for other text."""
        match = _VERSION.search(text)
        if match is None:
            raise ToolError(f'not a version of PostgreSQL: "{text.strip()}"')
        return cls(int(match[1]), int(match[2] or 0))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """One directory with PostgreSQL's programs of one version."""

    directory: Path
    version: ToolVersion

    def program(self, name: str) -> Path:
        """Return the path of program *name*; raise ToolError when this toolbox lacks it."""
        path = self.directory / name
        if not os.access(path, os.X_OK):
            raise ToolError(
                f"no program {name} in {self.directory}, which has PostgreSQL {self.version}",
                hint=f"install the package that brings {name}, or name another directory with bin_dir",
            )
        return path

    def has(self, name: str) -> bool:
        """Whether program *name* is there."""
        return os.access(self.directory / name, os.X_OK)

    def __str__(self) -> str:
        return f"{self.version} in {self.directory}"


def find_toolboxes(bin_dir: Path | None = None) -> list[Toolbox]:
    """
    Return the toolboxes of this host, newest version first; may be empty.

    Args:
        bin_dir: The only directory to look at; None for PATH and the places where packages put them.

    Raises:
        ToolError: *bin_dir* is given and holds none of PostgreSQL's programs.
    """
    if bin_dir is not None:
        box = _toolbox_at(bin_dir)
        if box is None:
            raise ToolError(
                f"no PostgreSQL programs in {bin_dir}", hint="bin_dir names the directory that holds pg_dump"
            )
        return [box]
    found = {box.directory.resolve(): box for place in _candidates() if (box := _toolbox_at(place)) is not None}
    return sorted(found.values(), key=lambda box: box.version, reverse=True)


def toolbox_for_dump(server_version: int, *, bin_dir: Path | None = None) -> Toolbox:
    """
    Return the toolbox whose pg_dump may dump a server of *server_version* (``server_version_num``).

    Raises:
        ToolError: There is none; the message lists what was found.
    """
    server = ToolVersion.of_server(server_version)
    boxes = [box for box in find_toolboxes(bin_dir) if box.has("pg_dump")]
    fitting = [box for box in boxes if box.version.major == server.major and box.version >= server]
    if fitting:
        return fitting[0]
    if bin_dir is not None and boxes:
        # Named by the operator: any newer major serves, after a look at what it would write into the DDL.
        if boxes[0].version.major > server.major:
            return boxes[0]
        raise ToolError(
            f"pg_dump {boxes[0].version} in {bin_dir} is older than the server, which is {server}",
            hint="set bin_dir to the programs of the server's major version, or leave it out",
        )
    raise ToolError(
        f"no pg_dump for server {server}: expected {server.major}, not older than {server}, found {_listing(boxes)}",
        hint=f"install the client programs of PostgreSQL {server.major} (Debian: postgresql-client-{server.major}), "
        "or name a directory with a newer major version with bin_dir",
    )


def toolbox_for_restore(server_version: int, *, dumped_by: ToolVersion, bin_dir: Path | None = None) -> Toolbox:
    r"""
    Return the toolbox whose pg_restore and psql can bring a dump made by *dumped_by* into a server.

    They must not be older than the pg_dump that made it (archive version, ``\restrict``). Among those that fit, the
    server's own major comes first, then the oldest: each newer major adds settings that older servers do not know.

    Raises:
        ToolError: There is none; the message lists what was found.
    """
    server = ToolVersion.of_server(server_version)
    boxes = [box for box in find_toolboxes(bin_dir) if box.has("pg_restore") and box.has("psql")]
    fitting = [box for box in boxes if box.version >= dumped_by]
    if not fitting:
        raise ToolError(
            f"no pg_restore for a dump made by pg_dump {dumped_by}: expected {dumped_by} or newer, "
            f"found {_listing(boxes)}",
            hint=f"install the client programs of PostgreSQL {dumped_by.major}, or name their directory with bin_dir",
        )
    own = [box for box in fitting if box.version.major == server.major]
    return own[0] if own else fitting[-1]


def toolbox_for_server(major: int, *, bin_dir: Path | None = None) -> Toolbox:
    """Return the newest toolbox of *major* that can run a server; raise ToolError with what was found."""
    boxes = [box for box in find_toolboxes(bin_dir) if box.has("postgres") and box.has("pg_ctl")]
    for box in boxes:
        if box.version.major == major:
            return box
    raise ToolError(
        f"no server programs of PostgreSQL {major}: found {_listing(boxes)}",
        hint=f"install PostgreSQL {major} (Debian: postgresql-{major}), or name its directory with bin_dir",
    )


def _listing(boxes: list[Toolbox]) -> str:
    return ", ".join(map(str, boxes)) or "none"


def _candidates() -> Iterator[Path]:
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        program = Path(entry, "pg_dump").resolve()
        # Debian's /usr/bin/pg_dump leads to pg_wrapper, which guesses a cluster; the real ones are found below.
        # A PATH that sudo kept may name directories that this account cannot enter: is_file would raise.
        if entry and program.name == "pg_dump" and os.access(program, os.X_OK):
            yield program.parent
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        yield Path(_first_line([pg_config, "--bindir"]))
    for pattern in _USUAL_PLACES:
        yield from map(Path, sorted(glob.glob(pattern)))


def _toolbox_at(directory: Path) -> Toolbox | None:
    for name in _SIGNS:
        program = directory / name
        if os.access(program, os.X_OK) and program.is_file():
            status = program.stat()
            return Toolbox(directory, _version_of(program, status.st_mtime_ns, status.st_size))
    return None


@functools.cache
def _version_of(program: Path, *_upgraded: int) -> ToolVersion:
    """Ask *program* once per process; an upgrade under a resident process changes the other arguments."""
    return ToolVersion.parse(_first_line([str(program), "--version"]))


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"cannot run {command[0]}: {error}") from error
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode != 0 or not lines:
        complaint = done.stderr.decode(errors="replace").strip().splitlines()
        raise ToolError(f"{command[0]} ended with status {done.returncode}: {complaint[-1] if complaint else 'silent'}")
    return lines[0]
