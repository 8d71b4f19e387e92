"""The window that ``pgkeep info`` shows: to which moment, what is missing and why, what was proved, and as metrics."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from pgkeep.pg.lsn import Lsn
from pgkeep.vault.lock import CLUSTER_LOCK, Lock
from pgkeep.vault.proofs import Proof, add_proof
from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.receive.receiver import SETTINGS, Receiver
from tests.receive.test_check import check, failed
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper

SAMPLE = re.compile(r'(?P<name>[a-z_]+)(?:\{(?P<labels>[a-z_]+="[^"]*"(?:,[a-z_]+="[^"]*")*)\})? (?P<value>-?[0-9.]+)')


def info(keeper: Keeper, *arguments: str) -> str:
    """Return what ``pgkeep info`` writes."""
    return keeper.must("info", f"--spool-dir={keeper.directory}/spool", *arguments).stdout


def report(keeper: Keeper) -> dict[str, Any]:
    """Return the report for programs."""
    [found] = json.loads(info(keeper, "--json"))
    return dict(found)


def samples(text: str) -> dict[tuple[str, str], float]:
    """Return the values of metrics by name and labels; each name has HELP and TYPE before it, once."""
    found: dict[tuple[str, str], float] = {}
    described: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            described.append(line.split()[2])
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {described[-1]} gauge"
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match["name"] == described[-1]
            found[match["name"], match["labels"] or ""] = float(match["value"])
    assert len(described) == len(set(described))
    return found


def stored(keeper: Keeper, name: str) -> Path:
    """Return the file of the segment *name* in the vault."""
    [path] = (keeper.vault / "main" / "wal").rglob(f"{name}.zst")
    return path


def test_the_window_ends_with_the_last_commit_received(make_keeper: MakeKeeper) -> None:
    """The window reaches into the partial segment, to the last commit; the receiver tells how far it is beyond that."""
    keeper = make_keeper(settings=SETTINGS, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with Receiver(keeper).wait_until_streaming() as receiver:
        ledger.transfer(3)
        cluster.switch_wal()
        before = cluster.value("SELECT clock_timestamp()")
        mark = ledger.mark("last")
        after = cluster.value("SELECT clock_timestamp()")
        receiver.wait_until_flushed()
        wait_for(
            lambda: Lsn.parse((report(keeper)["receiver"] or {}).get("received_lsn") or "0/0") >= Lsn.parse(mark.lsn),
            "the receiver has said how far it is",
        )
        receiver.stop()
    found = report(keeper)
    [window] = found["windows"]
    assert (found["status"], found["holes"], window["ends_in_partial"]) == ("ok", [], True)
    assert Lsn.parse(window["end_lsn"]) >= Lsn.parse(mark.lsn)
    assert before.isoformat() <= window["last_commit_time"] <= after.isoformat()
    assert window["newest_base"] == window["base"] == found["backups"][0]["backup_id"]
    receiver_state = found["receiver"]
    assert (receiver_state["is_streaming"], receiver_state["unshipped_since"]) == (False, "")
    assert receiver_state["shipped_lsn"] == receiver_state["received_lsn"]
    assert "(its segment was received in part)" in info(keeper)
    restored = keeper.restore(f"--target-time={window['last_commit_time']}")
    restored.assert_is_at(mark)


def test_holes_are_named_with_their_reason(make_keeper: MakeKeeper) -> None:
    """WAL that is missing is delayed while what follows is fresh, or a spool has it; later, it was never received."""
    keeper = make_keeper(settings=SETTINGS, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    names = []
    with Receiver(keeper).wait_until_streaming() as receiver:
        for _ in range(4):
            ledger.transfer(1)
            names.append(cluster.switch_wal())
        receiver.wait_until_shipped(names[-1])
        receiver.stop()
    assert report(keeper)["holes"] == []
    stored(keeper, names[1]).unlink()
    path = stored(keeper, names[2])
    start, stop = f"0/{int(names[1][16:], 16) << 20:08X}", f"0/{int(names[2][16:], 16) << 20:08X}"
    found = report(keeper)
    [hole] = found["holes"]
    assert (hole["kind"], hole["start"], hole["stop"], hole["is_before_base"]) == ("delayed", start, stop, False)
    assert hole["reason"].startswith("what follows came at ")
    assert found["status"] == "ok"
    assert "holes" not in failed(keeper)

    os.utime(path, (0, 0))
    found = report(keeper)
    [hole] = found["holes"]
    assert (found["status"], hole["kind"], hole["start"], hole["stop"]) == ("gap", "never received", start, stop)
    assert f"  hole: WAL {start} .. {stop} on timeline 1: never received; make a base backup now" in info(keeper)
    text, remedy = failed(keeper)["holes"]
    assert text == (
        f"WAL from {start} to {stop} was never received, and there is no base backup behind it: no moment since then "
        "can be recovered"
    )
    assert remedy == "pgkeep backup main --level=full"
    with Lock(keeper.vault / "main", CLUSTER_LOCK, shared=False, verb="expire"):
        assert check(keeper)["holes"][0] == "WARN"

    (receiver.spool / names[1]).touch()
    [hole] = report(keeper)["holes"]
    assert (hole["kind"], hole["reason"]) == ("delayed", "the spool has it")
    (receiver.spool / names[1]).unlink()


def test_a_restore_says_for_whom_its_commits_would_wait(make_keeper: MakeKeeper) -> None:
    """A restored server has the synchronous standbys of the original, a receiver too: that is a warning."""
    keeper = make_keeper(settings=SETTINGS | {"synchronous_standby_names": "pgkeep_main"}, wal_segment_size_mb=1)
    keeper.backup("full", "local")
    restored = keeper.restore(start=False)
    [warning] = restored.outcome.warnings
    assert warning == (
        "synchronous_standby_names is pgkeep_main: once the server is open, every commit waits for those standbys, "
        "which may not be there; to do without: ALTER SYSTEM SET synchronous_standby_names = ''"
    )


def test_what_was_proved_and_metrics(make_keeper: MakeKeeper) -> None:
    """The newest proof and a drill that failed later are shown; metrics say the same, on stdout and in a file."""
    keeper = make_keeper(settings=SETTINGS, wal_segment_size_mb=1)
    keeper.backup("full", "local")
    nothing = report(keeper)
    assert (nothing["proved"], nothing["last_drill"], nothing["receiver"]) == (None, None, None)
    proof = Proof(
        time="2026-11-20T21:00:00+00:00",
        backup_id="20261120T030000Z-F",
        target="end of the WAL",
        reached_time="2026-11-20T20:48:00+00:00",
        reached_lsn="0/5000028",
        timeline=1,
        result="proved",
    )
    add_proof(keeper.vault / "main", proof)
    later = {"time": "2026-11-21T21:00:00+00:00", "reached_time": "", "reached_lsn": "", "timeline": 0}
    add_proof(keeper.vault / "main", msgspec.structs.replace(proof, result="failed", **later))
    lines = info(keeper).splitlines()
    assert (
        "  proved: 2026-11-20 20:48:00Z, 0/5000028 on timeline 1, by the drill of 2026-11-20 21:00:00Z "
        "(20261120T030000Z-F)"
    ) in lines
    assert "  DRILL FAILED: 2026-11-21 21:00:00Z, end of the WAL from 20261120T030000Z-F" in lines
    found = report(keeper)
    assert (found["proved"]["reached_lsn"], found["last_drill"]["result"]) == ("0/5000028", "failed")

    file = keeper.directory / "pgkeep.prom"
    assert info(keeper, f"--metrics-file={file}") == ""
    assert file.stat().st_mode & 0o777 == 0o644
    assert [name for name in os.listdir(keeper.directory) if "pgkeep" in name] == [file.name]
    for values in (samples(file.read_text()), samples(info(keeper, "--metrics"))):
        mine = {name: value for (name, labels), value in values.items() if labels == 'cluster="main"'}
        window = found["windows"][0]
        assert mine["pgkeep_recovery_window_start_lsn_bytes"] == Lsn.parse(window["start_lsn"])
        assert mine["pgkeep_recovery_window_end_lsn_bytes"] == Lsn.parse(window["end_lsn"])
        assert mine["pgkeep_proved_point_timestamp_seconds"] == 1795207680
        assert mine["pgkeep_drill_last_success"] == 0
        assert mine["pgkeep_wal_holes_without_base_backup"] == 0
        assert values["pgkeep_cluster_status", 'cluster="main",status="ok"'] == 1
        assert values["pgkeep_wal_holes", 'cluster="main",kind="never received"'] == 0
    assert keeper.run("info", "--metrics", "--json").refusal == [
        "error: expected one of --json, --metrics and --metrics-file"
    ]
