"""One PostgreSQL installation on this machine: where its programs are, and what it was built with."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Installation:
    """
    The programs of one PostgreSQL release.

    Attributes:
        major: 12 to 18.
        bin_dir: Holds at least initdb, pg_ctl and postgres.
        source: Where it came from, for people: ``system``, ``wheel``, ``debian trixie``, ``npm``.
    """

    major: int
    bin_dir: Path
    source: str

    @cached_property
    def version(self) -> str:
        """The release, such as ``15.20``."""
        text = subprocess.run(
            [self.bin_dir / "postgres", "--version"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        match = re.search(r"\(PostgreSQL\) (\d+\S*)", text)
        if match is None:
            raise RuntimeError(f'{self.bin_dir}/postgres: expected a version, found "{text.strip()}"')
        return match[1]

    @property
    def has_client_programs(self) -> bool:
        """Whether pg_dump, psql and their like came along."""
        return self.has("pg_dump") and self.has("psql")

    def has(self, program: str) -> bool:
        """Whether *program* belongs to this installation."""
        return os.access(self.bin_dir / program, os.X_OK)

    def program(self, name: str) -> Path:
        """Return the path of one of its own programs; it must be there."""
        if not self.has(name):
            raise FileNotFoundError(f"PostgreSQL {self.version} from {self.source} has no {name}")
        return self.bin_dir / name

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} ({self.source}, {self.bin_dir})"
