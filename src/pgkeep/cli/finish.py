"""``pgkeep finish``."""

from __future__ import annotations

from pathlib import Path

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_json, say, warn
from pgkeep.errors import UsageError


def run(call: Call, *, as_json: bool) -> None:
    """Do what is left of a restore."""
    from pgkeep.jobs.finish import finish, known_restore
    from pgkeep.jobs.restoring.settings import audit_file, check_allowed, restore_options
    from pgkeep.server.tools import toolbox_for_server

    check_allowed(call.settings)
    data_directory = restored_directory(call)
    state = known_restore(data_directory)
    settings = call.settings
    given = restore_options(settings)
    audit = audit_file(settings, state.restore_id, say=say, warn=warn)
    with audit.kept():
        result = finish(
            data_directory,
            audit,
            find_bin_directory=lambda major: toolbox_for_server(major, bin_dir=call.bin_dir).directory,
            timeout_seconds=settings.number("restore_timeout") if settings.is_given("restore_timeout") else None,
            options={name: value for name, value in given.items() if settings.is_given(name)},
        )
    if as_json:
        print_json(
            {
                "restore_id": result.state.restore_id,
                "backup_id": result.state.backup_id,
                "data_directory": result.state.data_directory,
                "replayed_to": str(result.end.lsn),
                "timeline": int(result.end.timeline),
                "promoted": result.end.is_promoted,
                "databases": list(result.databases),
            }
        )


def restored_directory(call: Call) -> Path:
    """Return the data directory of the restore; raise UsageError when nothing says it."""
    place = call.settings.text("pgdata_dir")
    if not place:
        raise UsageError("the data directory of the restore is not known", hint="name it: --pgdata-dir=/directory")
    return Path(place)
