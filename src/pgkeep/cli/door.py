"""What the commands share: from what was typed to the values that a job takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgkeep.cli.output import warn
from pgkeep.cli.unbuilt_options import NOT_BUILT
from pgkeep.errors import UsageError
from pgkeep.settings import Resolved, from_flags, read_config, resolve

if TYPE_CHECKING:
    from pgkeep.server.connection import ConnectionTarget
    from pgkeep.vault.cluster_vault import ClusterVault
    from pgkeep.vault.vault import Vault


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a command: the cluster that it is about, and the settings that hold for it."""

    cluster_name: str
    settings: Resolved

    def vault(self) -> Vault:
        """Open the vault."""
        from pgkeep.vault.vault import Vault

        return Vault.open(self.vault_path)

    @property
    def vault_path(self) -> Path:
        """Where the vault is; raise UsageError when nothing says so."""
        return Path(self.settings.require("vault"))

    def cluster(self) -> ClusterVault:
        """Open what the vault holds of the cluster."""
        return self.vault().cluster(self.cluster_name)

    @property
    def spool(self) -> Path:
        """Where a receiver of the cluster has its spool on this host."""
        return Path(self.settings.require("spool_dir")) / self.cluster_name

    @property
    def receive_slot(self) -> str:
        """Name of the slot of a receiver of the cluster."""
        from pgkeep.server.slots import slot_of

        return self.settings.text("slot_name") or slot_of(self.cluster_name)

    @property
    def bin_dir(self) -> Path | None:
        """Where PostgreSQL's programs are; None to search."""
        found = self.settings.text("bin_dir")
        return Path(found) if found else None

    @property
    def workers(self) -> int:
        """How many threads read, compress and write."""
        return self.settings.number("parallel_jobs")

    def connection(self) -> ConnectionTarget:
        """Return how to reach the server."""
        from pgkeep.jobs.connection import connection_target

        return connection_target(self.settings)


def open_call(verb: str, cluster_name: str, values: dict[str, Any]) -> Call:
    """
    Return the settings of one call, from the flags, the configuration file and the defaults.

    Warnings are said at once. Without ``--config`` the environment's PGKEEP_CONFIG names the file, then the default
    path, which need not exist.
    """
    if cluster_name.startswith("-"):
        raise UsageError(f'not the name of a cluster: "{cluster_name}"')
    path = values.get("config") or os.environ.get("PGKEEP_CONFIG")
    settings = resolve(from_flags(values), verb=verb, config=read_config(path), cluster=cluster_name)
    for warning in settings.warnings:
        warn(warning)
    for name in sorted(NOT_BUILT.intersection(settings.given)):
        warn(f"{name} is set, but this version of pgkeep does not act on it")
    return Call(cluster_name, settings)
