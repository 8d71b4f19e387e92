"""Merge a chain of block-level backups into a Full, in the vault and without a server."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from pgkeep.jobs.merging.chain import chain_to_merge, merged_id
from pgkeep.jobs.merging.source import MergedSource
from pgkeep.streams.record import RecordHead, RecordTail
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.sink import VaultSink
from pgkeep.vault.stored_chain import StoredChain

if TYPE_CHECKING:
    # It brings the libraries for servers, and a merge needs none.
    from pgkeep.jobs.backup import RecordingSink

Watch: TypeAlias = "Callable[[VaultSink], AbstractContextManager[RecordingSink]]"
"""Puts something that watches in front of a sink; leaving it leaves the sink."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The record of a merged backup: its head and tail, and the ids of the chain that it was made of."""

    head: RecordHead
    tail: RecordTail
    chain: tuple[str, ...]


def merge(
    cluster: ClusterVault,
    *,
    backup_id: str = "",
    workers: int,
    compression_level: int,
    say: Callable[[str], object],
    watch: Watch,
) -> Merged:
    """
    Make a Full of a chain: what a Full would have held that was made when the newest member was.

    Args:
        cluster: Where the chain is, and the Full will be; the chain is left as it is.
        backup_id: The newest member; empty for the newest backup of the mode.
        workers: Threads that compress and write.
        compression_level: Of zstd.
        say: Takes lines of the log.
        watch: Is told what passes.

    Raises:
        VaultBusy: A backup is being written, or something is being deleted.
        VaultError: There is no such backup, or the vault cannot be written.
        BackupUnusable: There is nothing to merge, or a member is missing or damaged; there is no new backup then.
    """
    # Locked before anything is chosen: the chain must not expire meanwhile, nor another job take the same id.
    with cluster.lock_for_backup(verb="merge") as locks:
        heads = chain_to_merge(cluster, backup_id)
        chain = tuple(head.backup_id for head in heads)
        leftovers = cluster.leftovers()
        made = merged_id(heads[-1], [one for one in cluster.backup_ids() if one not in leftovers])
        say(f"merging {len(chain)} backups into {made}: {', '.join(chain)}")
        with (
            StoredChain(cluster, chain) as stored,
            MergedSource(stored, archive=cluster.archive, index=cluster.file_index, backup_id=made) as source,
            watch(
                cluster.begin_backup(made, locks=locks, workers=workers, compression_level=compression_level)
            ) as sink,
        ):
            for item in source.items():
                sink.accept(item)
            head, tail = sink.commit(source.finish())
    return Merged(head, tail, chain)
