"""``pgkeep init``."""

from __future__ import annotations

import os

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, say
from pgkeep.errors import VaultError
from pgkeep.jobs.program import archive_words, server_command
from pgkeep.pg.recovery import render_setting
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.vault.cluster_vault import ClusterIdentity
from pgkeep.vault.layout import VAULT_FILE
from pgkeep.vault.vault import Vault


def run(call: Call, *, new_system: bool, as_json: bool) -> None:
    """Make the vault where there is none, and add the cluster that the server belongs to."""
    path = call.vault_path
    with Server.open(call.connection()) as server:
        identity = queries.identify(server)
        cluster_identity = ClusterIdentity(
            system_identifier=str(int(identity.system_identifier)),
            major=server.capabilities.major,
            block_size=int(queries.setting(server, "block_size") or 8192),
            wal_segment_size=queries.wal_segment_size(server),
        )
    vault = Vault.open(path) if (path / VAULT_FILE).exists() else Vault.create(path)
    moved = ""
    if call.cluster_name in vault.clusters():
        known = vault.cluster(call.cluster_name)
        if known.identity.system_identifier == cluster_identity.system_identifier:
            say(f'the vault at {path} already holds cluster "{call.cluster_name}", nothing to do')
            _report(call, cluster_identity, moved, as_json=as_json)
            return
        if not new_system:
            raise VaultError(
                f'cluster "{call.cluster_name}" in the vault has system identifier '
                f"{known.identity.system_identifier}, the server has {cluster_identity.system_identifier}",
                hint="use another name, or --new-system to keep the old one under a name of its own",
            )
        moved = vault.rename_cluster(call.cluster_name, f"{call.cluster_name}.{known.identity.system_identifier}")
        say(f'the backups of the old cluster are now called "{moved}"')
    vault.create_cluster(call.cluster_name, cluster_identity)
    say(f'the vault at {path} now holds cluster "{call.cluster_name}"')
    say("to archive WAL as it is written, set in postgresql.conf:")
    say("    archive_mode = on")
    words = [*archive_words(), "archive-push", f"--vault={path.absolute()}", f"--cluster={call.cluster_name}"]
    say(f"    {render_setting('archive_command', server_command(words, '%p')).rstrip()}")
    say(f"then run: pgkeep check {call.cluster_name}")
    _report(call, cluster_identity, moved, as_json=as_json)


def _report(call: Call, identity: ClusterIdentity, moved: str, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "vault": os.fspath(call.vault_path),
                "cluster": call.cluster_name,
                "system_identifier": identity.system_identifier,
                "major": identity.major,
                "wal_segment_size": identity.wal_segment_size,
                "renamed_old_cluster": moved,
            }
        )
