"""Items of a backup as a restore of dumps asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pgkeep.streams.item import DetachedItem, StreamedItem

Select = Callable[[str], bool]
Supply = Callable[[Select], Iterable[StreamedItem | DetachedItem]]
"""Gives a backup's items whose virtual path is selected, digests checked; may be called several times."""
