"""
The two archive commands with explicit options, for tests of the client and the service.

``archive-push|archive-get [--for-client=SOCKET] --archive=DIR --system=N --size=N [--plan=FILE] [--idle=S] …``
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pgkeep.errors import PgkeepError
from pgkeep.jobs.archive.get import ABSENT, ABSENT_FOR_CLIENT, archive_get, failure_status
from pgkeep.jobs.archive.push import DEFAULT_AHEAD, archive_push
from pgkeep.jobs.archive.service import service_command
from pgkeep.jobs.archive.service_socket import start_service
from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.pg.lsn import SystemIdentifier
from pgkeep.vault.wal_archive import WalArchive


def main() -> int:
    """Run one command as the command line does."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["archive-push", "archive-get"])
    parser.add_argument("--for-client", type=Path)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--system", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--plan", type=Path)
    parser.add_argument("--idle", type=float, default=20)
    parser.add_argument("--log", type=Path)
    parser.add_argument("operands", nargs="+")
    options = parser.parse_args()
    if options.log:
        with options.log.open("a") as file:
            file.write(f"{options.verb} {options.operands[0]}\n")
    archive = WalArchive(options.archive, system_identifier=SystemIdentifier(options.system), segment_size=options.size)
    is_get = options.verb == "archive-get"
    if options.for_client:
        # It comes up while this process does the work.
        start_service(
            options.for_client,
            service_command(archive, options.for_client, plan_path=options.plan, idle_timeout_seconds=options.idle),
        )
    try:
        status = 0
        if is_get:
            plan = WalPlan.read(options.plan) if options.plan else None
            name, target = options.operands
            if not archive_get(archive, name, Path(target), plan=plan):
                status = ABSENT_FOR_CLIENT if options.for_client else ABSENT
        else:
            archive_push(archive, Path(options.operands[0]), ahead=1 if options.for_client else DEFAULT_AHEAD)
    except PgkeepError as error:
        sys.stderr.write(f"pgkeep: {error}\n")
        return failure_status(error) if is_get else error.exit_status
    return status


if __name__ == "__main__":
    sys.exit(main())
