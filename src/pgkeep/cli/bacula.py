"""``pgkeep bacula install``, ``check`` and ``confirm``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pgkeep.bacula.check import check
from pgkeep.bacula.daemon import FileDaemon, find_daemon
from pgkeep.bacula.install import install
from pgkeep.bacula.plugin_config import read_plugin_config
from pgkeep.cli.named_tests import report_results
from pgkeep.cli.output import print_line, say
from pgkeep.errors import PgkeepError, SettingsError
from pgkeep.jobs.check_spool import SpoolChecks
from pgkeep.settings import from_flags, parse_plugin_line, read_config, resolve
from pgkeep.spool.state import has_state


def run_install(
    *,
    fd_config: Path | None,
    plugin_dir: Path | None,
    plugin: Path | None,
    backend: Path | None,
    user: str | None,
    config: Path | None,
    state_dir: Path | None,
) -> None:
    """Install the plugin, and print what is left to do."""
    daemon = find_daemon(fd_config=_absolute(fd_config), plugin_directory=_absolute(plugin_dir))
    done = install(
        daemon,
        plugin=_absolute(plugin),
        backend=_absolute(backend),
        user=user,
        config=_absolute(config),
        state_dir=_state_directory(state_dir, config),
    )
    for line in done.lines:
        say(line)
    print_line("What is left to do:")
    for number, line in enumerate(done.to_do, 1):
        print_line(f"  {number}. {line}")


def run_check(
    *,
    fd_config: Path | None,
    plugin_dir: Path | None,
    line: str,
    config: Path | None,
    state_dir: Path | None,
    as_json: bool,
) -> None:
    """Print a line per test as it ends; raise CheckFailed when one failed."""
    daemon = find_daemon(fd_config=_absolute(fd_config), plugin_directory=_absolute(plugin_dir))
    config = config or _backend_config(daemon)
    state = _state_directory(state_dir, config)
    report_results(check(daemon, plugin_line=line, state_dir=state, spool=_spool(line, config)), as_json=as_json)


def run_confirm(job: str, *, config: Path | None, state_dir: Path | None) -> None:
    """Mark the records of a job."""
    from pgkeep.bacula.state import confirm_job

    for directory in confirm_job(str(_state_directory(state_dir, config)), job):
        say(f"confirmed {job} in {directory}")


def _state_directory(chosen: Path | None, config: Path | None) -> Path:
    """Return the directory that the backend would take: as chosen here, or as its configuration file says."""
    path = str(config) if config is not None else os.environ.get("PGKEEP_CONFIG")
    values = {} if chosen is None else {"state_dir": str(chosen.absolute())}
    return Path(resolve(from_flags(values), verb="backup", config=read_config(path)).require("state_dir"))


def _spool(line: str, config: Path | None) -> SpoolChecks | None:
    """Return the tests of the spool that jobs with this Plugin *line* take WAL from; None when none was ever there."""
    path = str(config) if config is not None else os.environ.get("PGKEEP_CONFIG")
    with contextlib.suppress(PgkeepError):
        settings = resolve(parse_plugin_line(line).assignments(), verb="backup", config=read_config(path))
        cluster = settings.text("cluster_id") or "default"
        spool = Path(settings.require("spool_dir")) / cluster
        return SpoolChecks(cluster=cluster, spool=spool) if has_state(spool) else None
    # A line that cannot be read has a test of its own.
    return None


def _backend_config(daemon: FileDaemon) -> Path | None:
    """Return the pgkeep.conf that the plugin names; a file that is not well has a test of its own."""
    try:
        return read_plugin_config(daemon.plugin_config, daemon_uid=daemon.uid).config
    except SettingsError:
        # The test of that file says it.
        return None


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()
