"""A restore over the server that is broken: stopped, replaced, started, each by what runs it on this host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pgkeep.datadir.postmaster import running_postmaster
from tests.lab.cluster import Cluster, wait_for
from tests.lab.ledger import Ledger, Mark
from tests.lab.server_user import server_user
from tests.lab.units import Units, debian_cluster
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Restored
from tests.restore.unfinished import call

UNIT = "postgresql-main.service"


class Host:
    """A host on which something other than pgkeep runs the cluster, and an accident has happened to it."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.cluster: Cluster = keeper.cluster
        ledger = Ledger(self.cluster)
        ledger.transfer(30)
        self.mark: Mark = ledger.mark("backed up")
        keeper.backup("full", "local")
        self.cluster.sql("DROP TABLE ledger_mark")
        own = {"port": str(self.cluster.port), "unix_socket_directories": str(self.cluster.socket_directory)}
        self.cluster.configure(own)
        self.cluster.stop()

    def start(self, *command: str) -> None:
        """Start the server by *command*, which is one of the host's."""
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    @property
    def pid(self) -> int:
        """The number of the server's process; 0 for none."""
        postmaster = running_postmaster(self.cluster.data_directory)
        return postmaster.pid if postmaster is not None else 0

    def restore(self, *arguments: str, status: int = 0) -> Restored:
        """Restore over the cluster."""
        return self.keeper.restore("--overwrite-existing", "--target-immediate", *arguments, to="data", status=status)

    def moved_away(self) -> list[Path]:
        """Return what the cluster's directory is called now that another has its place."""
        return sorted(self.keeper.directory.glob("data.old.*"))


@pytest.fixture
def host(make_keeper: MakeKeeper) -> Host:
    """A host with a broken cluster, which is down."""
    return Host(make_keeper())


def test_the_unit_of_the_server_stops_it_and_starts_the_restored_one(
    host: Host, lab_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says so and touches nothing; then systemd has its server again, as if nothing had happened."""
    units = Units(lab_directory, host.cluster)
    monkeypatch.setenv("PATH", units.path)
    units.add(UNIT)
    host.start("systemctl", "start", UNIT)
    before = host.pid
    data = host.cluster.data_directory
    plan = host.keeper.plan("--overwrite-existing", "--start")
    assert f"stopped first: the server in {data}, systemd unit {UNIT}" in plan
    assert "  what it writes from now on is no part of this restore; stop it yourself before to have that, too" in plan
    assert f"server: started behind a fence, checked, left running by systemd unit {UNIT}" in plan
    assert host.pid == before
    restored = host.restore()
    assert f"stopping the server in {data}: process {before}, systemd unit {UNIT}" in restored.outcome.lines
    assert units.calls() == [
        f"start {UNIT}",
        f"--no-ask-password stop {UNIT}",
        f"--no-ask-password start {UNIT}",
    ]
    assert restored.outcome.warnings == []
    restored.assert_is_at(host.mark)
    shown = subprocess.run(["systemctl", "show", UNIT], capture_output=True, text=True, check=True).stdout
    assert f"MainPID={restored.postmaster()[0]}\n" in shown
    # Nothing of the fence or of the recovery is left.
    assert restored.value("SHOW listen_addresses") == "localhost"
    assert restored.value("SHOW recovery_target_timeline") == "latest"
    assert restored.value("SHOW restore_command") == ""
    assert len(host.moved_away()) == 1


def test_debians_cluster_comes_back_by_pg_ctlcluster(
    make_keeper: MakeKeeper, lab_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the configuration that Debian keeps elsewhere."""
    host = Host(make_keeper(major=15))
    monkeypatch.setenv("PATH", debian_cluster(lab_directory, host.cluster, name="keep"))
    host.start("pg_ctlcluster", "15", "keep", "start")
    restored = host.restore()
    calls = [line for line in (lab_directory / "calls").read_text().splitlines() if line.startswith("pg_ctlcluster")]
    assert calls == [
        "pg_ctlcluster 15 keep start",
        "pg_ctlcluster --mode=fast 15 keep stop",
        "pg_ctlcluster 15 keep start",
    ]
    assert restored.value("SHOW config_file") == f"{lab_directory}/etc/15/keep/postgresql.conf"
    restored.assert_is_at(host.mark)


def test_a_server_without_a_service_is_stopped_and_started_directly(host: Host) -> None:
    """As before, and rolled back to a server that runs as before."""
    host.cluster.start()
    before = host.pid
    restored = host.restore()
    plain = f"stopping the server in {host.cluster.data_directory}: process {before}, no service of this host"
    assert plain in restored.outcome.lines
    restored.assert_is_at(host.mark)
    wait_for(lambda: not host.cluster.is_running, "the old server is gone")
    restored._guardian.dismiss()  # type: ignore[union-attr]
    restored._guardian = None
    rolled_back = call("rollback", host.cluster.data_directory, "--discard")
    assert rolled_back.status == 0, rolled_back.lines
    assert f"the server of {host.cluster.data_directory} runs as before" in rolled_back.lines
    restored.guard()
    assert restored.value("SELECT to_regclass('ledger_mark') IS NULL")
    assert host.moved_away() == []


def test_a_unit_that_refuses_to_stop_refuses_the_restore(
    host: Host, lab_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is moved, and the server goes on."""
    units = Units(lab_directory, host.cluster)
    monkeypatch.setenv("PATH", units.path)
    units.add(UNIT)
    host.start("systemctl", "start", UNIT)
    units.refuse(UNIT, "Failed to stop: Interactive authentication required.")
    before = host.pid
    attempt = host.restore(status=8)
    assert attempt.outcome.refusal == [
        (
            f"error: cannot stop the server in {host.cluster.data_directory} (systemd unit {UNIT}): "
            "Failed to stop: Interactive authentication required."
        ),
        "hint: nothing was touched: stop it yourself, and restore again",
    ]
    assert (host.pid, host.moved_away()) == (before, [])
    attempt.guard()


def test_a_cluster_under_patroni_is_left_alone(host: Host, lab_directory: Path) -> None:
    """Whatever is allowed; a copy beside it is not Patroni's."""
    configuration = lab_directory / "patroni.yml"
    configuration.write_text(f"postgresql:\n  data_dir: {host.cluster.data_directory}\n")
    program = lab_directory / "patroni"
    program.write_text("#!/bin/sh\nread -r end\n")
    program.chmod(0o755)
    with subprocess.Popen(
        [str(program), str(configuration)], stdin=subprocess.PIPE, **server_user().popen_arguments()
    ) as patroni:
        wait_for(lambda: "patroni" in Path(f"/proc/{patroni.pid}/cmdline").read_text(), "Patroni runs")
        status, refusal = host.keeper.refuse("--overwrite-existing", "--start")
        command = f"/bin/sh {program} {configuration}"
        assert (status, refusal[0]) == (
            8,
            f"error: {host.cluster.data_directory} is in the hands of Patroni: process {patroni.pid}, {command}",
        )
        assert refusal[1].startswith("hint: stop Patroni on every node")
        assert host.moved_away() == []
        host.keeper.restore("--target-immediate").assert_is_at(host.mark)
