"""The chain that a block-level backup is restored from: itself and every backup below it, down to the Full."""

from __future__ import annotations

from collections.abc import Iterable

from pgkeep.errors import RestoreRefused
from pgkeep.pg.backup_label import parse_backup_label
from pgkeep.pg.lsn import Lsn
from pgkeep.streams.record import RecordHead

MODE = "pitr_block"
_HINT = "restore an older backup, whose chain is whole; and make a Full"


def chain_of(base: RecordHead, heads: Iterable[RecordHead], *, verb: str = "restored") -> tuple[RecordHead, ...]:
    """
    Return what *base* is restored from, the Full first and *base* last; nothing for a mode without chains.

    Args:
        base: The backup that is restored.
        heads: Of every backup at hand.
        verb: What is to be done with it, for messages.

    Raises:
        RestoreRefused: A member is missing, or is not the one that the next was built on.
    """
    if base.mode != MODE:
        return ()
    known = {head.backup_id: head for head in heads if head.mode == MODE}
    chain = [base]
    while chain[0].base:
        newer, older = chain[0], known.get(chain[0].base)
        if older is None:
            raise RestoreRefused(
                f"backup {base.backup_id} cannot be {verb}: backup {newer.backup_id} builds on backup {newer.base}, "
                "which is not there",
                hint=_HINT,
            )
        _check_link(older, newer)
        chain.insert(0, older)
    return tuple(chain)


def _check_link(older: RecordHead, newer: RecordHead) -> None:
    if older.backup_id >= newer.backup_id or older.system_identifier != newer.system_identifier:
        raise RestoreRefused(
            f"backup {newer.backup_id} cannot build on backup {older.backup_id} of system identifier "
            f"{older.system_identifier}, expected an older one of {newer.system_identifier}",
            hint=_HINT,
        )
    if not newer.backup_label:
        return
    label = parse_backup_label(newer.backup_label)
    if label.incremental_from_lsn != Lsn.parse(older.start_lsn):
        raise RestoreRefused(
            f"backup {newer.backup_id} builds on one that starts at {label.incremental_from_lsn}, "
            f"but backup {older.backup_id} starts at {older.start_lsn}",
            hint=_HINT,
        )


def expected_bytes(chain: Iterable[RecordHead], full_bytes: int) -> int:
    """
    Return about how much room the restored cluster needs at most while it is rolled forward.

    Args:
        chain: As ``chain_of`` returns it.
        full_bytes: What the files of the Full add up to.
    """
    sizes = [sum(database.size_bytes for database in head.databases) for head in chain]
    return full_bytes + max(0, max(sizes) - sizes[0])
