"""Recognising what starts, stops and promotes a cluster by its own lights."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pgkeep.datadir.processes import Process, all_processes, ancestors, unit_in
from pgkeep.datadir.service import Service, ServiceKind
from pgkeep.datadir.supervisor import find_supervisor
from tests.lab.cluster import wait_for

StartProgram = Callable[..., int]

# It waits until the test closes its standard input, and starts what it is told as its own child.
_PROGRAM = """#!/bin/sh
[ -z "$CHILD" ] || "$CHILD" &
read -r end
"""


@pytest.fixture
def start_program(tmp_path: Path) -> Iterator[StartProgram]:
    """Return a function that starts a program of some name with some arguments, and returns its number."""
    with ExitStack() as stack:

        def start(name: str, *arguments: str | Path, cwd: Path = tmp_path, **environment: str) -> int:
            program = tmp_path / "programs" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(_PROGRAM)
            program.chmod(0o755)
            process = subprocess.Popen(
                [str(program), *map(str, arguments)],
                stdin=subprocess.PIPE,
                cwd=cwd,
                env={"PATH": "/usr/bin:/bin"} | environment,
            )
            stack.enter_context(process)
            # Between fork and exec it shows as this program.
            wait_for(lambda: any(p.pid == process.pid and name in p.names for p in all_processes()), f"{name} runs")
            return process.pid

        yield start


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory."""
    path = tmp_path / "data"
    path.mkdir()
    (path / "PG_VERSION").write_text("18\n")
    return path


def found(data_directory: Path, service: Service | None = None) -> str:
    """Return the name of what minds the data directory."""
    supervisor = find_supervisor(data_directory, service or Service())
    return supervisor.name if supervisor is not None else ""


def test_patroni_minds_the_directory_of_its_configuration(start_program: StartProgram, tmp_path: Path) -> None:
    """And no other one: a drill beside it is nobody's business."""
    data = tmp_path / "data"
    text = "scope: main\npostgresql:\n  listen: 127.0.0.1:5432\n  data_dir: {}\n  bin_dir: /usr/lib\n"
    (tmp_path / "patroni.yml").write_text(text.format(f'"{data}"  # the real one'))
    pid = start_program("patroni", "patroni.yml")
    supervisor = find_supervisor(data, Service())
    assert supervisor is not None
    assert supervisor.name == "Patroni"
    assert supervisor.evidence == f"process {pid}, /bin/sh {tmp_path}/programs/patroni patroni.yml"
    assert supervisor.hint.startswith("stop Patroni on every node")
    (tmp_path / "link").symlink_to(data)
    assert found(tmp_path / "link") == "Patroni"
    assert found(tmp_path / "drill") == ""


def test_patroni_by_its_environment_or_a_directory_of_files(start_program: StartProgram, tmp_path: Path) -> None:
    """The variable wins, as it does for Patroni; a directory stands for the files in it."""
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10-base.yml").write_text(f"postgresql:\n  data_dir: {tmp_path}/one\n")
    start_program("patroni", tmp_path / "conf.d")
    start_program("patroni", PATRONI_POSTGRESQL_DATA_DIR=str(tmp_path / "two"))
    assert [found(tmp_path / name) for name in ("one", "two", "three")] == ["Patroni", "Patroni", ""]


def test_patroni_with_a_closed_configuration(start_program: StartProgram, data: Path, tmp_path: Path) -> None:
    """What it leaves in a data directory counts while it is alive, and not when it is gone for good."""
    (data / "patroni.dynamic.json").write_text("{}")
    assert found(data) == ""
    start_program("patroni", tmp_path / "absent.yml")
    assert found(data) == "Patroni"
    assert found(tmp_path / "drill") == ""


@pytest.mark.parametrize("how", ["option", "short", "environment", "mark"])
def test_pg_auto_failover(start_program: StartProgram, data: Path, tmp_path: Path, how: str) -> None:
    """Named on its command line, in its environment, or known by what it adds to the configuration."""
    match how:
        case "option":
            start_program("pg_autoctl", "run", "--pgdata", "data")
        case "short":
            start_program("pg_autoctl", "run", "-D", data)
        case "environment":
            start_program("pg_autoctl", "run", PGDATA=str(data))
        case "mark":
            (data / "postgresql-auto-failover.conf").write_text("")
            start_program("pg_autoctl", "run")
    assert (found(data), found(tmp_path / "drill")) == ("pg_auto_failover", "")


def test_repmgrd_and_stolon(start_program: StartProgram, tmp_path: Path) -> None:
    """Each by where it says that its cluster is."""
    (tmp_path / "repmgr.conf").write_text(f"node_id=1\ndata_directory='{tmp_path}/repmgr data'\n")
    start_program("repmgrd", "-f", tmp_path / "repmgr.conf", "--daemonize")
    start_program("stolon-keeper", f"--data-dir={tmp_path}/stolon")
    assert [found(tmp_path / name) for name in ("repmgr data", "stolon/postgres", "stolon")] == [
        "repmgrd",
        "Stolon",
        "",
    ]


