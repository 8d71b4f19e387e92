"""Restores that are killed, and what goes on with them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab.cluster import Cluster, free_port
from tests.lab.ledger import Ledger, Mark
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import PGKEEP, TIMEOUT_SECONDS, Keeper, Outcome, Restored, environment
from tests.survive.job import SIGNALLED_AT, Job

KillPoint = tuple[int, str, str]
"""Before the how many-th event of a kind with which arguments; see ``tests/survive/signalled_at.py``."""


class InPlace:
    """
    A cluster with a tablespace that an accident has befallen, and its restore to the moment before, in its own place.

    Attributes:
        keeper: Of the cluster, which is stopped.
        place: Of the tablespace.
        mark: The moment.
    """

    def __init__(self, make_keeper: MakeKeeper, **of_keeper: object) -> None:
        self.keeper: Keeper = make_keeper(archive="vault", **of_keeper)
        self.cluster: Cluster = self.keeper.cluster
        self.place = self.keeper.directory / "fast"
        self.place.mkdir()
        server_user().own(self.place)
        self.cluster.sql(f"CREATE TABLESPACE fast LOCATION '{self.place}'")
        self.cluster.sql("CREATE TABLE in_fast TABLESPACE fast AS SELECT generate_series(1, 3000) AS n")
        ledger = Ledger(self.cluster)
        self.keeper.backup("full", "local")
        self.mark: Mark = ledger.mark("before the accident")
        self.cluster.sql("DROP TABLE in_fast")
        self.cluster.sql("CREATE TABLE after_the_accident AS SELECT 42 AS answer")
        self.keeper.wait_until_archived()
        self.cluster.stop()
        self.restored = Restored(self.cluster.installation, self.data, free_port(), Outcome(0, "", []))
        self.keeper.restored.append(self.restored)
        self.arguments = [
            f"--bin-dir={self.cluster.installation.bin_dir}",
            f"--target-time={self.mark.time.isoformat()}",
            f"--port={self.restored.port}",
        ]

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.cluster.data_directory

    def kill_at(self, point: KillPoint, *more: str) -> None:
        """Run the restore, which ends by SIGKILL at *point*; with *more* arguments."""
        arguments = [*self.arguments, "--overwrite-existing", "--start", *more]
        with Job(self.keeper, "restore", *arguments, at=("KILL", *point)) as job:
            outcome = job.end()
        assert outcome.status == -signal.SIGKILL, f"{point} was not reached\n" + "\n".join(outcome.lines)
        self.restored.guard()

    @property
    def progress(self) -> str:
        """How far the restore is, as its state says: the phases that are done, and what is between two of them."""
        path = self.data.with_name(f"{self.data.name}.pgkeep-restore") / "state.json"
        if not path.exists():
            return "nothing"
        state = json.loads(path.read_text())
        words = [name for name in ("is_cleared", "access", "is_lifting") if state[name]]
        return " ".join([str(state["phases_done"]), *words])

    def kill_rollback_at(self, point: KillPoint) -> None:
        """Run the rollback, which ends by SIGKILL at *point*."""
        program = [sys.executable, str(SIGNALLED_AT), "KILL", *map(str, point)]
        outcome = self.call("rollback", program=program)
        assert outcome.status == -signal.SIGKILL, f"{point} was not reached\n" + "\n".join(outcome.lines)

    def restore(self, *more: str) -> Outcome:
        """Run the restore to its end, which must be a good one."""
        outcome = self.keeper.must("restore", *self.arguments, "--overwrite-existing", *more)
        self.restored.guard()
        return outcome

    def call(self, verb: str, *more: str, program: Sequence[str] = (str(PGKEEP),)) -> Outcome:
        """Run ``pgkeep finish`` or ``pgkeep rollback``, which need no vault."""
        outcome = call(verb, self.data, *more, program=program)
        self.restored.guard()
        return outcome

    def moved_away(self) -> list[str]:
        """Return the names that the restore gave to what was there before."""
        return sorted(
            str(path.relative_to(self.keeper.directory)).partition(".old.")[0]
            for path in (*self.keeper.directory.glob("data.old.*"), *self.place.glob("PG_*.old.*"))
        )

    def assert_is_before_the_accident(self) -> None:
        """Assert that the restored server runs and has the rows of the moment."""
        self.restored.assert_is_at(self.mark)
        assert self.restored.value("SELECT sum(n) FROM in_fast") == 3000 * 3001 // 2

    def assert_runs_as_before(self) -> None:
        """Assert that what was there before the restore is there again, whole, and nothing else."""
        assert self.moved_away() == []
        left = {path.name for path in self.keeper.directory.glob("data*")}
        assert left <= {"data", "data.log", "data.pgkeep-restore.log", "data.pgkeep-restore"}
        for path in self.keeper.directory.glob("data.pgkeep-restore/*"):
            assert re.fullmatch(r"restore-\d{8}T\d{6}Z\.log", path.name)
        assert len(list(self.place.iterdir())) == 1
        self.cluster.start()
        try:
            assert self.cluster.value("SELECT answer FROM after_the_accident") == 42
            assert self.cluster.value("SELECT timeline_id FROM pg_control_checkpoint()") == 1
        finally:
            self.cluster.stop()


def call(verb: str, data_directory: Path, *more: str, program: Sequence[str] = (str(PGKEEP),)) -> Outcome:
    """Run ``pgkeep VERB --pgdata-dir=…`` and return what it said."""
    done = subprocess.run(
        [*program, verb, f"--pgdata-dir={data_directory}", *more],
        env=environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        **server_user().popen_arguments(),
    )
    return Outcome(done.returncode, done.stdout, [line.removeprefix("pgkeep: ") for line in done.stderr.splitlines()])
