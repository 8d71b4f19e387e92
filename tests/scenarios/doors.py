"""The two doors of a restore: options by their parameters' names go in, the same words come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from tests.bacula.scene import Scene, install_plugin, run_pgkeep
from tests.lab.bacula import Director
from tests.lab.cluster import Cluster
from tests.lab.ledger import Ledger
from tests.restore.keeper import Keeper, Outcome, Restored
from tests.restore.test_targets import hide_segment, wal_files


@dataclass(frozen=True, slots=True)
class Attempt:
    """
    One restore.

    Attributes:
        is_ok: Whether the door says that it succeeded.
        lines: What pgkeep said, errors and warnings left out.
        refusal: The first error, with its hint in brackets; empty when there is none.
        restore_id: In the name of the audit file.
        restored: The cluster, whether it is there or not.
    """

    is_ok: bool
    lines: list[str]
    refusal: str
    restore_id: str
    restored: Restored

    @property
    def phases(self) -> list[str]:
        """The lines of the phases, up to their colon."""
        return [line.partition(":")[0] for line in self.lines if line.startswith("RESTORE PHASE ")]

    def must(self) -> Attempt:
        """Return itself when it succeeded."""
        assert self.is_ok, "\n".join([self.refusal, *self.lines])
        return self


class Door(Protocol):
    """
    A cluster, its backups, and the way back.

    Attributes:
        directory: Everything is beneath it.
        cluster: Runs.
        ledger: In its database ``postgres``.
        levels: Which levels of backup it can be asked for, by their words.
    """

    directory: Path
    cluster: Cluster
    ledger: Ledger

    def backup(self, level: str, cluster: Cluster | None = None) -> list[str]:
        """Make a backup at *level*; return the warnings."""
        ...

    def restore(self, options: Mapping[str, str]) -> Attempt:
        """Restore with *options*, whose ``pgdata_dir`` may name another place."""
        ...

    def after(self, verb: str, attempt: Attempt, *arguments: str) -> Outcome:
        """Run ``pgkeep finish`` or ``pgkeep rollback`` for what a restore has left."""
        ...

    def without_middle_of_wal(self) -> Iterator[None]:
        """Let the WAL of the last backup but one be lost while the block runs: a context manager."""
        ...


class ShellDoor:
    """``pgkeep restore`` from a vault."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self.log_directory = directory / "log"
        self.ledger = Ledger(cluster, accounts=50)
        self._keeper = Keeper(directory, cluster)
        self._keeper.init()
        self._wal_before: list[list[str]] = []
        config = directory / "pgkeep.conf"
        config.write_text(f"[options]\nlog_dir = {self.log_directory}\n")
        config.chmod(0o644)
        self._environment = {"PGKEEP_CONFIG": str(config)}

    def close(self) -> None:
        """Stop what was restored."""
        self._keeper.stop_restored()

    def backup(self, level: str, cluster: Cluster | None = None) -> list[str]:
        """Make it with transport=local."""
        self._wal_before.append(wal_files(self._keeper))
        return self._keeper.backup(level.lower(), "local", cluster=cluster).warnings

    def restore(self, options: Mapping[str, str]) -> Attempt:
        """Give each option as a flag."""
        given = {"bin_dir": str(self.cluster.installation.bin_dir), **options}
        words = [_flag(name, value) for name, value in given.items()]
        outcome = self._keeper.run("restore", "--json", *words, env=self._environment)
        restored = _adopted(self.cluster, options, outcome, self._keeper.restored)
        text = {line.partition(": ")[0]: line.partition(": ")[2] for line in outcome.refusal}
        refusal = text.get("error", "") + (f" ({text['hint']})" if "hint" in text else "")
        return Attempt(outcome.status == 0, outcome.lines, refusal, _restore_id(self.log_directory), restored)

    def after(self, verb: str, attempt: Attempt, *arguments: str) -> Outcome:
        """Run it as the server's account."""
        return _pgkeep(verb, attempt, Path(self._environment["PGKEEP_CONFIG"]), *arguments)

    @contextmanager
    def without_middle_of_wal(self) -> Iterator[None]:
        """Take the first segment that the last backup but one has brought out of the vault."""
        before, after = self._wal_before[-2:]
        lost = next(name for name in after if name not in before)
        [path] = (self._keeper.vault / self._keeper.name / "wal").rglob(f"{lost}.zst")
        content = path.read_bytes()
        hide_segment(self._keeper, lost)
        yield
        path.write_bytes(content)


