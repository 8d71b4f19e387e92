"""Progress on a terminal: what passed so far, and how fast."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pgkeep.cli.output import progress_is_shown
from pgkeep.jobs.amount import size_text
from pgkeep.streams.item import Item, UnchangedItem
from pgkeep.streams.record import RecordHead, RecordTail

if TYPE_CHECKING:
    from rich.status import Status

    from pgkeep.vault.sink import VaultSink

_UPDATE_SECONDS = 0.1


class Meter:
    """A line on the terminal that says how much has passed; nothing where nobody watches."""

    def __init__(self, doing: str, *, total_bytes: int = 0) -> None:
        self._doing = doing
        self._total_bytes = total_bytes
        self._files = 0
        self._bytes = 0
        self._begin = time.monotonic()
        self._next = 0.0
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if progress_is_shown():
            from rich.console import Console

            self._status = Console(stderr=True).status(self._doing)
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def add(self, size: int) -> None:
        """Count one more file of *size* bytes."""
        self._files += 1
        self._bytes += max(0, size)
        now = time.monotonic()
        if self._status is None or now < self._next:
            return
        self._next = now + _UPDATE_SECONDS
        rate = self._bytes / max(0.001, now - self._begin)
        total = f" of {size_text(self._total_bytes)}" if self._total_bytes else ""
        self._status.update(
            f"{self._doing}: {self._files:,} files, {size_text(self._bytes)}{total}, {size_text(int(rate))}/s"
        )


class ProgressSink:
    """The vault's sink with a meter in front."""

    def __init__(self, sink: VaultSink, doing: str = "backing up") -> None:
        self._sink = sink
        self._meter = Meter(doing)

    def __enter__(self) -> Self:
        self._sink.__enter__()
        self._meter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.__exit__(kind, error, trace)
        self._sink.__exit__(kind, error, trace)

    def accept(self, item: Item) -> None:
        """Pass *item* on."""
        if not isinstance(item, UnchangedItem):
            self._meter.add(item.header.size)
        self._sink.accept(item)

    def commit(self, head: RecordHead) -> tuple[RecordHead, RecordTail]:
        """Record the backup."""
        return self._sink.commit(head)
