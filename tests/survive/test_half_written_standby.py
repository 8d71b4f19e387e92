"""Pages without a head in the backup of a standby, which begins and ends in the middle of a segment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.restore.conftest import MakeKeeper
from tests.survive.half_written import SETTINGS, half_written
from tests.survive.test_damage import make_table


@pytest.mark.parametrize("server", [15, 18])
def test_a_record_outside_the_backup_proves_nothing(make_keeper: MakeKeeper, lab_directory: Path, server: int) -> None:
    """A page that was made before the start, or written once more after the stop, in the same segment, is damaged."""
    keeper = make_keeper(major=server, settings=SETTINGS)
    primary = keeper.cluster
    with primary.create_standby(lab_directory / "standby") as standby:
        standby.start()
        primary.switch_wal()
        make_table(primary, "torn")
        segment = primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())")
        standby.wait_for_replay(primary.current_lsn())
        path = half_written(standby, "torn", block=2)
        host = f"--standby-host={standby.socket_directory}:{standby.port}"
        outcome = keeper.backup("full", "stream", host)
        primary.sql("CHECKPOINT")
        primary.sql("UPDATE torn SET text = 'new' WHERE ctid = '(2,1)'")
        assert primary.value("SELECT pg_walfile_name(pg_current_wal_lsn())") == segment
        primary.switch_wal()
        keeper.backup("incremental", "stream")
    assert outcome.report["damaged_pages"] == 0
    found = keeper.run("verify", f"--backup-id={outcome.report['backup_id']}", "--json")
    assert found.status == 12, found.lines
    [finding] = found.report["findings"]
    assert finding["path"] == f"@postgresql/pitr/pgdata/{path.relative_to(standby.data_directory)}"
    assert finding["blocks"] == [2]
