"""A host with services: small programs on a PATH that start and stop real servers, as systemctl and Debian's do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user

# What pgkeep asks of systemctl, for units that are directories: arguments, environment and data of each are files.
_SYSTEMCTL = """#!/bin/sh
units={units}
echo "$*" >>"$units/calls"
verb= unit=
for word; do
    case $word in
        -*) ;;
        *) if [ -n "$verb" ]; then unit=$word; else verb=$word; fi ;;
    esac
done
as_server() {{
    if [ "$(id -u)" = 0 ]; then setpriv --reuid={uid} --regid={gid} --clear-groups "$@"; else "$@"; fi
}}
case $verb in
    is-system-running) echo {state} ;;
    list-unit-files) for path in "$units"/*.service; do echo "${{path##*/}} enabled enabled"; done ;;
    show)
        for path in "$units"/*.service; do
            pid=0
            data=$(cat "$path/data")
            [ ! -e "$path/active" ] || pid=$(head -n 1 "$data/postmaster.pid")
            printf 'MainPID=%s\\nExecStart={{ path=x ; argv[]=%s ; ignore_errors=no ; pid=0 }}\\n' \\
                "$pid" "$(cat "$path/arguments")"
            printf 'Environment=%s\\nId=%s\\nLoadState=loaded\\n\\n' "$(cat "$path/environment")" "${{path##*/}}"
        done
        ;;
    start)
        path=$units/$unit
        data=$(cat "$path/data")
        as_server {bin_dir}/pg_ctl -D "$data" -l "$path/log" -t 60 -s -w start || exit 1
        touch "$path/active"
        ;;
    stop)
        path=$units/$unit
        [ ! -e "$path/refuses" ] || {{ cat "$path/refuses" >&2; exit 1; }}
        as_server {bin_dir}/pg_ctl -D "$(cat "$path/data")" -m fast -t 60 -s -w stop || exit 1
        rm -f "$path/active"
        ;;
esac
"""

# Debian's own programs, with another place for their configuration.
_WRAPPER = """#!/bin/sh
PG_CLUSTER_CONF_ROOT={root}
export PG_CLUSTER_CONF_ROOT
echo "${{0##*/}} $*" >>{calls}
exec {program} "$@"
"""

# The little of them that counts here, for a machine that is not Debian's.
_LSCLUSTERS = """#!/bin/sh
echo '[{{"version": "{major}", "cluster": "{name}", "pgdata": "{data}"}}]'
"""
_CTLCLUSTER = """#!/bin/sh
echo "${{0##*/}} $*" >>{calls}
for word; do verb=$word; done
set -- {bin_dir}/pg_ctl -D {data} -l {log} -m fast -s -w -t 60 "$verb" -o "-c config_file={configuration}"
if [ "$(id -u)" = 0 ]; then exec setpriv --reuid={uid} --regid={gid} --clear-groups "$@"; fi
exec "$@"
"""


class Units:
    """systemd units, each for the server of one cluster."""

    def __init__(self, directory: Path, cluster: Cluster, *, state: str = "running") -> None:
        """Put ``systemctl`` into *directory*/bin; *state* is what it says of the system."""
        self.directory = directory / "units"
        self.path = f"{directory / 'bin'}:{os.environ['PATH']}"
        self._cluster = cluster
        for path in (self.directory, directory / "bin"):
            path.mkdir(exist_ok=True)
        (self.directory / "calls").touch()
        user = server_user()
        _write_program(
            directory / "bin" / "systemctl",
            _SYSTEMCTL.format(
                units=self.directory, uid=user.uid, gid=user.gid, state=state, bin_dir=cluster.installation.bin_dir
            ),
        )
        user.own(self.directory)

    def add(self, name: str, *, arguments: str = "", environment: str = "") -> None:
        """Define a unit for the server of the cluster."""
        unit = self.directory / name
        unit.mkdir()
        data = str(self._cluster.data_directory)
        (unit / "data").write_text(data)
        (unit / "arguments").write_text(arguments or f"{self._cluster.installation.bin_dir}/postgres -D {data}")
        (unit / "environment").write_text(environment)
        server_user().own(unit)

    def refuse(self, name: str, text: str) -> None:
        """Let ``systemctl stop`` of that unit fail with *text*."""
        (self.directory / name / "refuses").write_text(text + "\n")

    def calls(self) -> list[str]:
        """Return what systemctl was told to do; questions are left out."""
        lines = (self.directory / "calls").read_text().splitlines()
        return [line for line in lines if {"start", "stop"}.intersection(line.split())]


def debian_cluster(directory: Path, cluster: Cluster, *, name: str) -> str:
    """
    Make *cluster* one of pg_ctlcluster's, with its configuration beneath *directory*/etc; return the PATH to use.

    The programs are Debian's own where this machine has them; ``calls`` in *directory* tells how they were called.
    """
    configuration = directory / "etc" / str(cluster.major) / name
    configuration.mkdir(parents=True)
    for file in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        shutil.copy(cluster.data_directory / file, configuration / file)
    with (configuration / "postgresql.conf").open("a") as settings:
        for setting, value in {
            "data_directory": cluster.data_directory,
            "hba_file": configuration / "pg_hba.conf",
            "ident_file": configuration / "pg_ident.conf",
            "external_pid_file": directory / "pid",
            "port": cluster.port,
            "unix_socket_directories": cluster.socket_directory,
        }.items():
            settings.write(f"{setting} = '{value}'\n")
    (configuration / "start.conf").write_text("manual\n")
    log = directory / "pg_ctlcluster.log"
    log.touch()
    (configuration / "log").symlink_to(log)
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    calls = directory / "calls"
    for program, small in (("pg_lsclusters", _LSCLUSTERS), ("pg_ctlcluster", _CTLCLUSTER)):
        real = shutil.which(program) if cluster.installation.source == "system" else None
        text = (_WRAPPER if real else small).format(
            root=directory / "etc",
            calls=calls,
            program=real,
            major=cluster.major,
            name=name,
            data=cluster.data_directory,
            bin_dir=cluster.installation.bin_dir,
            log=log,
            configuration=configuration / "postgresql.conf",
            uid=server_user().uid,
            gid=server_user().gid,
        )
        _write_program(programs / program, text)
    calls.touch()
    for path in (directory / "etc", log, calls):
        server_user().own(path)
    return f"{programs}:{os.environ['PATH']}"


def _write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
