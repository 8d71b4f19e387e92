"""Configuration files outside the data directory: they are in the backup, and a restore puts them back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg
import pytest

from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.etc import Etc
from tests.restore.keeper import Restored

IN_BACKUP = {
    "postgresql.conf",
    "pg_hba.conf",
    "pg_ident.conf",
    "start.conf",
    "pg_ctl.conf",
    "environment",
    "people",
    "conf.d/tuning.conf",
}


def let_in(restored: Restored) -> None:
    """Let the test in, where pgkeep wrote a pg_hba.conf that lets only the server's own account in."""
    (restored.data_directory / "pg_hba.conf").write_text("local all all trust\n")
    os.kill(int(restored.postmaster()[0]), signal.SIGHUP)
    wait_for(lambda: _answers(restored), "the server lets the test in")


def _answers(restored: Restored) -> bool:
    try:
        restored.connect().close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_copy_gets_it_beside(make_keeper: MakeKeeper, lab_directory: Path, transport: str) -> None:
    """Files come with both transports; a copy does not use them: they lie in its data directory, and this is said."""
    keeper = make_keeper()
    keeper.cluster.stop()
    etc = Etc(keeper.cluster, lab_directory / "etc" / "main")
    etc.start()
    mark = Ledger(keeper.cluster).mark("there")
    outcome = keeper.backup("full", transport)
    assert outcome.warnings == []
    restored = keeper.restore(f"--backup-id={outcome.report['backup_id']}")
    let_in(restored)
    restored.assert_is_at(mark)
    laid = restored.data_directory / "pgkeep.configuration" / etc.directory.relative_to("/")
    found = {str(path.relative_to(laid)): path.read_text() for path in laid.rglob("*") if path.is_file()}
    assert found == {name: text for name, text in etc.content().items() if name in IN_BACKUP}
    assert (laid / "conf.d").is_dir()
