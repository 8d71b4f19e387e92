"""``pgkeep restore`` of dumps: into files, or into databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, print_line, say, warn
from pgkeep.errors import RestoreRefused
from pgkeep.modes.dump_restore import restore
from pgkeep.modes.dump_restore_plan import DumpRestoreOptions, plan_restore
from pgkeep.server.connection import Server
from pgkeep.streams.record import RecordHead
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.stored_backup import StoredItem


def restore_dumps(call: Call, cluster: ClusterVault, heads: list[RecordHead], *, as_json: bool) -> None:
    """Restore the newest dump, or the one that was asked for."""
    head = _chosen(call, heads)
    output_dir = call.settings.text("output_dir")
    if output_dir:
        _into_files(call, cluster, head, Path(output_dir), as_json=as_json)
    else:
        _into_databases(call, cluster, head, as_json=as_json)


def _into_files(call: Call, cluster: ClusterVault, head: RecordHead, directory: Path, *, as_json: bool) -> None:
    from pgkeep.jobs.extract import extract

    plan_only = call.settings.flag("dry_run_restore")
    with cluster.open_backup(head.backup_id) as backup:
        root = f"@postgresql/{head.mode}"
        if plan_only:
            lines = (f"{entry.size:>14}  {directory / entry.path.removeprefix(root + '/')}" for entry in backup.files())
            if as_json:
                print_json({"plan": list(lines)})
                return
            for line in lines:
                print_line(line)
            return
        written = extract(backup.items(), root=root, directory=directory)
    say(f"{len(written)} files of backup {head.backup_id} are in {directory}")
    if as_json:
        print_json({"backup_id": head.backup_id, "files": [str(path) for path in written]})


def _into_databases(call: Call, cluster: ClusterVault, head: RecordHead, *, as_json: bool) -> None:
    settings = call.settings
    options = DumpRestoreOptions(
        databases=settings.names("target_database"),
        new_database=settings.text("new_database") or "",
        tables=settings.text("target_table") or "",
        overwrite_existing=settings.flag("overwrite_existing"),
        include_globals=settings.flag("restore_globals"),
        jobs=call.workers,
        bin_dir=call.bin_dir,
        tmpdir=Path(settings.require("tmpdir")),
    )
    with Server.open(call.connection()) as server, cluster.open_backup(head.backup_id) as backup:
        plan = plan_restore(head, options, server=server, warn=warn)
        lines = list(plan.lines())
        if settings.flag("dry_run_restore"):
            if as_json:
                print_json({"plan": lines})
            for line in [] if as_json else lines:
                print_line(line)
            return
        for line in lines:
            say(line)

        def supply(select: object) -> Iterator[StoredItem]:
            return backup.items(lambda entry: select(entry.path))  # type: ignore[operator]

        names = restore(plan, supply, server=server, say=say, warn=warn)
    if as_json:
        print_json({"backup_id": head.backup_id, "databases": list(names)})


def _chosen(call: Call, heads: list[RecordHead]) -> RecordHead:
    wanted, mode = call.settings.text("backup_id"), call.settings.get("restore_mode")
    dumps = [head for head in heads if head.mode.endswith("dump") and mode in ("auto", head.mode)]
    if wanted:
        dumps = [head for head in dumps if head.backup_id == wanted]
    if not dumps:
        what = f'no dump "{wanted}"' if wanted else "no dump"
        raise RestoreRefused(f"cluster {call.cluster_name} has {what}", hint=f"run: pgkeep info {call.cluster_name}")
    return dumps[-1]
