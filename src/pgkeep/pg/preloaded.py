"""
What a restored server preloads while nobody may notice it: ``shared_preload_libraries`` behind the fence.

Many extensions start background workers that act by themselves as soon as recovery is over: jobs that are due, workers
that call other servers, statistics that are sent away. But a library may also bring a resource manager for WAL of its
own (PostgreSQL 15), without which replay stops. So libraries that are known for such workers, and known to write no WAL
of their own, are left out; a library that the cluster's own SQL needs is loaded with its workers held back by its own
settings; and whatever is not known is loaded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_WITH_WORKERS = frozenset(
    {
        "bg_mon",  # listens on a port of its own
        "bdr",
        "citus",  # finishes distributed transactions on other nodes
        "pg_cron",
        "pg_failover_slots",  # connects to the primary
        "pg_keeper",
        "pg_net",  # sends requests that wait in a table
        "pg_partman_bgw",
        "pg_squeeze",
        "pg_statsinfo",
        "pg_task",
        "pgautofailover",
        "pglogical",
        "powa",
        "repmgr",
        "spock",
        "vectorize",
    }
)
_BRAKES = {
    # Its functions refuse to work in a server that did not preload it, and hypertables cannot be read without them.
    "timescaledb": {"timescaledb.max_background_workers": "0", "timescaledb.telemetry_level": "off"},
}
_ELEMENT = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"]*?))\s*(?:,|$)')


@dataclass(frozen=True, slots=True)
class FencedLibraries:
    """
    What becomes of ``shared_preload_libraries``.

    Attributes:
        left_out: Names of libraries, as they stood in the setting.
        settings: For the server's command line; empty when the setting may stay as it is.
    """

    left_out: tuple[str, ...]
    settings: dict[str, str]


def fence_libraries(configured: str) -> FencedLibraries:
    """Return what to load of *configured*, the value of ``shared_preload_libraries``."""
    elements = parse_library_list(configured)
    kept = [element for element in elements if library_name(element) not in _WITH_WORKERS]
    settings: dict[str, str] = {}
    if len(kept) < len(elements):
        settings["shared_preload_libraries"] = render_library_list(kept)
    for element in kept:
        settings |= _BRAKES.get(library_name(element), {})
    return FencedLibraries(tuple(element for element in elements if element not in kept), settings)


def library_name(element: str) -> str:
    """Return the name of a library without its place and its ending: ``$libdir/pg_cron.so`` is ``pg_cron``."""
    return element.rpartition("/")[2].removesuffix(".so")


def parse_library_list(text: str) -> list[str]:
    """
    Return the elements of a list of libraries.

    Source:
        PostgreSQL ``src/backend/utils/adt/varlena.c``, ``SplitDirectoriesString``.
    """
    found = []
    position = 0
    while position < len(text):
        match = _ELEMENT.match(text, position)
        if match is None:
            # The server would not take it either, and says so better.
            return [text]
        element = match[1].replace('""', '"') if match[1] is not None else match[2]
        if element:
            found.append(element)
        position = match.end()
    return found


def render_library_list(elements: list[str]) -> str:
    """Return *elements* as ``parse_library_list`` and the server read them."""
    return ", ".join('"' + element.replace('"', '""') + '"' for element in elements)
