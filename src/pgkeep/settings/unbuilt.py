"""Parameters that the table has and that nothing acts on yet."""

from __future__ import annotations

NOT_BUILT = frozenset(
    {
        "wal_segment_overlap",
    }
)
"""Where one is set, both doors say so; the command line has further ones that only the other door acts on."""