class BaculaDoor:
    """A restore job of a real Director, its options in bconsole's menu."""

    def __init__(self, scene: Scene, log_directory: Path) -> None:
        self.directory = scene.directory
        self.cluster = scene.cluster
        self.ledger = scene.ledger
        self.log_directory = log_directory
        self._scene = scene
        self._job = scene.job("pitr", scene.line("pitr"))
        self._jobs: list[int] = []
        self._lost: int | None = None

    @classmethod
    def make(cls, directory: Path, cluster: Cluster, stack: ExitStack) -> BaculaDoor:
        """Make a Director whose daemon has the plugin."""
        director = stack.enter_context(Director(directory / "bacula"))
        log_directory = directory / "log"
        install_plugin(director, {"bin_dir": str(cluster.installation.bin_dir), "log_dir": str(log_directory)})
        director.start()
        scene = Scene(directory, cluster, director)
        stack.callback(scene.close)
        return cls(scene, log_directory)

    def backup(self, level: str, cluster: Cluster | None = None) -> list[str]:
        """Run the job; for another *cluster* with a line of that."""
        if cluster is not None:
            self._job = self._scene.job("pitr", self._scene.line("pitr", cluster=cluster))
        result = self._scene.director.run(self._job.name, level)
        self._jobs.append(result.job_id)
        assert result.status == "T", result.text
        return [line.removeprefix("Warning: ") for line in result.told if line.startswith("Warning: ")]

    def restore(self, options: Mapping[str, str]) -> Attempt:
        """Choose each option that the menu has there, the others by ``where``."""
        by_where = {name: value for name, value in options.items() if name in _NOT_IN_THE_MENU}
        by_menu = {name: value for name, value in options.items() if name not in by_where}
        where = "/@pgkeep/?" + "&".join(f"{name}={quote(value)}" for name, value in by_where.items())
        select = "current"
        if self._lost is not None:
            select = "jobid=" + ",".join(str(job) for job in self._jobs if job != self._lost)
        result = self._scene.director.restore(self._job, where if by_where else "/", options=by_menu, select=select)
        # Before the first byte the daemon is told of an error; afterwards of the end of the job.
        errors = [line.partition("rror: ")[2] for line in result.told if line.startswith(("Error: ", "Fatal error: "))]
        lines = [line for line in result.told if not line.startswith(("Error: ", "Fatal error: ", "Warning: "))]
        outcome = Outcome(0 if result.is_ok else 1, "", lines)
        restored = _adopted(self.cluster, options, outcome, self._scene.restored)
        return Attempt(result.is_ok, lines, errors[0] if errors else "", str(result.job_id), restored)

    def after(self, verb: str, attempt: Attempt, *arguments: str) -> Outcome:
        """Run it as the server's account."""
        return _pgkeep(verb, attempt, self._scene.director.directory / "pgkeep.conf", *arguments)

    @contextmanager
    def without_middle_of_wal(self) -> Iterator[None]:
        """Leave the last job but one out of the restore."""
        self._lost = self._jobs[-2]
        yield
        self._lost = None


_NOT_IN_THE_MENU = ("bin_dir",)


def _flag(name: str, value: str) -> str:
    word = {"dry_run_restore": "plan", "start_postgresql_after_restore": "start"}.get(name, name).replace("_", "-")
    if value == "yes":
        return f"--{word}"
    return f"--no-{word}" if value == "no" else f"--{word}={value}"


def _adopted(cluster: Cluster, options: Mapping[str, str], outcome: Outcome, known: list[Restored]) -> Restored:
    data_directory = Path(options.get("pgdata_dir", str(cluster.data_directory)))
    restored = Restored(cluster.installation, data_directory, int(options.get("port", "0")), outcome)
    if data_directory != cluster.data_directory or not cluster.is_running:
        restored.guard()
        known.append(restored)
    return restored


def _restore_id(log_directory: Path) -> str:
    names = sorted(path.stem for path in log_directory.glob("restore-*.log"))
    return names[-1].removeprefix("restore-") if names else ""


def _pgkeep(verb: str, attempt: Attempt, config: Path, *arguments: str) -> Outcome:
    outcome = run_pgkeep(verb, f"--pgdata-dir={attempt.restored.data_directory}", f"--config={config}", *arguments)
    attempt.restored.guard()
    return outcome
