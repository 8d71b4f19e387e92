"""
The configuration files that lie outside the data directory: they belong to every backup that holds files.

Debian keeps ``postgresql.conf`` and its like in ``/etc/postgresql/<major>/<name>``; elsewhere ``config_file``,
``hba_file`` or an ``include`` lead out of the data directory. Without them a restored server starts with other
settings, or lets other people in. What the server only names (certificates, keys) is not taken.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator

from pgkeep.errors import PgkeepError
from pgkeep.modes.contract import Say
from pgkeep.modes.physical_base import ServerFacts
from pgkeep.pg.configuration_file import (
    MAX_DEPTH,
    Reference,
    ReferenceKind,
    access_references_of,
    is_included_name,
    references_of,
)
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.file_reader import FileReader, FoundFile, LocalReader, RemoteReader
from pgkeep.streams.item import BytesItem, Item, ItemHeader, ItemKind

PLACE = "config"
"""What stands between a mode's directory and the absolute path of a configuration file."""

# What Debian's pg_ctlcluster reads beside postgresql.conf (postgresql-common, PgCommon.pm).
_DEBIAN_FILES = ("start.conf", "pg_ctl.conf", "environment")

# Without these a server does not start; its own certificates only matter where ssl is on.
_NAMING_SETTINGS = ("unix_socket_directories",)

References = Callable[[str], Iterator[Reference]]


class OutsideConfiguration:
    """
    The configuration files of one server that lie outside its data directory.

    Attributes:
        paths: Of the files that passed, absolute, in order; complete when ``items`` is through.
    """

    def __init__(self, server: Server, facts: ServerFacts, *, root: str, is_local: bool, warn: Say) -> None:
        self.paths: list[str] = []
        self._reader: FileReader = LocalReader() if is_local else RemoteReader(server)
        self._server = server
        self._files = facts.files
        self._root = root
        self._is_local = is_local
        self._warn = warn
        self._seen: set[str] = set()

    def items(self) -> Iterator[Item]:
        """Yield the files, each after its directory; what cannot be read is a warning."""
        files = self._files
        if files.config_file:
            yield from self._file(files.config_file, references_of)
        for path in (files.hba_file, files.ident_file):
            if path:
                yield from self._file(path, access_references_of)
        if files.config_file:
            yield from self._beside(posixpath.dirname(files.config_file))

    def named_files(self) -> dict[str, str]:
        """Return the files and directories outside that settings name and a server may not start without."""
        rows = self._server.rows(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s) OR (name LIKE 'ssl%%file' AND %s)",
            [list(_NAMING_SETTINGS), queries.setting(self._server, "ssl") == "on"],
        )
        named = {name: value.partition(",")[0].strip() for name, value in rows if value}
        return {name: path for name, path in named.items() if path.startswith("/") and not self._is_inside(path)}

    def _beside(self, directory: str) -> Iterator[Item]:
        if self._is_inside(directory):
            return
        for name in _DEBIAN_FILES:
            yield from self._file(posixpath.join(directory, name), _no_references, is_optional=True)

    def _file(self, path: str, references: References, *, is_optional: bool = False, depth: int = 0) -> Iterator[Item]:
        path = posixpath.normpath(path)
        if path in self._seen or depth > MAX_DEPTH:
            return
        self._seen.add(path)
        try:
            found = self._reader.look(path)
            content = self._reader.read(path) if found is not None else b""
        except PgkeepError as error:
            # Over the stream nobody knows whether it is there at all.
            if self._is_local or not is_optional:
                self._warn_of(path, error)
            return
        if found is None:
            if not is_optional:
                self._warn(f"not in the backup: configuration file {path} is not there")
            return
        if not self._is_inside(path):
            yield from self._parents(path)
            yield from self._item(path, found, content)
        text = content.decode("utf-8", "surrogateescape")
        for reference in references(text):
            yield from self._referred(reference, posixpath.dirname(path), references, depth + 1)

    def _referred(self, reference: Reference, directory: str, references: References, depth: int) -> Iterator[Item]:
        path = posixpath.join(directory, reference.path)
        if reference.is_list:
            yield from self._file(path, _list_references, depth=depth)
        elif reference.kind is ReferenceKind.DIRECTORY:
            yield from self._included_directory(posixpath.normpath(path), references, depth)
        else:
            is_optional = reference.kind is ReferenceKind.OPTIONAL_FILE
            yield from self._file(path, references, is_optional=is_optional, depth=depth)

    def _included_directory(self, path: str, references: References, depth: int) -> Iterator[Item]:
        try:
            found = self._reader.look(path)
            names = self._reader.names(path) if found is not None else []
        except PgkeepError as error:
            self._warn_of(path, error)
            return
        if found is None:
            self._warn(f"not in the backup: configuration directory {path} is not there")
            return
        # An include_dir that leads nowhere keeps the server from starting: it is held although it may be empty.
        yield from self._directory(path, found)
        for name in names:
            if is_included_name(name):
                yield from self._file(posixpath.join(path, name), references, depth=depth)

    def _warn_of(self, path: str, error: PgkeepError) -> None:
        if not self._is_inside(path) or self._leads_out():
            hint = (
                "" if self._is_local else ": grant pg_read_server_files and pg_read_binary_file, or use transport=local"
            )
            self._warn(f"not in the backup: configuration file {path}: {error.message}{hint}")

    def _leads_out(self) -> bool:
        """Tell whether some setting is known to come from a file outside, for a role that may not read files."""
        rows = self._server.rows("SELECT DISTINCT sourcefile FROM pg_settings WHERE sourcefile IS NOT NULL")
        return any(not self._is_inside(path) for (path,) in rows)

    def _parents(self, path: str) -> Iterator[Item]:
        directory = posixpath.dirname(path)
        found = self._reader.look(directory)
        if found is not None:
            yield from self._directory(directory, found)

    def _directory(self, path: str, found: FoundFile) -> Iterator[Item]:
        if path in self._seen or self._is_inside(path) or path == "/":
            return
        self._seen.add(path)
        yield from self._item(path, found, b"")

    def _item(self, path: str, found: FoundFile, content: bytes) -> Iterator[Item]:
        try:
            path.encode()
        except UnicodeEncodeError:
            self._warn(f"not in the backup: the name of {path!r} is not UTF-8")
            return
        header = ItemHeader(
            path=f"{self._root}/{PLACE}{path}",
            kind=ItemKind.DIRECTORY if found.is_directory else ItemKind.FILE,
            size=len(content),
            mtime_ns=found.mtime_ns,
            file_mode=found.file_mode,
            owner=found.owner,
            group=found.group,
        )
        if not found.is_directory:
            self.paths.append(path)
        yield BytesItem(header, content)

    def _is_inside(self, path: str) -> bool:
        return f"{path}/".startswith(f"{posixpath.normpath(self._files.data_directory)}/")


def _no_references(text: str) -> Iterator[Reference]:  # noqa: ARG001 - as the others
    yield from ()


def _list_references(text: str) -> Iterator[Reference]:
    return access_references_of(text, is_list=True)
