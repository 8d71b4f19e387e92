"""A role with just the rights that pgkeep prints."""

from __future__ import annotations

import pytest

from tests.lab.cluster import SUPERUSER
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import PGKEEP, environment

ROLE = "we \"ird' role"


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_printed_rights_suffice(major: int, make_keeper: MakeKeeper, transport: str) -> None:
    """A role that got what `pgkeep grants` prints, and no more, makes every level of backup."""
    keeper = make_keeper()
    ledger = Ledger(keeper.cluster)
    words = [str(PGKEEP), "grants", ROLE, f"--major={major}", "--mode=pitr", f"--transport={transport}"]
    done = server_user().run(words, env=environment())
    keeper.cluster.sql(f"CREATE ROLE {quoted(ROLE)} LOGIN")
    outcome = keeper.run("backup", *keeper.backup_options("full", transport, user=ROLE))
    assert outcome.status == 4
    assert 'hint: run "pgkeep grants"' in "\n".join(outcome.refusal)
    with keeper.cluster.connect() as connection:
        # Twice, as it says that it can be.
        for _ in range(2):
            connection.execute(done.stdout.encode())
    assert not keeper.cluster.value("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [ROLE])
    for level in ("full", "incremental", "differential"):
        outcome = keeper.backup(level, transport, user=ROLE)
        assert outcome.warnings == []
        assert outcome.report["level"] == level.capitalize()
    mark = ledger.mark("last")
    keeper.backup("incremental", transport, user=ROLE)
    restored = keeper.restore()
    restored.assert_is_at(mark)
    assert restored.value("SELECT rolname FROM pg_roles WHERE oid = 10") == SUPERUSER


def quoted(name: str) -> str:
    """Return *name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
