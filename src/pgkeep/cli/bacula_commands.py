"""``pgkeep bacula …``, as typer sees it; what the commands do is in ``bacula.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

bacula_app = typer.Typer(
    help="Give Bacula's File Daemon the plugin, and test everything between it and the server.", no_args_is_help=True
)

FdConfig = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option(
        "--fd-config", metavar="FILE", help="The daemon's bacula-fd.conf, where it is in none of the known places."
    ),
]
PluginDir = Annotated[
    Optional[Path],  # noqa: UP045 - the same
    typer.Option("--plugin-dir", metavar="DIRECTORY", help="The daemon's Plugin Directory, instead of what it says."),
]
StateDir = Annotated[
    Optional[Path],  # noqa: UP045 - the same
    typer.Option("--state-dir", metavar="DIRECTORY", help="As in pgkeep.conf, which is asked when this is left out."),
]
Config = Annotated[
    Optional[Path],  # noqa: UP045 - the same
    typer.Option("--config", metavar="FILE", help="Another pgkeep.conf than the default one."),
]
Json = Annotated[bool, typer.Option("--json", help="Write a report for programs to stdout.")]


@bacula_app.command()
def install(
    *,
    fd_config: FdConfig = None,
    plugin_dir: PluginDir = None,
    plugin: Annotated[
        Optional[Path],  # noqa: UP045 - the same
        typer.Option("--plugin", metavar="FILE", help="The built plugin, instead of the one that came along."),
    ] = None,
    backend: Annotated[
        Optional[Path],  # noqa: UP045 - the same
        typer.Option("--backend", metavar="FILE", help="The backend, instead of the one that came along."),
    ] = None,
    user: Annotated[
        Optional[str],  # noqa: UP045 - the same
        typer.Option(
            "--user", metavar="NAME", help="Whom the backend runs as; below a daemon of root's: postgres. Empty: root."
        ),
    ] = None,
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Put the plugin where the daemon looks for it, and say what to add to its configuration."""
    from pgkeep.cli.bacula import run_install

    run_install(
        fd_config=fd_config,
        plugin_dir=plugin_dir,
        plugin=plugin,
        backend=backend,
        user=user,
        config=config,
        state_dir=state_dir,
    )


@bacula_app.command()
def check(
    *,
    fd_config: FdConfig = None,
    plugin_dir: PluginDir = None,
    line: Annotated[
        str, typer.Option("--line", metavar="TEXT", help="The Plugin line of the FileSet, to reach the server with.")
    ] = "pgkeep: mode=pitr",
    config: Config = None,
    state_dir: StateDir = None,
    json: Json = False,
) -> None:
    """Run named tests: the plugin loads, the backend runs as its user and reaches the server."""
    from pgkeep.cli.bacula import run_check

    run_check(fd_config=fd_config, plugin_dir=plugin_dir, line=line, config=config, state_dir=state_dir, as_json=json)


@bacula_app.command()
def confirm(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The job's unique name: %j in RunAfterJob.")],
    config: Config = None,
    state_dir: StateDir = None,
) -> None:
    """Note that a job has succeeded, so that the server may drop WAL that it holds."""
    from pgkeep.cli.bacula import run_confirm

    run_confirm(job, config=config, state_dir=state_dir)
