"""Settings of the server that was backed up, named once, by what a restore needs them for."""

from __future__ import annotations

REPLAY_MINIMUMS = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
"""
A hot standby, which every server that replays for pgkeep is, must have them at least as high as its primary had.

``CheckRequiredParameterValues`` in ``src/backend/access/transam/xlogrecovery.c``.
"""

STARTING_SETTINGS = frozenset({*REPLAY_MINIMUMS, "wal_level", "shared_preload_libraries", "port"})
"""What a server that lost its ``postgresql.conf`` needs to replay and to be found again."""
