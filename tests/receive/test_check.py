"""What ``pgkeep check`` and the log say of a receiver that is in trouble, and what to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from pgkeep.spool.state import STATE_FILE, ReceiverState, read_state
from tests.lab.cluster import wait_for
from tests.lab.ledger import Ledger
from tests.lab.smallfs import small_filesystem
from tests.receive.receiver import SLOT, HastyReceiver, Receiver
from tests.receive.test_trouble import SMALL, lose_slot, write
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.survive.test_disk_full import leave_free

TESTS = ("receiver", "receive-slot", "shipping", "spool", "holes", "synchronous")


def check(keeper: Keeper, spool: Path | None = None) -> dict[str, tuple[str, str, str]]:
    """Return what the tests of receiving say: outcome, text and hint."""
    spool_dir = spool or keeper.directory / "spool"
    place = ["--mode=cdp", f"--spool-dir={spool_dir}", "--json", *keeper.server_options()]
    outcome = keeper.run("check", *place)
    found = {test["name"]: (test["outcome"], test["text"], test["hint"]) for test in json.loads(outcome.stdout)}
    assert (outcome.status == 0) == all(result[0] != "FAILED" for result in found.values())
    return {name: found[name] for name in TESTS}


def failed(keeper: Keeper, spool: Path | None = None) -> dict[str, tuple[str, str]]:
    """Return text and hint of the tests of receiving that fail."""
    return {name: found[1:] for name, found in check(keeper, spool).items() if found[0] == "FAILED"}


def wait_for_state(receiver: Receiver, wanted: str, spool: Path | None = None) -> ReceiverState:
    """Wait until the receiver has written down a state for which the attribute *wanted* is true; return that."""
    found: list[ReceiverState] = []

    def is_there() -> bool:
        state = read_state(spool or receiver.spool)
        if state is not None and getattr(state, wanted):
            found.append(state)
        return bool(found)

    wait_for(is_there, f"the state has {wanted}\n" + "\n".join(receiver.lines), timeout_seconds=60)
    return found[0]


def wait_until_idle(keeper: Keeper) -> None:
    """Wait until the server knows that nobody streams from the slot."""
    wait_for(lambda: not keeper.cluster.value("SELECT active FROM pg_replication_slots"), "the slot is idle")


def test_check_says_what_a_receiver_needs(make_keeper: MakeKeeper) -> None:
    """One that never ran, runs, was killed, cannot ship, or is waited for in vain: each is said with the remedy."""
    keeper = make_keeper(settings=SMALL | {"max_slot_wal_keep_size": "64MB"}, wal_segment_size_mb=1)
    cluster = keeper.cluster
    start = "start it: systemctl start pgkeep-receive@main, or pgkeep receive main"
    keeper.backup("full", "local")
    found = check(keeper)
    assert found["receiver"] == (
        "WARN",
        f"no receiver has its spool at {keeper.directory}/spool/main: only its slot is looked at",
        start,
    )
    assert failed(keeper) == {
        "receive-slot": (
            f'the server has no slot "{SLOT}": it keeps no WAL for pgkeep receive',
            "start pgkeep receive main, which makes it",
        )
    }
    archive, aside = keeper.vault / "main" / "wal", keeper.vault / "main" / "wal.aside"
    with Receiver(keeper).wait_until_streaming() as receiver:
        cluster.sql("CREATE ROLE app")
        receiver.wait_until_flushed()
        wait_for_state(receiver, "received_lsn")
        wait_for(lambda: not failed(keeper), "all is well", timeout_seconds=60)

        cluster.sql("ALTER ROLE app SET synchronous_commit = remote_apply")
        cluster.sql(f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (other, {SLOT})'")
        cluster.sql("ALTER SYSTEM SET synchronous_commit = remote_apply")
        cluster.reload()
        wait_for(lambda: cluster.value("SHOW synchronous_commit") == "remote_apply", "commits wait")
        waits = (
            f'synchronous_standby_names has "{SLOT}", and synchronous_commit is remote_apply for the server\'s '
            'configuration, role "app": such commits wait for ever, since a receiver applies nothing'
        )
        assert failed(keeper)["synchronous"] == (waits, "set synchronous_commit to on, or remote_write")
        cluster.sql("ALTER SYSTEM RESET ALL")
        cluster.reload()
        wait_for(lambda: cluster.value("SHOW synchronous_commit") == "on", "commits do not wait")

        write(cluster, 1)
        wait_for_state(receiver, "shipped_lsn")
        archive.rename(aside)
        write(cluster, 1)
        receiver.wait_until_flushed()
        receiver.wait_for_line("warning: main: ")
        state = wait_for_state(receiver, "unshipped_since")
        receiver.kill()
    aside.rename(archive)
    wait_until_idle(keeper)
    # An hour passes.
    late = msgspec.structs.replace(
        state, unshipped_since="2026-01-01T00:00:00+00:00", troubles={"shipping": "no vault"}
    )
    (receiver.spool / STATE_FILE).write_bytes(msgspec.json.encode(late))
    found = check(keeper)
    assert found["receiver"] == ("FAILED", f"pgkeep receive does not run since {state.time}", start)
    assert found["receive-slot"][1].startswith(f'slot "{SLOT}" is inactive and keeps ')
    assert found["receive-slot"][2].startswith("start pgkeep receive main; if it is not wanted any more, drop the slot")
    outcome, text, hint = found["shipping"]
    assert (outcome, hint) == ("FAILED", "no vault")
    assert text.startswith(f"WAL from {state.shipped_lsn} to {state.received_lsn} has waited for ")
    assert text.endswith(" to get into the vault, expected 300 s")

    with Receiver(keeper).wait_until_streaming() as receiver:
        wait_for(lambda: not failed(keeper), "all is well again", timeout_seconds=60)
        receiver.stop()


def test_a_lost_slot_and_its_hole_are_failures_until_a_base_backup(make_keeper: MakeKeeper) -> None:
    """A lost slot fails the check; so does the hole that it left, in the log too, until there is a base backup."""
    keeper = make_keeper(settings=SMALL | {"max_slot_wal_keep_size": "1MB"}, wal_segment_size_mb=1)
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    with Receiver(keeper).wait_until_streaming() as receiver:
        receiver.wait_until_flushed()
        receiver.stop()
    lose_slot(keeper.cluster)
    assert failed(keeper)["receive-slot"] == (
        f'slot "{SLOT}" is lost: the server has given up WAL that was not received',
        "start pgkeep receive main, which makes it anew; then make a base backup, and raise max_slot_wal_keep_size",
    )
    with Receiver(keeper) as receiver:
        receiver.wait_for_line("warning: main: NO BASE BACKUP behind the hole in the WAL from ")
        [hole] = keeper.info()["holes"]
        assert (hole["kind"], hole["is_before_base"]) == ("lost", False)
        missing = (
            f"WAL from {hole['start']} to {hole['stop']} was never received, and there is no base backup behind it: no "
            "moment since then can be recovered"
        )
        assert failed(keeper)["holes"] == (missing, "pgkeep backup main --level=full")
        keeper.backup("full", "local")
        receiver.wait_for_line("main: is over: NO BASE BACKUP behind the hole in the WAL from ")
        assert "holes" not in failed(keeper)
        mark = ledger.mark("last")
        receiver.wait_until_flushed()
        receiver.stop()
    assert [hole["is_before_base"] for hole in keeper.info()["holes"]] == [True]
    keeper.restore().assert_is_at(mark)


def test_a_slot_over_its_budget_is_dropped_with_a_hole(make_keeper: MakeKeeper) -> None:
    """Where slot_wal_max says so, a receiver that cannot receive drops the slot, and says what it costs."""
    keeper = make_keeper(settings=SMALL, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    archive, aside = keeper.vault / "main" / "wal", keeper.vault / "main" / "wal.aside"
    with HastyReceiver(keeper, "--spool-max=4M", "--slot-wal-max=16M").wait_until_streaming() as receiver:
        ledger.transfer(1)
        receiver.wait_until_flushed()
        archive.rename(aside)
        write(cluster, 10)
        receiver.wait_for_line("warning: main: the spool is full: ")
        full = wait_for_state(receiver, "troubles")
        assert full.troubles["receiving"].startswith("the spool is full: ")
        write(cluster, 16)
        receiver.wait_for_line(f'warning: main: slot "{SLOT}" was dropped: it kept ')
        assert cluster.sql("SELECT slot_name FROM pg_replication_slots") == []
        # Two checkpoints, and the server has forgotten what nobody keeps.
        for _ in range(2):
            write(cluster, 8)
            cluster.sql("CHECKPOINT")
        found = failed(keeper)
        assert found["spool"][0].startswith("the spool is full: ")
        assert found["spool"][1] == "mend what keeps WAL from getting into the vault; or raise spool_max"
        assert found["receiver"][0].startswith("pgkeep receive receives nothing: the spool is full: ")
        aside.rename(archive)
        receiver.wait_for_line("main: the spool has room again: receiving goes on")
        receiver.wait_for_line("warning: main: HOLE: ")
        keeper.backup("full", "local")
        mark = ledger.mark("last")
        receiver.wait_until_flushed()
        outcome = receiver.stop()
    [dropped] = [line for line in outcome.warnings if "was dropped" in line]
    assert dropped.endswith("more than slot_wal_max (16.0 MiB); make a new base backup as soon as receiving goes on")
    assert any("slot_wal_max" in hole["reason"] for hole in keeper.info()["holes"])
    keeper.restore().assert_is_at(mark)


def test_a_full_disk_of_the_spool_leaves_the_server_alone(make_keeper: MakeKeeper) -> None:
    """With no room for the spool nothing is received, which is said once; the server goes on, and so does pgkeep."""
    keeper = make_keeper(settings=SMALL | {"max_slot_wal_keep_size": "64MB"}, wal_segment_size_mb=1)
    cluster, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    archive, aside = keeper.vault / "main" / "wal", keeper.vault / "main" / "wal.aside"
    with small_filesystem(8) as disk, Receiver(keeper, f"--spool-dir={disk}") as receiver:
        receiver.wait_until_streaming()
        wait_for_state(receiver, "received_lsn", disk / "main")
        # What is shipped would make room.
        archive.rename(aside)
        leave_free(disk / "somebody", 0)
        write(cluster, 3)
        ledger.transfer(5)
        receiver.wait_for_line(f"warning: main: cannot write in the spool {disk / 'main'}: No space left on device")
        assert failed(keeper, disk)["spool"] == (
            f"the disk of the spool is full: {free_text(disk)} free in {disk / 'main'}, expected 1.0 MiB",
            "make room there: until then nothing is received, and the slot keeps WAL on the server",
        )
        mark = ledger.mark("last")
        (disk / "somebody").unlink()
        aside.rename(archive)
        receiver.wait_until_flushed()
        outcome = receiver.stop()
    assert len([line for line in outcome.warnings if "No space left on device" in line]) == 1
    keeper.restore().assert_is_at(mark)


def free_text(disk: Path) -> str:
    """Return the room on *disk* as a message has it."""
    room = os.statvfs(disk)
    free = room.f_bavail * room.f_frsize
    return f"{free} bytes" if free < 1024 else f"{free / 1024:.1f} KiB"
