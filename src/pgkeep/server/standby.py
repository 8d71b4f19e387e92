"""
Standbys: finding one to back up from, and what it knows of its primary.

Whether a server is a standby is asked of the server itself. libpq's ``target_session_attrs`` cannot tell: ``standby``
is unknown to libpq 13 and older, and ``read-only`` also takes a primary with ``default_transaction_read_only = on``.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from pgkeep.errors import ServerError, SettingsError
from pgkeep.pg.lsn import Lsn
from pgkeep.server import queries
from pgkeep.server.connection import ConnectionTarget, Server, fetch

_HOST_AND_PORT = re.compile(
    r"(?P<host>\[[^]]+\]|[^:]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)(?::(?P<port>\d{1,5}))?"
)


@dataclass(frozen=True, slots=True)
class StandbyState:
    """
    How a standby stands to its primary.

    Attributes:
        is_streaming: Whether it receives WAL as it is written; else it lives on an archive, or on nothing.
        complete_until: Every transaction that the primary committed before this moment, by the primary's clock, is
            replayed; None when it knows of none.
        replayed: Up to where it has replayed; None when it has replayed nothing since its start.
    """

    is_streaming: bool
    complete_until: dt.datetime | None
    replayed: Lsn | None


def standby_targets(target: ConnectionTarget, hosts: Sequence[str]) -> list[ConnectionTarget]:
    """
    Return where a standby may be, in the order to try.

    Args:
        target: How the server is reached otherwise; its own hosts are tried when *hosts* is empty.
        hosts: Names, addresses (of IPv6 in brackets when a port follows) or socket directories, each with ``:port``
            where that differs from the target's.

    Raises:
        SettingsError: One of *hosts* is none of these.
    """
    if not hosts:
        return [replace(target, host=host) for host in target.host.split(",")]
    found = []
    for text in hosts:
        match = _HOST_AND_PORT.fullmatch(text)
        if match is None or not 0 < int(match["port"] or 1) < 1 << 16:
            raise SettingsError(f'not a host: "{text}"', hint="write host, host:port, [address]:port or /directory")
        host = match["host"].removeprefix("[").removesuffix("]")
        found.append(replace(target, host=host, port=int(match["port"] or target.port)))
    return found


def open_standby(
    targets: Iterable[ConnectionTarget], *, say: Callable[[str], None], warn: Callable[[str], None]
) -> Server:
    """
    Return the first of *targets* that is a standby and streams, else the first that is a standby.

    Raises:
        ServerError: None of them is a standby that can be reached; the message says what each of them is.
    """
    refusals: list[str] = []
    silent: Server | None = None
    try:
        for target in targets:
            try:
                server = _open_one(target)
            except ServerError as error:
                refusals.append(error.message)
                continue
            if standby_state(server).is_streaming:
                for refusal in refusals:
                    say(f"passed over: {refusal}")
                say(f"backup from the standby at {server.where}")
                return server
            refusals.append(f"the standby at {server.where} does not stream from its primary")
            if silent is None:
                silent = server
            else:
                server.close()
        if silent is not None:
            warn(f"the standby at {silent.where} does not stream from its primary: what it holds may be old")
            chosen, silent = silent, None
            return chosen
    finally:
        if silent is not None:
            silent.close()
    raise ServerError(
        f"no standby to back up from: {'; '.join(refusals) or 'none is named'}",
        hint="set standby_host, or backup_from_standby=no to back up the primary",
    )


def standby_state(server: Server) -> StandbyState:
    """Return how the standby *server* stands to its primary; what the role may not see is taken for unknown."""
    # latest_end_lsn is the end of the primary's WAL as its last message said, last_msg_send_time the time of that
    # message: a standby that has replayed up to there lacks nothing from before (walreceiver.c, ProcessWalSndrMessage).
    is_streaming, latest_end, message_time, last_commit = server.row(
        """
        SELECT coalesce(w.pid IS NOT NULL AND coalesce(w.status, 'streaming') = 'streaming', false),
               w.latest_end_lsn::text, w.last_msg_send_time, pg_last_xact_replay_timestamp()
        FROM (SELECT 1) one LEFT JOIN pg_stat_wal_receiver w ON true
        """
    )
    # Asked for later than the rest: what the rest tells of is replayed by then.
    replayed = server.value("SELECT pg_last_wal_replay_lsn()::text")
    moments = [last_commit] if last_commit is not None else []
    if message_time is not None and latest_end and replayed and Lsn.parse(replayed) >= Lsn.parse(latest_end):
        moments.append(message_time)
    return StandbyState(bool(is_streaming), max(moments, default=None), Lsn.parse(replayed) if replayed else None)


def _open_one(target: ConnectionTarget) -> Server:
    """Return a session at the standby that *target* is, and no other: later sessions go to the same address."""
    server = Server.open(target)
    try:
        address = server.sql.info.hostaddr
        if address and not target.host.startswith("/"):
            # One name may stand for several servers.
            server.close()
            server = Server.open(replace(target, hostaddr=address))
        _check_standby(server)
    except BaseException:
        server.close()
        raise
    return server


def _check_standby(server: Server) -> None:
    if not queries.is_in_recovery(server):
        is_read_only = queries.setting(server, "default_transaction_read_only") == "on"
        why = ": default_transaction_read_only = on makes none of it" if is_read_only else ""
        raise ServerError(f"{server.where} is a primary, expected a standby{why}")
    # Behind a proxy every session may end at another server.
    with closing(server.session()) as second:
        [(started,)] = fetch(second, "SELECT pg_postmaster_start_time()", where=server.where)
    if started != queries.start_time(server):
        raise ServerError(f"{server.where} leads to several servers: name each standby itself")
