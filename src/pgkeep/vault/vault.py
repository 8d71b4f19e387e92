"""The vault: made, opened, and the clusters in it."""

from __future__ import annotations

import datetime as dt
import os
import tomllib
import uuid
from pathlib import Path

import msgspec
from blake3 import blake3

from pgkeep.errors import VaultError
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.vault.cluster_vault import ClusterIdentity, ClusterVault
from pgkeep.vault.layout import (
    BACKUPS_DIRECTORY,
    CLUSTER_FILE,
    VAULT_FILE,
    VAULT_FORMAT,
    WAL_DIRECTORY,
    check_cluster_name,
)
from pgkeep.vault.unnamed_file import sync_directory, write_durably
from pgkeep.vault.volume import write_error


class Vault:
    """
    An embedded repository of backups and WAL.

    Attributes:
        path: Its directory.
        id: Given when it was made.
    """

    def __init__(self, path: Path, vault_id: str) -> None:
        self.path = path
        self.id = vault_id

    @classmethod
    def create(cls, path: Path) -> Vault:
        """Make a vault in the directory *path*, which is absent or empty; raise VaultError otherwise."""
        path = path.absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(path.iterdir()):
                if (path / VAULT_FILE).exists():
                    raise VaultError(f"there is a vault at {path} already")
                raise VaultError(f"cannot make a vault at {path}: the directory is not empty")
            vault_id = str(uuid.uuid4())
            write_durably(path / VAULT_FILE, _render_vault_file(vault_id))
            sync_directory(path.parent)
        except OSError as error:
            raise write_error(path / VAULT_FILE, error) from error
        return cls(path, vault_id)

    @classmethod
    def open(cls, path: Path) -> Vault:
        """Return the vault at *path*; raise VaultError when there is none, or one that this version cannot read."""
        path = path.absolute()
        file = path / VAULT_FILE
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            raise VaultError(f"there is no vault at {path}", hint='make one with "pgkeep init"') from error
        except OSError as error:
            raise VaultError(f"cannot read {file}: {error.strerror}") from error
        try:
            fields = tomllib.loads(content.decode())
            vault_format, vault_id = fields["format"], str(uuid.UUID(fields["id"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VaultError(f"{file} is damaged: {error}") from error
        if vault_format != VAULT_FORMAT:
            raise VaultError(f"the vault at {path} has format {vault_format}, this version reads {VAULT_FORMAT}")
        if content != _render_vault_file(vault_id):
            raise VaultError(f"{file} is damaged or was edited: it is not what pgkeep wrote")
        return cls(path, vault_id)

    def clusters(self) -> list[str]:
        """Return the names of the clusters, sorted."""
        try:
            return sorted(entry.name for entry in self.path.iterdir() if (entry / CLUSTER_FILE).exists())
        except OSError as error:
            raise VaultError(f"cannot list {self.path}: {error.strerror}") from error

    def cluster(self, name: str) -> ClusterVault:
        """Return the cluster called *name*; raise VaultError when the vault has none or its identity is damaged."""
        directory = self.path / check_cluster_name(name)
        file = directory / CLUSTER_FILE
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            known = ", ".join(self.clusters()) or "none"
            raise VaultError(
                f'the vault at {self.path} has no cluster "{name}": it has {known}', hint='add one with "pgkeep init"'
            ) from error
        except OSError as error:
            raise VaultError(f"cannot read {file}: {error.strerror}") from error
        identity = _parse_cluster_file(content, file)
        if identity.vault_id != self.id:
            raise VaultError(f"{file} belongs to vault {identity.vault_id}, but {VAULT_FILE} says {self.id}")
        return ClusterVault(directory, identity)

    def rename_cluster(self, name: str, new_name: str) -> str:
        """Call the cluster *name* by *new_name*; return that. Raise VaultError when it is taken or in use."""
        check_cluster_name(new_name)
        cluster = self.cluster(name)
        if (self.path / new_name).exists():
            raise VaultError(f'the vault at {self.path} has a cluster "{new_name}" already')
        with cluster.lock(shared=False, verb="init"):
            try:
                os.rename(cluster.directory, self.path / new_name)
                sync_directory(self.path)
            except OSError as error:
                raise write_error(cluster.directory, error) from error
        return new_name

    def create_cluster(self, name: str, identity: ClusterIdentity) -> ClusterVault:
        """Add the cluster called *name*; raise VaultError when the vault has one of that name."""
        directory = self.path / check_cluster_name(name)
        if (directory / CLUSTER_FILE).exists():
            raise VaultError(f'the vault at {self.path} has a cluster "{name}" already')
        SystemIdentifier(int(identity.system_identifier))
        created = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        identity = msgspec.structs.replace(identity, vault_id=self.id, created=created)
        try:
            for path in (directory, directory / BACKUPS_DIRECTORY, directory / WAL_DIRECTORY):
                path.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self.path)
            write_durably(directory / CLUSTER_FILE, _render_cluster_file(identity))
        except OSError as error:
            raise write_error(directory / CLUSTER_FILE, error) from error
        return ClusterVault(directory, identity)


def _render_vault_file(vault_id: str) -> bytes:
    return (
        f'# A vault of pgkeep. Each backup in it has a RESTORE.md.\nformat = {VAULT_FORMAT}\nid = "{vault_id}"\n'
    ).encode()


def _render_cluster_file(identity: ClusterIdentity) -> bytes:
    line = msgspec.json.encode(identity) + b"\n"
    return line + f"{blake3(line).hexdigest()}\n".encode()


def _parse_cluster_file(content: bytes, file: Path) -> ClusterIdentity:
    line, newline, seal = content.partition(b"\n")
    expected = f"{blake3(line + newline).hexdigest()}\n".encode()
    if not newline or seal != expected:
        shown = seal[:16].decode("ascii", "backslashreplace").rstrip() or "nothing"
        raise VaultError(f"{file} is damaged: its BLAKE3 is {expected[:16].decode()}, it says {shown}")
    try:
        return msgspec.json.decode(line, type=ClusterIdentity)
    except msgspec.DecodeError as error:
        raise VaultError(f"{file} is damaged: {error}") from error
