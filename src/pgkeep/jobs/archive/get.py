"""
Deliver one file of the archive to a server that replays WAL.

PostgreSQL reads the exit status of ``restore_command`` so: 0, the file is there; 1 to 125, no such file, perhaps the
end of the WAL, and recovery may end; above 125, stop (``RestoreArchivedFile`` in ``xlogarchive.c``). So 1 is said only
for a file that is proved absent and that no plan needs. Whatever else happens is above 125, and stays clear of 128 plus
a signal number, of which 143 would look like a shutdown request.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pgkeep.errors import ArchiveError, PgkeepError
from pgkeep.jobs.archive.push import check_cluster
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.pg.wal import PARTIAL_SUFFIX, is_segment_name
from pgkeep.vault.wal_archive import WalArchive

DELIVERED = 0
ABSENT = 1
ABSENT_FOR_CLIENT = 100
"""Said instead of ABSENT to the small client: an interpreter that breaks down says 1 as well, but never 100."""

_FAILED_BASE = 200


def archive_get(archive: WalArchive, name: str, target: Path, *, plan: WalPlan | None = None) -> bool:
    """
    Deliver the file *name* at *target*, whole or not at all.

    Args:
        archive: Where from.
        name: As ``%f`` gives it.
        target: As ``%p`` gives it.
        plan: What the recovery needs; None when nobody knows.

    Returns:
        False when the file is proved absent and no plan needs it: status 1, the end of the WAL.

    Raises:
        PgkeepError: Anything else; ``failure_status`` has the exit status.
    """
    check_request(archive, target, plan)
    return find_held(archive, name, plan, lambda held_name: archive.get(held_name, target))


def check_request(archive: WalArchive, target: Path, plan: WalPlan | None) -> None:
    """Raise ArchiveError when the data directory or the plan are of another cluster than *archive* is for."""
    check_cluster(archive, target)
    if plan is not None and plan.system_identifier != archive.system_identifier:
        raise ArchiveError(
            f"the restore plan is for system identifier {plan.system_identifier}, "
            f"the archive for {archive.system_identifier}"
        )


def find_held(archive: WalArchive, name: str, plan: WalPlan | None, deliver: Callable[[str], bool]) -> bool:
    """
    Call *deliver* with the name under which the archive holds *name*, until it returns true.

    That is *name* itself, then its partial form where the plan says so. Returns False when all are absent and the
    plan, if any, does not need the file, or when the plan leaves it out.
    """
    if plan is not None and plan.excludes(name):
        return False
    if deliver(name):
        return True
    if plan is not None:
        if is_segment_name(name) and name in plan.partials and deliver(name + PARTIAL_SUFFIX):
            return True
        if plan.needs(name):
            raise ArchiveError(
                f"{name} is missing from the archive {archive.root}, and the restore plan needs it",
                hint="recovery must not end here: find the file, or plan a restore to an earlier moment",
            )
    return False


def failure_status(error: BaseException) -> int:
    """Return the exit status of ``archive-get`` for *error*: above 125, and not that of any signal."""
    return _FAILED_BASE + (error.exit_status if isinstance(error, PgkeepError) else PgkeepError.exit_status)
