"""The slot that keeps WAL at the server from one job to the next."""

from __future__ import annotations

from pgkeep.errors import ServerError, SettingsError
from pgkeep.server.connection import Server
from pgkeep.server.slots import ReplicationSlot, check_slot, check_slot_is_bounded, create_physical_slot, find_slot


def make_lasting_slot(server: Server, name: str, *, allow_unbounded: bool) -> ReplicationSlot | None:
    """
    Make the physical slot *name*, which keeps WAL between jobs; return it when it was there.

    Raises:
        SettingsError: It is a logical one; or nothing bounds what it keeps, and that is no wish.
        ServerError: It keeps nothing, or has lost what it kept.
    """
    slot = find_slot(server, name)
    if slot is not None and not slot.is_physical:
        raise SettingsError(f'slot "{slot.name}" is a logical one, expected a physical slot')
    if slot is not None:
        check_slot(server, slot.name)
    if slot is not None and slot.restart_lsn is None:
        raise ServerError(
            f'slot "{slot.name}" keeps no WAL: it was made without reserving any',
            hint=f"drop it (SELECT pg_drop_replication_slot('{slot.name}')): the next backup makes one that does",
        )
    check_slot_is_bounded(server, name, allow_unbounded=allow_unbounded)
    if slot is None:
        create_physical_slot(server, name)
    return slot
