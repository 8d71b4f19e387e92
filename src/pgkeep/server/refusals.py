"""What a server's refusal, or its silence, means to the reader: every database error becomes a ServerError here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgkeep.errors import ServerError

if TYPE_CHECKING:
    import psycopg

INSUFFICIENT_PRIVILEGE = "42501"
QUERY_CANCELED = "57014"
DATA_CORRUPTED = "XX001"
UNDEFINED_OBJECT = "42704"
DUPLICATE_OBJECT = "42710"
OBJECT_IN_USE = "55006"

# Classes 08 (connection exception) and 57P (operator intervention: shutdown, crash, cannot connect now) end a session.
_SESSION_ENDS = ("08", "57P")

_HINTS = (
    ("password authentication failed", "check the password or its line in the pgpass file"),
    ("no password supplied", "give a pgpass file (pgpass_file) or a password in the configuration file"),
    ("no pg_hba.conf entry", "pg_hba.conf needs a line for this user and address; a stream needs one for replication"),
    ("pg_hba.conf rejects", "pg_hba.conf rejects this user and address on purpose: ask who wrote the line"),
    ("certificate verify failed", "check sslrootcert and the name in the server's certificate"),
    ("does not match host name", "connect by the name in the server's certificate, or use sslmode=verify-ca"),
    ("root certificate file", "set sslrootcert to the authority's certificate, or sslrootcert=system"),
    ("does not support SSL", "turn on ssl at the server, or use another sslmode"),
    ("max_wal_senders", "raise max_wal_senders, or wait until another base backup or receiver has ended"),
    ("too many clients", "raise max_connections, or wait until other sessions have ended"),
    ("remaining connection slots", "raise max_connections, or wait until other sessions have ended"),
    ("must be superuser or replication role", 'run "pgkeep grants" for the rights that the role needs'),
    ("permission denied to start WAL sender", 'run "pgkeep grants" for the rights that the role needs'),
    ("is starting up", "the server is starting: try again when it accepts connections"),
    ("is shutting down", "the server is shutting down"),
    ("Connection refused", "is PostgreSQL running there, and does it listen on this address and port?"),
    ("No such file or directory", "is PostgreSQL running, and is this the directory of its socket?"),
    ("timeout expired", "is the address right, and does a firewall drop the packets?"),
    ("could not translate host name", "check the name of the host"),
    ("Name or service not known", "check the name of the host"),
    ("definition of service", "check the service file"),
)


def one_line(text: str) -> str:
    """Return what *text*, a message of the server's or libpq's, says: one line, without the severity in front."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return "no reason was given"
    line = lines[0].removeprefix("consuming input failed: ").removeprefix("sending query failed: ")
    for severity in ("FATAL:", "ERROR:", "PANIC:"):
        _, found, rest = line.partition(severity)
        if found:
            return rest.strip()
    return line


def connection_refusal(error: psycopg.Error, *, where: str, replication: bool) -> ServerError:
    """Return the error of a connection that could not be made."""
    text = str(error)
    # Several addresses were tried: the last word is not always the telling one, but it is in the text.
    reason = one_line(text)
    reason = reason.removeprefix("connection failed: ").removeprefix("connection is bad: ")
    _, found, after = reason.partition(" failed: ")
    if found and reason.startswith("connection to server"):
        reason = after
    hint = next((hint for symptom, hint in _HINTS if symptom in text), "")
    kind = " for replication" if replication else ""
    return ServerError(f"cannot connect to PostgreSQL at {where}{kind}: {reason}", hint=hint)


def query_refusal(error: psycopg.Error, *, where: str) -> ServerError:
    """Return the error of a query that the server refused, or of a session that ended under it."""
    state = error.sqlstate
    message = error.diag.message_primary or one_line(str(error))
    return refusal(state, message, hint=error.diag.message_hint or "", where=where)


def refusal(state: str | None, message: str, *, where: str, hint: str = "") -> ServerError:
    """Return the error for SQLSTATE *state*, None when no server said anything, with the server's *message*."""
    if state is None or state.startswith(_SESSION_ENDS):
        return ServerError(f"the connection to PostgreSQL at {where} was lost: {one_line(message)}")
    if state == INSUFFICIENT_PRIVILEGE:
        hint = 'run "pgkeep grants" for the rights that the role needs'
    return ServerError(f"PostgreSQL at {where} refused: {one_line(message)}", hint=" ".join(hint.split()))


class Refused(ServerError):
    """
    The server refused a command.

    Attributes:
        state: SQLSTATE; None when the connection broke.
    """

    def __init__(self, error: ServerError, state: str | None) -> None:
        super().__init__(error.message, hint=error.hint)
        self.state = state

    @property
    def ends_session(self) -> bool:
        """Whether the connection broke, or the server ended it: no answer to what was asked."""
        return self.state is None or self.state.startswith(_SESSION_ENDS)
