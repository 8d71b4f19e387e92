"""``pgkeep archive-push`` and ``archive-get``: what the server calls, and what the small client falls back to."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.cli.output import fail, say
from pgkeep.errors import PgkeepError, UsageError

if TYPE_CHECKING:
    from pgkeep.settings import Resolved
    from pgkeep.vault.wal_archive import WalArchive

USAGE = {
    "archive-push": "usage: pgkeep archive-push --cluster=NAME [--vault=PATH] [--config=PATH] [--zstd-level=N] PATH\n"
    "       archive_command = 'pgkeep-wal archive-push --cluster=NAME %p'",
    "archive-get": "usage: pgkeep archive-get --cluster=NAME [--vault=PATH] [--config=PATH] [--plan=PATH] NAME PATH\n"
    "       restore_command = 'pgkeep-wal archive-get --cluster=NAME %f %p'",
}

_PUSH_FAILED = 1
_MAX_PUSH_STATUS = 125
_UNKNOWN_FAILURE = 201


@dataclass(frozen=True, slots=True)
class _Call:
    cluster: str
    settings: Resolved
    client_socket: str
    plan_path: Path | None
    config_path: Path
    operands: list[str]

    def archive(self) -> WalArchive:
        from pgkeep.vault.vault import Vault

        return Vault.open(Path(self.settings.require("vault"))).cluster(self.cluster).archive


def main(verb: str, arguments: list[str]) -> int:
    """
    Run *verb*; return the exit status that the server must see.

    A push fails within 1 to 125, so that the server tries again. A get says 1 only for what is proved absent and above
    125 for everything else, or the server would take a fault for the end of the WAL.
    """
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(USAGE[verb] + "\n")
        return 0
    try:
        call = _parse(verb, arguments)
        return _push(call) if verb == "archive-push" else _get(call)
    except PgkeepError as error:
        status = fail(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the server must not take it for the end of the WAL
        say(f"error: {type(error).__name__}: {error}")
        status = PgkeepError.exit_status
    if verb == "archive-push":
        return min(max(status, _PUSH_FAILED), _MAX_PUSH_STATUS)
    return status + _UNKNOWN_FAILURE - PgkeepError.exit_status


def _parse(verb: str, arguments: list[str]) -> _Call:
    from pgkeep.settings import cli_options, from_flags, read_config, resolve

    flags = {flag: option.parameter.name for option in cli_options(verb) for flag in option.flags}
    values: dict[str, str | bool | list[str] | tuple[str, ...] | None] = {}
    own = {"--cluster": "", "--for-client": "", "--plan": ""}
    operands = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            operands.append(word)
            continue
        flag, has_value, value = word.partition("=")
        if flag not in flags and flag not in own:
            raise UsageError(f"unknown option {flag} of {verb}", hint=USAGE[verb].splitlines()[0])
        if not has_value:
            if not waiting:
                raise UsageError(f"{flag} needs a value")
            value = waiting.pop(0)
        if flag in own:
            own[flag] = value
        else:
            values[flags[flag]] = value
    expected = 1 if verb == "archive-push" else 2
    if len(operands) != expected or not own["--cluster"]:
        raise UsageError(
            f"{verb} takes --cluster and {expected} operands, found {len(operands)}", hint=USAGE[verb].splitlines()[0]
        )
    path = values.get("config") or os.environ.get("PGKEEP_CONFIG")
    config = read_config(str(path) if path else None)
    settings = resolve(from_flags(values), verb=verb, config=config, cluster=own["--cluster"])
    plan_path = Path(own["--plan"]) if own["--plan"] else None
    return _Call(own["--cluster"], settings, own["--for-client"], plan_path, Path(config.path), operands)


def _push(call: _Call) -> int:
    from pgkeep.jobs.archive.push import DEFAULT_AHEAD, archive_push

    archive = call.archive()
    level = call.settings.number("zstd_level")
    # The service comes up meanwhile, and pushes ahead from then on; so this call answers as soon as it can.
    _start_service(call, archive)
    ahead = 1 if call.client_socket else DEFAULT_AHEAD
    archive_push(archive, Path(call.operands[0]), compression_level=level, workers=_workers(call), ahead=ahead)
    return 0


def _get(call: _Call) -> int:
    from pgkeep.jobs.archive.get import ABSENT, ABSENT_FOR_CLIENT, DELIVERED, archive_get
    from pgkeep.jobs.archive.wal_plan import WalPlan

    archive = call.archive()
    plan = WalPlan.read(call.plan_path) if call.plan_path is not None else None
    _start_service(call, archive)
    delivered = archive_get(archive, call.operands[0], Path(call.operands[1]), plan=plan)
    if delivered:
        return DELIVERED
    return ABSENT_FOR_CLIENT if call.client_socket else ABSENT


def _workers(call: _Call) -> int:
    return min(call.settings.number("parallel_jobs"), os.cpu_count() or 1)


def _start_service(call: _Call, archive: WalArchive) -> None:
    """Start the resident service that the small client looked for in vain; nothing depends on it."""
    if not call.client_socket:
        return
    from pgkeep.jobs.archive.service import service_command
    from pgkeep.jobs.archive.service_socket import start_service

    socket_path = Path(call.client_socket)
    command = service_command(
        archive,
        socket_path,
        plan_path=call.plan_path,
        compression_level=call.settings.number("zstd_level"),
        workers=_workers(call),
        watched=[call.config_path],
    )
    with contextlib.suppress(OSError):
        start_service(socket_path, command)
