"""``pgkeep receive``."""

from __future__ import annotations

import dataclasses
import queue
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from types import FrameType

from pgkeep.cli.door import Call
from pgkeep.cli.output import fail, say, warn
from pgkeep.errors import PgkeepError, UsageError, error_text
from pgkeep.jobs.receiving.readiness import notify
from pgkeep.jobs.receiving.service import ReceiveRequest, ReceiveService
from pgkeep.jobs.receiving.source import SourceOptions, identity_of

_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 1.0


def run(calls: Sequence[Call]) -> None:
    """
    Receive the WAL of the clusters of *calls* until a signal ends it, or all of them have failed.

    Raises:
        PgkeepError: What ended the first cluster that failed.
    """
    if len({call.cluster_name for call in calls}) != len(calls):
        raise UsageError("a cluster is named twice")
    with ExitStack() as stack:
        reception = _Reception(calls, stack)
        for number in _ENDING_SIGNALS:
            signal.signal(number, reception.end)
        reception.run()


class _Reception:
    """The services of all clusters, and what is told to whoever started them."""

    def __init__(self, calls: Sequence[Call], stack: ExitStack) -> None:
        # Not an Event: a handler that sets one while the thread it interrupts enters its wait would wait for itself.
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_ending = False
        self._silent = {call.cluster_name for call in calls}
        self._errors: list[PgkeepError] = []
        self._services = {
            call.cluster_name: ReceiveService(
                _request(call, stack),
                say=partial(_tell, say, call.cluster_name),
                warn=partial(_tell, warn, call.cluster_name),
                streams=partial(self._streams, call.cluster_name),
                ended=partial(self._news.put, None),
            )
            for call in calls
        }

    def run(self) -> None:
        """Serve until ``end`` is called or nothing is left to serve; raise the first error."""
        # A signal that another thread takes wakes nobody here: all threads but this one are to leave them alone.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
        try:
            for service in self._services.values():
                service.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)
        # Ready without a server: a machine that boots must not wait for another one.
        notify("READY=1", f"STATUS=connecting to the servers of {', '.join(self._silent)}")
        while self._services and not self._is_ending:
            # Not without end: a signal that comes just before the wait begins would be looked at when that has ended.
            with suppress(queue.Empty):
                self._news.get(timeout=_LOOK_SECONDS)
            for name in [name for name, service in self._services.items() if service.has_ended]:
                if not self._is_ending:
                    self._finish(name, self._services.pop(name))
        notify("STOPPING=1")
        for service in self._services.values():
            service.stop()
        for name, service in self._services.items():
            self._finish(name, service)
        if self._errors:
            raise self._errors[0]

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """End everything in order; for signals, of which the second one does not wait for the tidying up."""
        for number in _ENDING_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self._is_ending = True
        self._news.put(None)

    def _streams(self, name: str) -> None:
        self._silent.discard(name)
        if not self._silent:
            notify(f"STATUS=receiving {', '.join(self._services)}")

    def _finish(self, name: str, service: ReceiveService) -> None:
        try:
            service.finish()
            say(f"{name}: stopped")
        except Exception as error:  # noqa: BLE001 - a fault in one service must not take the others with it
            told = _named(name, error)
            if self._services:
                # The others go on.
                fail(told)
            self._errors.append(told)


def _named(name: str, error: Exception) -> PgkeepError:
    """Return *error* with the name of the cluster that it is about."""
    if isinstance(error, PgkeepError):
        return type(error)(f"{name}: {error.message}", hint=error.hint)
    return PgkeepError(f"{name}: {error_text(error)}")


def _tell(how: Callable[[str], None], name: str, text: str) -> None:
    how(f"{name}: {text}")


def _request(call: Call, stack: ExitStack) -> ReceiveRequest:
    settings = call.settings
    cluster = stack.enter_context(call.cluster()) if settings.get("spool_for") == "vault" else None
    slot = call.receive_slot
    # One name for the slot and for synchronous_standby_names.
    target = dataclasses.replace(call.connection(), application_name=slot)
    if cluster is not None:
        identity = (cluster.archive.system_identifier, cluster.archive.segment_size)
    else:
        identity = identity_of(call.spool, target)
    return ReceiveRequest(
        cluster=cluster,
        options=SourceOptions(
            target=target,
            slot=slot,
            allow_unbounded_slot=settings.flag("allow_unbounded_slot"),
            system_identifier=identity[0],
            segment_size=identity[1],
        ),
        spool_dir=call.spool,
        spool_bytes=settings.number("spool_max"),
        window_seconds=settings.number("cdp_window_seconds"),
        compression_level=settings.number("zstd_level"),
        slot_wal_max=settings.number("slot_wal_max"),
    )
