"""``pgkeep rollback``."""

from __future__ import annotations

from pgkeep.cli.door import Call
from pgkeep.cli.finish import restored_directory
from pgkeep.cli.output import print_json, say, warn


def run(call: Call, *, is_discarded: bool, as_json: bool) -> None:
    """Undo a restore."""
    from pgkeep.jobs.finish import known_restore
    from pgkeep.jobs.restoring.settings import audit_file
    from pgkeep.jobs.rollback import rollback

    data_directory = restored_directory(call)
    audit = audit_file(call.settings, known_restore(data_directory).restore_id, say=say, warn=warn)
    with audit.kept():
        state = rollback(data_directory, audit, is_discarded=is_discarded)
        if not state.asides:
            audit.say(f"{data_directory} is as empty as it was before the restore")
    if as_json:
        print_json(
            {
                "restore_id": state.restore_id,
                "data_directory": state.data_directory,
                "put_back": [aside.path for aside in state.asides],
            }
        )
