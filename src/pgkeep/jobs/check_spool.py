"""Named tests of a spool on this host: whether its receiver runs, and whether WAL leaves it."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import CheckFailed
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.named_tests import NamedTest, Warned
from pgkeep.jobs.receiving.judgement import SHIPPING_SECONDS, unshipped_text
from pgkeep.spool.reading import SpoolView
from pgkeep.spool.state import BACULA, ReceiverState, is_in_use, read_state

_SILENT_SECONDS = 60.0
_WARN_AT_PERCENT = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolChecks:
    """
    The tests for the spool of one cluster.

    Attributes:
        cluster: Its name.
        spool: Where its receiver has its spool on this host.
        window_seconds: How old unshipped WAL may be; None for what the receiver itself was told.
    """

    cluster: str
    spool: Path
    window_seconds: float | None = None

    def tests(self) -> Iterator[NamedTest]:
        """Yield the tests."""
        yield "receiver", self._receiver, ()
        yield "shipping", self._shipping, ()
        yield "spool", self._spool, ()

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

    def _shipping(self) -> str:
        state = self._state()
        if state is None:
            return "no receiver has its spool on this host"
        if not state.unshipped_since:
            return (
                f"all that was received is in {state.ships_to}, up to {state.shipped_lsn or state.received_lsn or '?'}"
            )
        window = self.window_seconds if self.window_seconds is not None else state.window_seconds
        age = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(state.unshipped_since)).total_seconds()
        if age > window + SHIPPING_SECONDS:
            raise CheckFailed(
                unshipped_text(
                    state.shipped_lsn, state.received_lsn, age, ships_to=state.ships_to, window_seconds=window
                ),
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
        spool = SpoolView.found(self.spool)
        segment = spool.segment_size if spool is not None else 0
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
