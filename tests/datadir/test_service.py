"""Finding what runs a server, and stopping and starting it by those means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgkeep.datadir.postmaster import read_control_file, running_postmaster
from pgkeep.datadir.service import Service, ServiceKind, start_server, stop_server
from pgkeep.datadir.service_search import find_service
from pgkeep.errors import RecoveryFailed, RestoreRefused
from pgkeep.pg.control_file import ClusterState
from tests.lab.cluster import Cluster, MakeCluster
from tests.lab.units import Units, debian_cluster


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> Cluster:
    """A cluster whose own configuration says where it listens; it is not running."""
    made = make_cluster(start=False)
    made.configure({"port": str(made.port), "unix_socket_directories": str(made.socket_directory)})
    return made


@pytest.fixture
def units(cluster: Cluster, lab_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Units:
    """A systemd."""
    made = Units(lab_directory, cluster)
    monkeypatch.setenv("PATH", made.path)
    return made


def running_pid(cluster: Cluster) -> int:
    """Return the number of the cluster's postmaster, 0 when none runs."""
    postmaster = running_postmaster(cluster.data_directory)
    return postmaster.pid if postmaster is not None else 0


def test_the_unit_of_a_running_server_stops_and_starts_it(cluster: Cluster, units: Units) -> None:
    """Whatever the unit is called and its definition hides: it is the one whose main process is the postmaster."""
    units.add("accounts-db.service", arguments="/usr/local/bin/run-database")
    unit = Service(ServiceKind.SYSTEMD, "accounts-db.service", was_running=True)
    start_server(unit, cluster.data_directory, timeout_seconds=180)
    assert find_service(cluster.data_directory) == unit
    assert str(unit) == "systemd unit accounts-db.service"
    stop_server(unit, cluster.data_directory, timeout_seconds=180)
    assert read_control_file(cluster.data_directory).state is ClusterState.SHUT_DOWN
    assert units.calls() == [
        "--no-ask-password start accounts-db.service",
        "--no-ask-password stop accounts-db.service",
    ]
    # The unit does not say whose server it runs, and none runs.
    assert find_service(cluster.data_directory) == Service()


@pytest.mark.parametrize("how", ["environment", "option", "long option"])
def test_a_unit_whose_server_is_down_is_known_by_its_definition(cluster: Cluster, units: Units, how: str) -> None:
    """PGDATA of the environment, as on Red Hat, or the option; and not the unit of another directory."""
    data = cluster.data_directory
    other = "PGDATA=/srv/another LANG=C"
    match how:
        case "environment":
            units.add("postgresql-18.service", arguments="/x/postgres -D ${PGDATA}", environment=f"A=1 PGDATA={data}/")
        case "option":
            units.add("postgresql-18.service", arguments=f"/x/pg_ctl start -s -D {data} -t 90", environment=other)
        case "long option":
            units.add("postgresql-18.service", arguments=f"/x/postgres --pgdata={data}")
    units.add("postgresql-17.service", arguments="/x/postgres -D ${PGDATA}", environment=other)
    assert find_service(data) == Service(ServiceKind.SYSTEMD, "postgresql-18.service")


def test_a_server_beside_its_unit_is_stopped_by_a_signal(cluster: Cluster, units: Units) -> None:
    """Its unit could not stop a server that somebody started by hand; it starts it in the end."""
    units.add("postgresql.service")
    cluster.start()
    found = find_service(cluster.data_directory)
    assert found == Service(ServiceKind.SYSTEMD, "postgresql.service", was_running=True, is_stopped_by_signal=True)
    assert Service.from_dict(found.as_dict()) == found
    stop_server(found, cluster.data_directory, timeout_seconds=180)
    assert running_pid(cluster) == 0
    assert units.calls() == []
    start_server(found, cluster.data_directory, timeout_seconds=180)
    assert find_service(cluster.data_directory) == Service(ServiceKind.SYSTEMD, "postgresql.service", was_running=True)
    stop_server(find_service(cluster.data_directory), cluster.data_directory, timeout_seconds=180)


