"""pg_restore and psql: bringing a dump or a script into a database, and judging what they complain of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pgkeep.errors import FormatError, ToolError
from pgkeep.pg.capabilities import Capabilities
from pgkeep.server.client_program import ClientProgram, conninfo_for
from pgkeep.server.pg_dump import DumpFormat
from pgkeep.server.tools import Toolbox
from pgkeep.streams.item import Buffer

_NEW_SETTING = b"SET transaction_timeout = 0;"
"""Written by the tools of 17 and later without asking the server, which knows it only from 17 on."""
_PREAMBLE_BYTES = 64 << 10
_TAR_END_BYTES = 1024
"""Two blocks of zeros."""
_SETTING_NAME = "transaction_timeout"
_IGNORED = "errors ignored on restore: "
"""pg_restore's last words when it went on to the end."""
_PSQL_ERROR = re.compile(r": (?:ERROR|FATAL|PANIC): +([0-9A-Z]{5}): (.*)")
_DUPLICATE_OBJECT = "42710"


def writes_unknown_setting(toolbox: Toolbox, server_version: int) -> bool:
    """Whether *toolbox*'s programs set something that a server of *server_version* does not know."""
    written = Capabilities(toolbox.version.major * 10000).has_transaction_timeout
    return written and not Capabilities(server_version).has_transaction_timeout


def restore_arguments(
    toolbox: Toolbox,
    dump_format: DumpFormat,
    dbname: str,
    *,
    server_version: int,
    role: str = "",
    directory: Path | None = None,
    jobs: int = 1,
    section: str = "",
    listing: Path | None = None,
) -> list[str | Path]:
    """
    Return the command that loads a dump into *dbname*, from standard input or from *directory*.

    *directory* may be a file in custom format, too; *section* is the only one that is loaded, empty for all;
    *listing* is a file with the entries that are loaded.

    A plain dump is loaded by psql. Both stop at the first error, except where the first is sure to be harmless
    (``writes_unknown_setting``); ``finish_restore`` then counts.
    """
    if dump_format is DumpFormat.PLAIN:
        return script_arguments(toolbox, dbname, stops_at_error=True)
    words: list[str | Path] = [toolbox.program("pg_restore"), f"--format={dump_format.value}", "--no-password"]
    if not writes_unknown_setting(toolbox, server_version):
        words.append("--exit-on-error")
    if role:
        words.append(f"--role={role}")
    if section:
        words.append(f"--section={section}")
    if listing is not None:
        words.append(f"--use-list={listing}")
    words.append(f"--dbname={conninfo_for(dbname)}")
    if directory is not None:
        words += [f"--jobs={jobs}", directory]
    return words


def script_arguments(toolbox: Toolbox, dbname: str, *, stops_at_error: bool) -> list[str | Path]:
    """Return the command that runs the SQL of standard input in *dbname*."""
    return [
        toolbox.program("psql"),
        "--no-psqlrc",
        "--no-password",
        "--quiet",
        f"--set=ON_ERROR_STOP={'on' if stops_at_error else 'off'}",
        "--set=VERBOSITY=verbose",  # SQLSTATEs, which no translation changes
        "--file=-",
        f"--dbname={conninfo_for(dbname)}",
    ]


def without_unknown_setting(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    """Yield a plain dump without the line that an older server would stumble over; it stands in the preamble."""
    stream = iter(chunks)
    head = bytearray()
    for chunk in stream:
        head += chunk
        if len(head) >= _PREAMBLE_BYTES:
            break
    yield bytes(head.replace(b"\n" + _NEW_SETTING + b"\n", b"\n", 1))
    yield from stream


def with_tar_end(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    """
    Yield a dump in tar format; raise FormatError before its end when it was cut off.

    pg_restore 18 never ends on half a tar from standard input: it asks for the rest of a member for ever.
    """
    tail = b""
    for chunk in chunks:
        tail = (tail + bytes(chunk[-_TAR_END_BYTES:]))[-_TAR_END_BYTES:]
        yield chunk
    if len(tail) < _TAR_END_BYTES or any(tail):
        raise FormatError("dump in tar format ends before its end")


def finish_restore(child: ClientProgram) -> None:
    """Wait for a loading *child*; raise ToolError when it failed for more than the one harmless statement."""
    status = child.wait()
    if status == 0:
        return
    lines = [line for line in child.complaints if _SETTING_NAME not in line]
    # Parallel workers each set it, and the count of ignored errors leaves theirs out: so every error is looked at.
    is_harmless = not any("error:" in line for line in lines) and any(_IGNORED in line for line in lines)
    if status != 1 or not is_harmless:
        raise child.failure(status, lines)


def finish_globals(child: ClientProgram) -> int:
    """
    Wait for psql to have run a script of globals without stopping at errors.

    Returns:
        How many roles and tablespaces existed already.

    Raises:
        ToolError: psql failed, or a statement failed for another reason.
    """
    status = child.wait()
    errors = psql_errors(child.complaints)
    others = [text for state, text in errors if state != _DUPLICATE_OBJECT and _SETTING_NAME not in text]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ToolError(
            f"{child.task} failed: {others[0]}{more}",
            hint="create by hand what is missing, for example a tablespace's directory, and run it again",
        )
    if status != 0:
        raise child.failure(status)
    return sum(state == _DUPLICATE_OBJECT for state, _ in errors)


def psql_errors(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Return SQLSTATE and message of every error that psql told in verbose form."""
    return [(match[1], match[2]) for line in lines if (match := _PSQL_ERROR.search(line))]
