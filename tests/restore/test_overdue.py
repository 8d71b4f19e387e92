"""A replay that takes longer than anybody wanted to watch it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.lab.cluster import free_port
from tests.lab.ledger import Ledger
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Outcome, Restored
from tests.restore.unfinished import call
from tests.survive.job import Job


def test_a_replay_that_outlasts_restore_timeout_is_finished(make_keeper: MakeKeeper) -> None:
    """The server is left at work behind its fence, and finish watches it to the end: the target's rows, no others."""
    keeper = make_keeper(archive="vault")
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    ledger.transfer(10)
    mark = ledger.mark("target")
    ledger.transfer(10)
    keeper.wait_until_archived()
    installation = keeper.cluster.installation
    restored = Restored(installation, keeper.directory / "restored", free_port(), Outcome(0, "", []))
    keeper.restored.append(restored)
    arguments = [
        *(f"--pgdata-dir={restored.data_directory}", f"--bin-dir={installation.bin_dir}", f"--port={restored.port}"),
        *(f"--target-lsn={mark.lsn}", "--restore-timeout=1s"),
    ]
    keeper.must("restore", *arguments, "--no-start")
    # pgkeep stops where it was about to deliver the first file of WAL, and the replay is held up there.
    with Job(keeper, "restore", *arguments, "--start", at=("STOP", 1, "open", r"/restored/pg_wal None ")) as job:
        job.wait_until_stopped()
        restored.guard()
        postmaster = int(restored.postmaster()[0])
        startup = startup_process(postmaster)
        os.kill(startup, signal.SIGSTOP)
        outcome = job.go_on()
    assert outcome.status == 9
    assert outcome.refusal[0] == (
        f"error: the server in {restored.data_directory} still replays when restore_timeout is over"
    )
    assert outcome.refusal[1].endswith("; pgkeep finish goes on watching it")
    assert not any(line.startswith("RESTORE PHASE 4/6") for line in outcome.lines)
    os.kill(startup, 0)
    # Neither is it over for somebody who waits as long once more.
    again = call("finish", restored.data_directory, "--restore-timeout=1s")
    assert again.refusal[0] == outcome.refusal[0]
    os.kill(startup, signal.SIGCONT)
    finished = call("finish", restored.data_directory, "--restore-timeout=1h")
    assert finished.status == 0, "\n".join(finished.lines)
    phases = [line.partition(":")[0] for line in finished.lines if line.startswith("RESTORE PHASE ")]
    assert phases == [f"RESTORE PHASE {n}" for n in ("4/6 start-and-replay", "5/6 topology", "6/6 verify-and-cleanup")]
    restored.assert_is_at(mark)
    assert restored.value("SELECT current_setting('restore_command') || current_setting('recovery_target_lsn')") == ""


def startup_process(postmaster: int) -> int:
    """Return the process that replays."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    [found] = [pid for pid in children if b"startup" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return int(found)
