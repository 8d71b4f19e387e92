"""Names that break programs: databases, tablespaces and vaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.ledger import Ledger, digest
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper

WEIRD = 'we/ird "näme"'


@pytest.mark.parametrize(("server", "transport"), [(18, "local"), (15, "stream")])
def test_odd_names_all_the_way(make_keeper: MakeKeeper, lab_directory: Path, server: int, transport: str) -> None:
    """A database, a tablespace and a vault with blanks, quotes, slashes and percent signs come back."""
    keeper = make_keeper(major=server)
    cluster = keeper.cluster
    place = lab_directory / 'table space "100%" %p'
    place.mkdir()
    server_user().own(place)
    cluster.sql(f'CREATE DATABASE "{WEIRD.replace(chr(34), chr(34) * 2)}"')
    cluster.sql(f"CREATE TABLESPACE \"odd %f one\" LOCATION '{place}'")
    ledger = Ledger(cluster, dbname=WEIRD)
    cluster.sql('ALTER TABLE ledger_account SET TABLESPACE "odd %f one"', dbname=WEIRD)
    keeper.vault = lab_directory / "va ult's 100% %p"
    said = keeper.init().lines
    # As a person copies it.
    [archive_command] = [line.strip() for line in said if "archive_command = " in line]
    with (cluster.data_directory / "postgresql.conf").open("a") as file:
        file.write(f"archive_mode = on\n{archive_command}\n")
    cluster.restart()
    keeper.backup("full", transport)
    ledger.transfer(20)
    mark = ledger.mark("end")
    keeper.wait_until_archived()
    elsewhere = lab_directory / 'new place "5%" %f'
    restored = keeper.restore(f"--tablespace-map=odd %f one:{elsewhere}", "--target-name=end")
    with restored.connect(WEIRD) as connection:
        assert digest(connection) == mark.digests
        connection.execute("INSERT INTO ledger_mark (name) VALUES ('it writes')")
    assert any(elsewhere.iterdir())
    assert keeper.must("verify", "--json").report["is_clean"]


def test_an_odd_database_in_a_dump(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """The same database dumped into the same vault, and restored under another odd name."""
    keeper = make_keeper()
    cluster = keeper.cluster
    cluster.sql(f'CREATE DATABASE "{WEIRD.replace(chr(34), chr(34) * 2)}"')
    ledger = Ledger(cluster, dbname=WEIRD)
    ledger.transfer(20)
    keeper.vault = lab_directory / "va ult's 100% %p"
    keeper.init()
    server = keeper.server_options()
    bin_dir = f"--bin-dir={cluster.installation.bin_dir}"
    outcome = keeper.must("backup", "--json", "--mode=dump", bin_dir, *server)
    assert outcome.warnings == []
    [held] = keeper.info()["backups"]
    assert WEIRD in [database["name"] for database in held["databases"]]
    other = "an other='x' \\ dbname=postgres"
    target = (f"--target-database={WEIRD}", f"--new-database={other}")
    keeper.must("restore", *server, bin_dir, f"--tmpdir={lab_directory}", *target)
    with cluster.connect(other) as restored, ledger.connect() as original:
        assert digest(restored) == digest(original)