PRIMITIVE = """
<cib><configuration>
  <crm_config><cluster_property_set id="o"><nvpair id="m" name="maintenance-mode" value="{maintenance}"/>
  </cluster_property_set></crm_config>
  <resources><clone id="pg-clone"><meta_attributes id="c"><nvpair id="i" name="is-managed" value="{managed}"/>
  </meta_attributes><primitive id="pg" class="{kind}" provider="heartbeat" type="{type}">
    <instance_attributes id="a"><nvpair id="p" name="pgdata" value="{data}"/></instance_attributes>
  </primitive></clone></resources>
</configuration></cib>
"""


@pytest.mark.parametrize(
    ("changed", "is_minded"),
    [
        ({}, True),
        ({"type": "pgsqlms"}, True),
        ({"kind": "systemd", "type": "postgresql@18-main", "data": "/elsewhere"}, True),
        ({"kind": "systemd", "type": "postgresql@17-main"}, False),
        ({"data": "/srv/another"}, False),
        ({"type": "IPaddr2"}, False),
        ({"managed": "false"}, False),
        ({"maintenance": "true"}, False),
    ],
)
def test_pacemaker_minds_what_its_configuration_names(
    start_program: StartProgram,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    changed: dict[str, str],
    is_minded: bool,
) -> None:
    """A resource agent with that directory, or the server's unit; not when it was told to keep its hands off."""
    values = {"maintenance": "false", "managed": "true", "kind": "ocf", "type": "pgsql", "data": str(data)} | changed
    (tmp_path / "cib.xml").write_text(PRIMITIVE.format(**values))
    answer_as_cibadmin(tmp_path, monkeypatch, f'[ "$1" = --query ] && cat {tmp_path}/cib.xml')
    unit = Service(ServiceKind.SYSTEMD, "postgresql@18-main.service")
    assert found(data, unit) == ""
    start_program("pacemakerd")
    assert found(data, unit) == ("Pacemaker" if is_minded else "")


def test_pacemaker_that_does_not_answer(
    start_program: StartProgram, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may ask it who is not of its group: a cluster that is there is left alone, an empty place is not."""
    answer_as_cibadmin(tmp_path, monkeypatch, "echo 'Permission denied' >&2; exit 4")
    start_program("pacemakerd")
    supervisor = find_supervisor(data, Service())
    assert supervisor is not None
    assert supervisor.evidence == "it runs, and does not say which clusters it minds: Permission denied"
    assert found(tmp_path / "drill") == ""


def test_a_program_above_the_server_minds_it(start_program: StartProgram, data: Path, tmp_path: Path) -> None:
    """Whatever its configuration says: the server is its child."""
    child = tmp_path / "programs" / "server"
    child.parent.mkdir()
    # It works in its data directory, as a postmaster does.
    child.write_text(f"#!/bin/sh\ncd {data} && echo $$ >postmaster.pid.new && mv postmaster.pid.new postmaster.pid\n"
                     "exec sleep 600\n")  # fmt: skip
    child.chmod(0o755)
    parent = start_program("stolon-keeper", "--data-dir=/srv/elsewhere", CHILD=str(child))
    pid_file = data / "postmaster.pid"
    wait_for(pid_file.exists, "the server has started")
    pid = int(pid_file.read_text())
    try:
        assert parent in [process.pid for process in ancestors(pid)]
        assert found(data) == "Stolon"
    finally:
        subprocess.run(["kill", str(pid)], check=True)


@pytest.mark.parametrize(
    ("words", "is_patroni"),
    [
        ("/usr/bin/python3 /usr/bin/patroni /etc/patroni.yml", True),
        ("/opt/venv/bin/python3.11 -m patroni /etc/patroni.yml", True),
        ("python3 /usr/lib/python3/dist-packages/patroni/__main__.py", True),
        ("/usr/bin/patroni /etc/patroni.yml", True),
        ("patroni: worker", True),
        ("vim /etc/patroni", False),
        ("/bin/sh -c patroni", False),
        ("/bin/sh restore.sh patroni", False),
        ("/usr/bin/tail -f /var/log/patroni", False),
    ],
)
def test_programs_are_known_by_what_runs(words: str, is_patroni: bool) -> None:
    """The script counts and not its interpreter; a file that somebody looks at does not."""
    assert ("patroni" in Process(1, tuple(words.split())).names) == is_patroni


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/bacula-fd.service\n", "bacula-fd.service"),
        ("12:cpu:/x\n1:name=systemd:/system.slice/system-postgresql.slice/postgresql@18-main.service\n0::/\n",
         "postgresql@18-main.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/terminal.service\n", ""),
        ("0::/user.slice/user-0.slice/session-3.scope\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_service_that_a_process_belongs_to(text: str, unit: str) -> None:
    """By its control group, as both versions write it."""
    assert unit_in(text) == unit


def answer_as_cibadmin(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a ``cibadmin`` on the PATH that does what *script* says."""
    program = directory / "bin" / "cibadmin"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
