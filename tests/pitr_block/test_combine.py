"""Chains restored by PostgreSQL's own pg_combinebackup, for who prefers it: the same rows, and nothing left beside."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.lab.server_user import server_user
from tests.lab.smallfs import small_filesystem
from tests.pitr_block.scene import backup
from tests.pitr_block.test_restore import backup_id, begin, live, make_tablespace
from tests.restore.keeper import Keeper
from tests.survive.job import Job

pytestmark = pytest.mark.pg(">= 17")

COMBINE = "--combine=pg_combinebackup"
MIB = 1 << 20
PROGRAM = "pg_combinebackup"


def programs(keeper: Keeper, name: str, *, own: str | None) -> Path:
    """Make a directory with the server's programs but for pg_combinebackup, which is the script *own* or none."""
    directory = keeper.directory / name
    directory.mkdir()
    server_user().own(directory)
    for program in keeper.cluster.installation.bin_dir.iterdir():
        if program.name != PROGRAM:
            (directory / program.name).symlink_to(program)
    if own is not None:
        (directory / PROGRAM).write_text(f"#!/bin/sh\n{own}\n")
        (directory / PROGRAM).chmod(0o755)
    return directory


def test_combined_chain_is_the_cluster_and_leaves_nothing_beside(keeper: Keeper) -> None:
    """Refused without program or room, cleaned up after a failure and a kill, and then every row comes back."""
    ledger = begin(keeper)
    full = backup(keeper, "full").report
    ids, size = [str(full["backup_id"])], int(full["bytes"])
    space = make_tablespace(keeper, "aside")
    live(keeper, ledger, 1)
    mark = ledger.mark("end")
    ids.append(backup_id(keeper, "incremental"))
    place = keeper.directory / "combined"
    where = [f"--pgdata-dir={place}", f"--tablespace-map={space}:{keeper.directory}/mapped"]

    none = programs(keeper, "none", own=None)
    lacking = keeper.run("restore", COMBINE, *where, f"--bin-dir={none}")
    version = lacking.refusal[0].rpartition(" ")[2]
    assert (lacking.status, lacking.refusal) == (
        4,
        [
            f"error: no program {PROGRAM} in {none}, which has PostgreSQL {version}",
            f"hint: install the package that brings {PROGRAM}, or name another directory with bin_dir",
        ],
    )
    # Room for the cluster and for what must be left of the disk, but not for the chain beside it.
    with small_filesystem(size // MIB + 64 + 16) as small:
        maps = f"--tablespace-map={space}:{small}/mapped"
        status, [error] = keeper.refuse(f"--pgdata-dir={small}/data", maps, COMBINE)
        assert status == 8
        assert error.startswith(f"error: not enough space for the restore on the file system of {small}: ")
    assert not list(keeper.directory.glob("combined*"))

    fails = programs(keeper, "fails", own='mkdir "$3"; echo "pg_combinebackup: error: no luck" >&2; exit 1')
    failed = keeper.run("restore", COMBINE, *where, f"--bin-dir={fails}", "--no-start")
    assert failed.status == 4
    assert failed.refusal == [
        f"error: {PROGRAM} of {', '.join(ids)} ended with status 1: no luck",
        "hint: restore without --combine: pgkeep itself rolls the chain forward, in place",
    ]
    assert not (keeper.directory / "combined.pgkeep-combine").exists()

    bin_dir = f"--bin-dir={keeper.cluster.installation.bin_dir}"
    staging = keeper.directory / "combined.pgkeep-combine"
    with Job(keeper, "restore", COMBINE, *where, bin_dir, "--no-start", at=("KILL", 1, "os.mkdir", ids[0])) as job:
        assert job.end().status == -signal.SIGKILL
    assert staging.is_dir()

    restored = keeper.restore(COMBINE, where[1], to="combined")
    program = keeper.cluster.installation.program(PROGRAM)
    assert f"  combined by {program}: {', '.join(ids)}" in restored.outcome.lines
    assert f"{PROGRAM} combines 2 backups" in restored.outcome.lines
    assert not staging.exists()
    assert (restored.data_directory / f"pg_tblspc/{space}").readlink() == keeper.directory / "mapped"
    restored.assert_is_at(mark)
