"""Directories that look like data directories, made in a moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pgkeep.datadir.scan import Scan, ScannedFile
from pgkeep.pg.data_directory import REQUIRED_DIRECTORIES

ROOT = "@postgresql/pitr"
VERSION_DIRECTORY = "PG_18_202506291"


def make_data_directory(path: Path, files: Mapping[str, bytes] | Iterable[str] = ()) -> Path:
    """Make the directories of a cluster at *path*, pg_control and *files*; names alone get their name as content."""
    for directory in REQUIRED_DIRECTORIES:
        (path / directory).mkdir(parents=True, exist_ok=True)
    contents = dict(files) if isinstance(files, Mapping) else {name: name.encode() for name in files}
    for name, content in {"global/pg_control": b"control", "PG_VERSION": b"18\n", **contents}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


class Scanned:
    """A scan that was run to its end: the warnings and what it found, in order."""

    def __init__(self, data_directory: Path, **arguments: object) -> None:
        self.warnings: list[str] = []
        self.scan = Scan(
            data_directory,
            root=ROOT,
            version_directory=VERSION_DIRECTORY,
            warn=self.warnings.append,
            **arguments,  # type: ignore[arg-type]
        )
        self.found: list[ScannedFile] = list(self.scan.files())

    @property
    def files(self) -> list[str]:
        """Virtual paths of files, without the root."""
        return [file.path.removeprefix(f"{ROOT}/") for file in self.found if not file.is_directory]

    @property
    def directories(self) -> list[str]:
        """Virtual paths of directories, without the root."""
        return [file.path.removeprefix(f"{ROOT}/") for file in self.found if file.is_directory]
