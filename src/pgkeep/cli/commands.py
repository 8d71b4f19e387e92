"""The commands, as typer sees them: names, arguments, help. What they do is in a file each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pgkeep import __version__
from pgkeep.cli.bacula_commands import bacula_app
from pgkeep.cli.door import open_call
from pgkeep.cli.options import with_options

app = typer.Typer(
    help="Back up PostgreSQL and bring it back to any moment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Cluster = Annotated[str, typer.Argument(metavar="CLUSTER", help="The cluster's name in the vault.")]
Json = Annotated[bool, typer.Option("--json", help="Write a report for programs to stdout.")]


def _version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        typer.echo(f"pgkeep {__version__}")
        raise typer.Exit


@app.callback()
def pgkeep(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Back up PostgreSQL and bring it back to any moment."""


@app.command()
@with_options("init")
def init(
    cluster: Cluster,
    new_system: Annotated[
        bool,
        typer.Option("--new-system", help="The cluster was initialised anew: keep its old backups under another name."),
    ] = False,
    json: Json = False,
    *,
    values: dict[str, Any],
) -> None:
    """Make a vault where there is none, and add a cluster to it."""
    from pgkeep.cli.init import run

    run(open_call("init", cluster, values), new_system=new_system, as_json=json)


@app.command()
@with_options("check")
def check(cluster: Cluster, json: Json = False, *, values: dict[str, Any]) -> None:
    """Run named tests, and send one WAL segment the whole way."""
    from pgkeep.cli.check import run

    run(open_call("check", cluster, values), as_json=json)


@app.command()
@with_options("backup")
def backup(
    cluster: Cluster,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan and back up nothing.")] = False,
    json: Json = False,
    *,
    values: dict[str, Any],
) -> None:
    """Make a backup into the vault."""
    from pgkeep.cli.backup import run

    run(open_call("backup", cluster, values), plan_only=plan, as_json=json)


@app.command()
@with_options("restore")
def restore(cluster: Cluster, json: Json = False, *, values: dict[str, Any]) -> None:
    """Bring a cluster back to a moment, or dumps back into databases."""
    from pgkeep.cli.restore import run

    run(open_call("restore", cluster, values), as_json=json)


Restored = Annotated[str, typer.Argument(metavar="[CLUSTER]", help="The cluster, whose settings may name the place.")]


@app.command()
@with_options("finish")
def finish(cluster: Restored = "", json: Json = False, *, values: dict[str, Any]) -> None:
    """Start a restored server, watch its replay, check it and open it; go on with a restore that stopped."""
    from pgkeep.cli.finish import run

    run(open_call("finish", cluster, values), as_json=json)


@app.command()
@with_options("rollback")
def rollback(
    cluster: Restored = "",
    discard: Annotated[
        bool, typer.Option("--discard", help="Give up what was written into the restored cluster since.")
    ] = False,
    json: Json = False,
    *,
    values: dict[str, Any],
) -> None:
    """Undo a restore: put back what it moved away, and remove what it restored."""
    from pgkeep.cli.rollback import run

    run(open_call("rollback", cluster, values), is_discarded=discard, as_json=json)


@app.command()
@with_options("info")
def info(
    cluster: Annotated[str, typer.Argument(metavar="[CLUSTER]", help="One cluster; all when left out.")] = "",
    json: Json = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Write metrics in the text format of Prometheus to stdout.")
    ] = False,
    metrics_file: Annotated[
        str, typer.Option("--metrics-file", metavar="FILE", help="Write them to this file, in one step.")
    ] = "",
    *,
    values: dict[str, Any],
) -> None:
    """Show the backups, and from when to when each cluster can be recovered."""
    from pgkeep.cli.info import run

    call = open_call("info", cluster, values)
    run(call, as_json=json, as_metrics=metrics, metrics_file=metrics_file)


@app.command()
@with_options("verify")
def verify(cluster: Cluster, json: Json = False, *, values: dict[str, Any]) -> None:
    """Read everything that the vault holds and compare it with its digests."""
    from pgkeep.cli.verify import run

    run(open_call("verify", cluster, values), as_json=json)


@app.command()
@with_options("expire")
def expire(
    cluster: Cluster,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--plan", help="Say what would go, and remove nothing.")
    ] = False,
    pin: Annotated[str, typer.Option(metavar="BACKUP_ID", help="Keep this backup until it is unpinned.")] = "",
    unpin: Annotated[str, typer.Option(metavar="BACKUP_ID", help="Let a pinned backup expire again.")] = "",
    json: Json = False,
    *,
    values: dict[str, Any],
) -> None:
    """Remove backups and WAL that the retention does not keep."""
    from pgkeep.cli.expire import run

    run(open_call("expire", cluster, values), dry_run=dry_run, pin=pin, unpin=unpin, as_json=json)


@app.command()
@with_options("receive")
def receive(
    clusters: Annotated[list[str], typer.Argument(metavar="CLUSTER...", help="The clusters' names in the vault.")],
    *,
    values: dict[str, Any],
) -> None:
    """Receive WAL as it is written, and ship it into the vault, until a signal ends it."""
    from pgkeep.cli.receive import run

    run([open_call("receive", cluster, values) for cluster in clusters])


@app.command()
@with_options("merge")
def merge(cluster: Cluster, json: Json = False, *, values: dict[str, Any]) -> None:
    """Make a Full in the vault of a pitr_block chain, without the server."""
    from pgkeep.cli.merge import run

    run(open_call("merge", cluster, values), as_json=json)


@app.command()
@with_options("drill")
def drill(cluster: Cluster, json: Json = False, *, values: dict[str, Any]) -> None:
    """Prove that a moment can be reached: restore it into a scratch directory, check it, throw it away."""
    from pgkeep.cli.drill import run

    run(open_call("drill", cluster, values), as_json=json)


@app.command()
@with_options("grants")
def grants(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="The role that takes the backups.")] = "pgkeep",
    major: Annotated[int, typer.Option(metavar="N", help="The server's major version.")] = 18,
    *,
    values: dict[str, Any],
) -> None:
    """Print the SQL that gives a role the rights for a mode."""
    from pgkeep.cli.grants import run

    run(open_call("grants", "", values), role=role, major=major)


@app.command()
@with_options("demo")
def demo(
    story: Annotated[
        str, typer.Argument(metavar="STORY", help="Which: pitr, pitr_block, parallel_dump or cdp.")
    ] = "pitr",
    *,
    values: dict[str, Any],
) -> None:
    """Show the main job on a server of its own: load, backups, an accident, and the moment before it."""
    from pgkeep.cli.demo import run

    run(open_call("demo", "", values), story=story)


app.add_typer(bacula_app, name="bacula")


@app.command("archive-push", hidden=False)
def archive_push(path: Annotated[str, typer.Argument(metavar="PATH", help="As %p gives it.")]) -> None:
    """Archive one WAL file (archive_command); see pgkeep archive-push --help."""


@app.command("archive-get", hidden=False)
def archive_get(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As %f gives it.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="As %p gives it.")],
) -> None:
    """Deliver one WAL file (restore_command); see pgkeep archive-get --help."""
