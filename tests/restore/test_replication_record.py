"""What a backup records of slots and subscriptions, in every mode and by either transport."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper

SECRET = "geheim-in-a-subscription"
SCRIPTS = ("recreate_slots.sql", "recreate_subscriptions.sql.DISABLED")
TRACKED = ("--track-replication-state",)


@pytest.fixture
def tracked(make_keeper: MakeKeeper) -> Keeper:
    """A cluster with two slots and a subscription whose password nobody may find in a record."""
    keeper = make_keeper(settings={"wal_level": "logical"})
    cluster = keeper.cluster
    cluster.sql("SELECT pg_create_physical_replication_slot('standby_1', true)")
    cluster.sql("SELECT pg_create_logical_replication_slot('orders', 'test_decoding')")
    cluster.sql(
        f"CREATE SUBSCRIPTION items CONNECTION 'host=publisher.invalid password={SECRET}' PUBLICATION items "
        "WITH (connect = false, slot_name = 'items')"
    )
    return keeper


def record_of(keeper: Keeper, backup_id: str) -> dict[str, Any]:
    """Return the record of a backup in the vault, as zstd and a JSON parser read it."""
    path = backup_directory(keeper, backup_id) / "manifest.json.zst"
    text = subprocess.run(["zstdcat", str(path)], capture_output=True, check=True).stdout
    return dict(json.loads(text))


def backup_directory(keeper: Keeper, backup_id: str) -> Path:
    """Return where the vault keeps a backup."""
    return keeper.vault / keeper.name / "backups" / backup_id


@pytest.mark.parametrize(
    ("mode", "level", "transport"),
    [("pitr", "full", "local"), ("pitr", "full", "stream"), ("pitr", "incremental", "local"), ("dump", "full", "auto")],
)
def test_every_kind_of_backup_records_it(tracked: Keeper, mode: str, level: str, transport: str) -> None:
    """Dumps, base backups by either transport and Incrementals without files hold it, in the record and as scripts."""
    if level == "incremental":
        tracked.backup("full", "local")
    options = ["--json", f"--mode={mode}", f"--level={level}", *tracked.server_options()]
    if mode == "pitr":
        options += ["--start-fast", f"--transport={transport}"]
    bin_dir = f"--bin-dir={tracked.cluster.installation.bin_dir}"
    outcome = tracked.must("backup", *options, bin_dir, *TRACKED)
    assert outcome.lines.count("captured 2 replication slots, 1 subscriptions") == 1
    backup_id = outcome.report["backup_id"]
    record = record_of(tracked, backup_id)
    state = record["head"]["replication"]
    assert [slot["slot_name"] for slot in state["slots"]] == ["orders", "standby_1"]
    [subscription] = state["subscriptions"]
    assert (subscription["conninfo"], subscription["has_password"]) == ("host=publisher.invalid", True)
    directory = backup_directory(tracked, backup_id)
    for name in SCRIPTS:
        assert name in record["tail"]["attachments"]
        assert (directory / name).stat().st_mode & 0o777 == 0o600
        assert SECRET not in (directory / name).read_text()
    assert SECRET not in json.dumps(record)
    assert "pg_create_physical_replication_slot('standby_1', true)" in (directory / SCRIPTS[0]).read_text()
    assert 'CREATE SUBSCRIPTION "items"' in (directory / SCRIPTS[1]).read_text()
    recipe = (directory / "RESTORE.md").read_text()
    assert "There were 2 replication slots, 1 subscriptions:\nread `recreate_slots.sql` and" in recipe
    text = tracked.must("info").stdout
    assert "      primary, 2 replication slots, 1 subscriptions\n" in text
    assert tracked.info()["backups"][-1]["replication"] == state
    assert tracked.run("verify").status == 0
    (directory / SCRIPTS[0]).write_text("-- somebody else's")
    assert tracked.run("verify").status != 0


def test_nothing_is_recorded_unless_asked_for(tracked: Keeper) -> None:
    """Without the parameter a backup says nothing of it and holds no script."""
    outcome = tracked.backup("full", "local")
    assert not any("captured" in line for line in outcome.lines)
    directory = backup_directory(tracked, outcome.report["backup_id"])
    assert sorted(path.name for path in directory.glob("recreate*")) == []
    assert tracked.info()["backups"][-1]["replication"] is None


def test_check_misses_it_where_it_is_needed(tracked: Keeper) -> None:
    """A server with slots whose backups do not record them is a warning, and none when they do."""
    options = [*tracked.server_options(), f"--bin-dir={tracked.cluster.installation.bin_dir}"]
    untracked = "2 replication slots and 1 subscriptions are in no backup's record: no restore brings the slots back"
    tracked_text = "2 replication slots and 1 subscriptions are recorded with each backup"
    for words, outcome, text in (([], "WARN", untracked), (TRACKED, "OK", tracked_text)):
        results = json.loads(tracked.run("check", "--json", *options, *words).stdout)
        [found] = [result for result in results if result["name"] == "slots-recorded"]
        assert (found["outcome"], found["text"]) == (outcome, text)


def test_a_state_that_cannot_be_had_costs_no_backup(tracked: Keeper) -> None:
    """A standby that does not answer is a warning, in the log and in the record, and the backup stands."""
    nobody = "127.0.0.1:1"
    outcome = tracked.backup("full", "local", *TRACKED, "--no-backup-from-standby", f"--standby-host={nobody}")
    [warning] = outcome.warnings
    assert warning.startswith(f"{nobody} as postgres is not recorded as a standby: ")
    assert record_of(tracked, outcome.report["backup_id"])["head"]["warnings"] == [warning]
