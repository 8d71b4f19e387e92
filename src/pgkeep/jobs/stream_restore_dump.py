"""Dumps of a stream into databases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from pgkeep.errors import RestoreRefused
from pgkeep.jobs.stream_restore import ArrivingItem
from pgkeep.jobs.stream_restore_plan import Selection
from pgkeep.settings import Resolved
from pgkeep.streams.record import RecordHead, RecordTail


class DumpStream(Protocol):
    """A restore of dumps that passed phase 1."""

    def lines(self) -> Iterator[str]:
        """Yield the plan for people."""
        ...

    def restore(
        self, arriving: Iterable[ArrivingItem], *, say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        """Bring the databases back."""
        ...


def prepare_dump(
    heads: Sequence[tuple[RecordHead, RecordTail]],
    selection: Selection | None,
    *,
    root: str,
    settings: Resolved,
    warn: Callable[[str], None],
) -> DumpStream:
    """Phase 1."""
    raise RestoreRefused("dumps are restored into files only", hint="give where=/directory")
