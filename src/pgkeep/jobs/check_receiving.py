"""Named tests of ``pgkeep receive``: whether WAL arrives now, and what to do where it does not."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pgkeep.errors import CheckFailed, VaultBusy
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.check_spool import SpoolChecks
from pgkeep.jobs.named_tests import NamedTest, Warned
from pgkeep.jobs.receiving.judgement import is_in_danger, kept_bytes
from pgkeep.jobs.recovery.windows import find_holes
from pgkeep.pg.standby_names import is_synchronous
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import find_slot
from pgkeep.spool.state import spooled_names
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.wal_holes import read_holes
from pgkeep.vault.wal_view import WalView


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivingChecks(SpoolChecks):
    """
    The tests for one cluster of a vault: those of its spool, and what server and vault say.

    Attributes:
        slot: The receiver's slot.
        server: Returns the connection, for tests that need ``server``.
        vault: Returns the cluster in the vault, for tests that need ``vault``.
    """

    slot: str
    server: Callable[[], Server]
    vault: Callable[[], ClusterVault]

    def tests(self) -> Iterator[NamedTest]:
        """Yield the tests."""
        receiver, *others = SpoolChecks.tests(self)
        yield receiver
        yield "receive-slot", self._slot, ("server",)
        yield from others
        yield "holes", self._holes, ("vault",)
        yield "synchronous", self._synchronous, ("server",)

    def _slot(self) -> str:
        server = self.server()
        slot, end = find_slot(server, self.slot), queries.flushed_lsn(server)
        if slot is None:
            raise CheckFailed(
                f'the server has no slot "{self.slot}": it keeps no WAL for pgkeep receive',
                hint=f"start pgkeep receive {self.cluster}, which makes it",
            )
        kept = kept_bytes(slot, end)
        keeps = f"keeps {size_text(kept)} of WAL on the server" if kept is not None else "keeps no WAL"
        if slot.is_lost:
            raise CheckFailed(
                f'slot "{self.slot}" is lost: the server has given up WAL that was not received',
                hint=f"start pgkeep receive {self.cluster}, which makes it anew; then make a base backup, and raise "
                "max_slot_wal_keep_size",
            )
        if slot.wal_status == "unreserved":
            raise CheckFailed(
                f'slot "{self.slot}" is unreserved and {keeps}: it is lost at the next checkpoint',
                hint=f"raise max_slot_wal_keep_size now, and see that pgkeep receive {self.cluster} catches up",
            )
        if not slot.is_active:
            raise CheckFailed(
                f'slot "{self.slot}" is inactive and {keeps}',
                hint=f"start pgkeep receive {self.cluster}; if it is not wanted any more, drop the slot: "
                f"SELECT pg_drop_replication_slot('{self.slot}')",
            )
        if is_in_danger(slot, end):
            raise Warned(
                f'slot "{self.slot}" {keeps}, and loses WAL after another {size_text(slot.safe_wal_bytes or 0)}',
                hint="raise max_slot_wal_keep_size",
            )
        return f'"{self.slot}" is active and {keeps}'

    def _holes(self) -> str:
        cluster = self.vault()
        try:
            # What is being deleted meanwhile would look like a hole.
            with cluster.lock(shared=True, verb="check"), WalView(cluster.archive) as view:
                heads = [head for head in cluster.scan_backups() if isinstance(head, RecordHead)]
                recorded, spooled = read_holes(cluster.directory), spooled_names(self.spool)
                holes = find_holes(heads, view, recorded, spooled, now=dt.datetime.now(dt.UTC))
        except VaultBusy as error:
            raise Warned(f"not looked for holes: {error.message}", hint=error.hint) from error
        is_open = [hole for hole in holes if hole.is_open]
        if is_open:
            hole = is_open[-1]
            raise CheckFailed(
                f"WAL from {hole.start} to {hole.stop} was never received, and there is no base backup behind it: no "
                "moment since then can be recovered",
                hint=f"pgkeep backup {self.cluster} --level=full",
            )
        return "none without a base backup behind it"

    def _synchronous(self) -> str:
        server = self.server()
        names = queries.setting(server, "synchronous_standby_names") or ""
        if not is_synchronous(self.slot, names):
            return "commits do not wait for pgkeep"
        applying = [
            *(
                ["the server's configuration"]
                if queries.setting(server, "synchronous_commit") == "remote_apply"
                else []
            ),
            *queries.who_waits_for_apply(server),
        ]
        if applying:
            raise CheckFailed(
                f'synchronous_standby_names has "{self.slot}", and synchronous_commit is remote_apply for '
                f"{', '.join(applying)}: such commits wait for ever, since a receiver applies nothing",
                hint="set synchronous_commit to on, or remote_write",
            )
        return f'commits may wait for "{self.slot}"'
