"""Write a backup's items as plain files beneath a directory, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pgkeep.datadir.durable import sync_directory
from pgkeep.errors import FormatError, RestoreRefused
from pgkeep.streams.item import DetachedItem, ItemKind, StreamedItem, content_of


def extract(items: Iterable[StreamedItem | DetachedItem], *, root: str, directory: Path) -> list[Path]:
    """
    Write *items* beneath *directory*, durably, and return the files' paths.

    Args:
        items: Digests are checked as the content passes.
        root: What their virtual paths begin with, and what is left out of the file names.
        directory: Made when it is absent; files that are there already are never written over.

    Raises:
        RestoreRefused: A file is there already.
        FormatError: A path leads out of *directory*.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    directories = {directory}
    for item in items:
        header = item.header
        inside = header.path.removeprefix(f"{root}/")
        parts = inside.split("/")
        if inside == header.path or ".." in parts or "" in parts:
            raise FormatError(f'item has no place beneath {directory}: "{header.path}"')
        path = directory.joinpath(*parts)
        if header.kind is ItemKind.DIRECTORY:
            path.mkdir(parents=True, exist_ok=True)
            directories.add(path)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        directories.add(path.parent)
        _write(path, item)
        written.append(path)
    for made in directories:
        sync_directory(made)
    return written


def _write(path: Path, item: StreamedItem | DetachedItem) -> None:
    temporary = path.with_name(f".{path.name}.pgkeep")
    if os.path.lexists(path):
        raise RestoreRefused(f"{path} is there already", hint="choose another directory, or remove it")
    try:
        with open(temporary, "wb") as file:
            file.writelines(content_of(item))
            file.flush()
            os.fsync(file.fileno())
        # The content is checked when its last byte has passed; only then does it get its name.
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