def test_systemctl_without_systemd_is_not_asked_further(
    cluster: Cluster, lab_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers have the program, and nothing that it could talk to."""
    offline = Units(lab_directory, cluster, state="offline")
    offline.add("postgresql.service")
    monkeypatch.setenv("PATH", offline.path)
    cluster.start()
    found = find_service(cluster.data_directory)
    assert (found, str(found)) == (Service(was_running=True), "no service of this host")
    assert found.start_command == []
    stop_server(found, cluster.data_directory, timeout_seconds=180)
    assert running_pid(cluster) == 0
    assert read_control_file(cluster.data_directory).state is ClusterState.SHUT_DOWN
    # Nothing to stop is fine.
    stop_server(found, cluster.data_directory, timeout_seconds=180)


def test_a_unit_that_cannot_be_stopped(cluster: Cluster, units: Units) -> None:
    """A stop that is refused refuses the restore, in the words of systemctl; the server goes on."""
    units.add("postgresql.service")
    unit = Service(ServiceKind.SYSTEMD, "postgresql.service", was_running=True)
    start_server(unit, cluster.data_directory, timeout_seconds=180)
    pid = running_pid(cluster)
    units.refuse("postgresql.service", "Failed to stop postgresql.service: Interactive authentication required.")
    with pytest.raises(RestoreRefused) as refused:
        stop_server(unit, cluster.data_directory, timeout_seconds=180)
    assert refused.value.message == (
        f"cannot stop the server in {cluster.data_directory} (systemd unit postgresql.service): "
        "Failed to stop postgresql.service: Interactive authentication required."
    )
    assert refused.value.hint == "nothing was touched: stop it yourself, and restore again"
    assert running_pid(cluster) == pid != 0
    (units.directory / "postgresql.service" / "refuses").unlink()
    stop_server(unit, cluster.data_directory, timeout_seconds=180)


def test_a_service_that_starts_nothing_is_an_error(cluster: Cluster, units: Units) -> None:
    """What the service says is not enough: a server must run in this data directory, and be ready."""
    units.add("postgresql.service")
    unit = Service(ServiceKind.SYSTEMD, "postgresql.service")
    (cluster.data_directory / "postgresql.conf").write_text("no_such_setting = on\n")
    with pytest.raises(RecoveryFailed) as failed:
        start_server(unit, cluster.data_directory, timeout_seconds=180)
    assert failed.value.message.startswith("systemctl --no-ask-password start postgresql.service: ")
    assert failed.value.message.endswith(f"; no server runs in {cluster.data_directory}")


@pytest.mark.parametrize("has_systemd", [False, True])
def test_debians_clusters(
    make_cluster: MakeCluster, lab_directory: Path, monkeypatch: pytest.MonkeyPatch, has_systemd: bool
) -> None:
    """Debian's own programs know the cluster by its data directory; with systemd its unit is taken."""
    cluster = make_cluster(major=15, start=False)
    monkeypatch.setenv("PATH", debian_cluster(lab_directory, cluster, name="keep"))
    units = Units(lab_directory, cluster, state="degraded" if has_systemd else "offline")
    monkeypatch.setenv("PATH", f"{lab_directory / 'bin'}:{os.environ['PATH']}")
    link = lab_directory / "link"
    link.symlink_to(cluster.data_directory)
    if has_systemd:
        units.add("postgresql@15-keep.service", arguments="/usr/bin/pg_ctlcluster --skip-systemctl-redirect 15-keep")
        assert find_service(link) == Service(ServiceKind.SYSTEMD, "postgresql@15-keep.service")
        return
    found = find_service(link)
    assert (found, str(found)) == (Service(ServiceKind.PG_CTLCLUSTER, "15 keep"), "pg_ctlcluster 15 keep")
    start_server(found, cluster.data_directory, timeout_seconds=180)
    # Started with the configuration that lies outside of the data directory.
    assert cluster.value("SHOW config_file") == f"{lab_directory}/etc/15/keep/postgresql.conf"
    running = find_service(cluster.data_directory)
    assert running == Service(ServiceKind.PG_CTLCLUSTER, "15 keep", was_running=True)
    stop_server(running, cluster.data_directory, timeout_seconds=180)
    assert running_pid(cluster) == 0
    assert read_control_file(cluster.data_directory).state is ClusterState.SHUT_DOWN
    assert find_service(lab_directory / "another") == Service()
