"""Named tests of ``pgkeep receive``: whether WAL arrives now, and what to do where it does not."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import CheckFailed
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.named_tests import NamedTest, Warned
from pgkeep.jobs.receiving.judgement import SHIPPING_SECONDS, is_in_danger, kept_bytes
from pgkeep.jobs.recovery.windows import holes_without_base
from pgkeep.pg.standby_names import is_synchronous
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import find_slot
from pgkeep.spool.state import BACULA, ReceiverState, is_in_use, read_state
from pgkeep.vault.vault import ClusterVault

_SILENT_SECONDS = 60.0
_WARN_AT_PERCENT = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivingChecks:
    """
    The tests for one cluster.

    Attributes:
        cluster: Its name.
        spool: Where its receiver has its spool on this host.
        slot: The receiver's slot.
        window_seconds: How old unshipped WAL may be.
        server: Returns the connection, for tests that need ``server``.
        vault: Returns the cluster in the vault, for tests that need ``vault``.
    """

    cluster: str
    spool: Path
    slot: str
    window_seconds: float
    server: Callable[[], Server]
    vault: Callable[[], ClusterVault]

    def tests(self) -> Iterator[NamedTest]:
        """Yield the tests."""
        yield "receiver", self._receiver, ()
        yield "receive-slot", self._slot, ("server",)
        yield "shipping", self._shipping, ()
        yield "spool", self._spool, ("vault",)
        yield "holes", self._holes, ("vault",)
        yield "synchronous", self._synchronous, ("server",)

    def _state(self) -> ReceiverState | None:
        return read_state(self.spool)

    def _receiver(self) -> str:
        start = f"start it: systemctl start pgkeep-receive@{self.cluster}, or pgkeep receive {self.cluster}"
        state = self._state()
        if not is_in_use(self.spool):
            if state is None:
                # The service may be on another host: its slot tells whether it runs.
                raise Warned(f"no receiver has its spool at {self.spool}: only its slot is looked at", hint=start)
            raise CheckFailed(f"pgkeep receive does not run since {state.time}", hint=start)
        if state is None:
            return "it has just been started"
        age = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(state.time)).total_seconds()
        if age > _SILENT_SECONDS:
            raise CheckFailed(
                f"pgkeep receive runs, but has not said since {state.time} how it stands",
                hint="its log says more, such as a spool whose disk is full; if it hangs, restart it: nothing is lost",
            )
        if not state.is_streaming:
            reason = state.troubles.get("receiving") or "it connects"
            raise CheckFailed(f"pgkeep receive receives nothing: {reason}", hint="it tries again by itself")
        if "stalled" in state.troubles:
            raise CheckFailed(state.troubles["stalled"], hint="look at the network, and at the disk of the spool")
        return f"received up to {state.received_lsn or 'nothing yet'}, the server is at {state.server_lsn}"

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

    def _shipping(self) -> str:
        state = self._state()
        if state is None:
            return "no receiver has its spool on this host"
        if not state.unshipped_since:
            return (
                f"all that was received is in {state.ships_to}, up to {state.shipped_lsn or state.received_lsn or '?'}"
            )
        age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(state.unshipped_since)
        if age.total_seconds() > self.window_seconds + SHIPPING_SECONDS:
            raise CheckFailed(
                f"WAL from {state.shipped_lsn or 'the beginning'} to {state.received_lsn} has waited for "
                f"{dt.timedelta(seconds=round(age.total_seconds()))} to get into {state.ships_to}, "
                f"expected {self.window_seconds:g} s",
                hint=state.troubles.get("shipping") or self._shipping_hint(state),
            )
        return f"shipped up to {state.shipped_lsn or '?'}, received up to {state.received_lsn}"

    def _shipping_hint(self, state: ReceiverState) -> str:
        if state.ships_to == BACULA:
            return (
                "see why the job of mode cdp does not run or does not end; cdp_window_seconds must not be less than "
                "the time between two of them"
            )
        return f"start pgkeep receive {self.cluster}: it ships what is left"

    def _spool(self) -> str:
        state = self._state()
        if state is None:
            return "no receiver has its spool on this host"
        segment = self.vault().archive.segment_size
        room = os.statvfs(self.spool)
        free = room.f_bavail * room.f_frsize
        used = f"{size_text(state.spool_bytes)} of {size_text(state.spool_max_bytes)} in {self.spool}"
        if state.spool_bytes + segment > state.spool_max_bytes:
            raise CheckFailed(
                f"the spool is full: {used}",
                hint=f"mend what keeps WAL from getting into {state.ships_to}; or raise spool_max",
            )
        if free < segment:
            raise CheckFailed(
                f"the disk of the spool is full: {size_text(free)} free in {self.spool}, expected {size_text(segment)}",
                hint="make room there: until then nothing is received, and the slot keeps WAL on the server",
            )
        if 100 * state.spool_bytes >= _WARN_AT_PERCENT * state.spool_max_bytes:
            raise Warned(f"the spool fills up: {used}", hint="mend what keeps the vault from taking WAL")
        return used

    def _holes(self) -> str:
        holes = holes_without_base(self.vault())
        if holes:
            hole = holes[-1]
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
