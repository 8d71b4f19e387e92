"""Mode pitr, a backup being read: what all ways of reading share, and the one that reads WAL alone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping

import msgspec

from pgkeep import __version__
from pgkeep.errors import ServerError
from pgkeep.modes.configuration import OutsideConfiguration
from pgkeep.modes.physical_base import known_tablespaces
from pgkeep.modes.physical_wal import CarriedWal
from pgkeep.modes.pitr import PitrPlan, host_name
from pgkeep.pg.data_directory import tablespace_version_directory
from pgkeep.pg.lsn import Lsn
from pgkeep.server import queries
from pgkeep.server.backup_session import BackupStop
from pgkeep.server.connection import Server
from pgkeep.server.standby import standby_state
from pgkeep.streams.item import BytesItem, Item, ItemHeader
from pgkeep.streams.record import DamagedPages, RecordHead, Tablespace

_BLOCKS_SAID = 10


class PitrSource:
    """What the three ways of reading have in common: the plan, the WAL, and the record's head."""

    def __init__(self, plan: PitrPlan, server: Server) -> None:
        request, options = plan.request, plan.options
        self._plan = plan
        self._server = server
        self._warnings: list[str] = [plan.reason] if plan.reason else []
        self._standby_states = [standby_state(server)] if plan.facts.identity.is_in_recovery else []
        self._begin_time = request.begin
        self._wal = CarriedWal(
            server,
            plan.facts,
            options.wal,
            root=request.root,
            files_root=plan.files_root,
            is_local=plan.is_local,
            held=plan.held,
            given_up=plan.given_up,
            say=request.say,
            warn=self._warn,
        )
        self._head = self._new_head()
        request.say(f"starting {request.mode} backup (PG {server.version_text} on {server.where}), {plan.level.word}")

    def close(self) -> None:
        """End what was begun at the server."""
        self._wal.close()

    def confirm(self) -> None:
        """Release the WAL that is held now."""
        if self._wal.carried is not None:
            self._wal.release(Lsn.parse(self._wal.carried.stop))

    def _warn(self, text: str) -> None:
        self._warnings.append(text)
        self._plan.request.warn(text)

    def _new_head(self) -> RecordHead:
        plan, facts = self._plan, self._plan.facts
        has_files = plan.transport != "wal"
        base = plan.base.head if plan.base is not None else None
        version = tablespace_version_directory(self._server.capabilities.major, facts.identity.catalog_version)
        return RecordHead(
            backup_id=plan.backup_id,
            cluster=plan.request.cluster,
            mode=plan.request.mode,
            level=plan.level,
            base=base.backup_id if base is not None else "",
            files_from=plan.backup_id if has_files or base is None else base.files_from,
            pgkeep_version=__version__,
            server_version=self._server.version,
            server_version_text=self._server.version_text,
            system_identifier=str(facts.identity.system_identifier),
            timeline=int(facts.identity.timeline),
            begin_time=iso(self._begin_time),
            host=host_name(),
            data_directory=facts.files.data_directory,
            transport=plan.transport,
            from_standby=facts.identity.is_in_recovery,
            data_checksums=facts.has_checksums,
            settings=facts.settings,
            tablespaces=[t for t in facts.tablespaces if t.oid not in plan.left_out],
            databases=facts.databases,
            history=facts.history_text,
            libraries=facts.libraries,
            details={
                "root": plan.request.root,
                "tablespace_directory": version,
                "superuser": str(self._server.value("SELECT rolname FROM pg_roles WHERE oid = 10")),
                **({"left_out": sorted(plan.left_out)} if plan.left_out else {}),
            },
        )

    def _finish(self) -> RecordHead:
        assert self._wal.carried is not None
        return msgspec.structs.replace(
            self._head,
            end_time=iso(dt.datetime.now(dt.UTC)),
            wal=self._wal.carried,
            wal_gaps=self._wal.gaps,
            warnings=self._warnings,
        )

    def _note_tablespaces(self, held: Mapping[int, str]) -> None:
        """
        Take note, after the backup's start, of the tablespaces that it holds: *held*, OID to location, empty in place.

        One that nobody can see in the catalog yet, because the statement that makes it goes on, has no name.
        """
        known = {tablespace.oid: tablespace for tablespace in known_tablespaces(self._server)}
        found = [known.get(oid) or Tablespace(oid=oid, location=location) for oid, location in sorted(held.items())]
        tablespaces = [tablespace for tablespace in found if tablespace.oid not in self._plan.left_out]
        self._head = msgspec.structs.replace(self._head, tablespaces=tablespaces)

    def _note_later_tablespaces(self) -> None:
        """Take note, after the backup's stop, of tablespaces that are not in it: its WAL may make them."""
        held = {tablespace.oid for tablespace in self._head.tablespaces} | self._plan.left_out
        later = [tablespace for tablespace in known_tablespaces(self._server) if tablespace.oid not in held]
        if later:
            self._head.details["made_meanwhile"] = msgspec.to_builtins(later)

    def _configuration_items(self) -> Iterator[Item]:
        """Yield the configuration files that lie outside the data directory, and take note of them."""
        outside = OutsideConfiguration(
            self._server,
            self._plan.facts,
            root=self._plan.files_root,
            is_local=self._plan.is_local,
            warn=self._warn,
        )
        yield from outside.items()
        if outside.paths:
            self._head.details["configuration"] = outside.paths
            self._head.details["named_files"] = outside.named_files()

    def _note_stop(self, stop: BackupStop) -> None:
        """Take what ``pg_backup_stop`` said into the head."""
        if stop.stop_timeline != self._plan.facts.identity.timeline:
            raise ServerError(
                f"the server went from timeline {self._plan.facts.identity.timeline} to {stop.stop_timeline} "
                "while it was backed up",
                hint="run the backup again",
            )
        self._head = msgspec.structs.replace(
            self._head,
            timeline=int(stop.stop_timeline),
            start_lsn=str(stop.start_lsn),
            stop_lsn=str(stop.stop_lsn),
            checkpoint_lsn=str(stop.label.checkpoint_lsn),
            stop_time=iso(queries.server_time(self._server)),
            backup_label=stop.backup_label,
            tablespace_map=stop.tablespace_map,
        )
        self._note_later_tablespaces()
        self._note_next_transaction()
        self._note_completeness()

    def _note_oldest_transaction(self) -> None:
        """Take note, before the backup's stop: a transaction older than this has certainly ended before that."""
        if self._head.from_standby:
            self._standby_states.append(standby_state(self._server))
        self._head.details["oldest_xid"], _ = queries.running_transactions(self._server)

    def _note_next_transaction(self) -> None:
        """Take note, after the backup's stop: from this transaction on all certainly end later than that."""
        _, self._head.details["next_xid"] = queries.running_transactions(self._server)

    def _note_completeness(self) -> None:
        """Take note, when the backup's end is known, of the moment before which a standby's copy lacks nothing."""
        stop_lsn = Lsn.parse(self._head.stop_lsn)
        # The end may lie before what was replayed: it is what is on disk that counts.
        for state in reversed(self._standby_states):
            if state.complete_until is not None and state.replayed is not None and state.replayed <= stop_lsn:
                self._head.details["complete_until"] = iso(state.complete_until)
                break

    def _note_damage(self, damaged: list[DamagedPages]) -> None:
        """Warn of truly bad pages, and take them into the head."""
        for entry in damaged:
            blocks = ", ".join(str(block) for block in entry.blocks[:_BLOCKS_SAID])
            more = f" and {entry.count - _BLOCKS_SAID} more" if entry.count > _BLOCKS_SAID else ""
            self._warn(f"damaged page: {entry.path} block {blocks}{more}")
        self._head = msgspec.structs.replace(self._head, damaged=damaged)


class WalSource(PitrSource):
    """An Incremental without files: the WAL since the backup before it."""

    def items(self) -> Iterator[Item]:
        """Yield the WAL."""
        # Taken before the segment ends: what is committed by now is in the WAL that is carried.
        now = queries.server_time(self._server)
        stop = self._wal.stop_without_files()
        # What that WAL makes, a restore must know of: asked for when it has ended.
        self._note_tablespaces({tablespace.oid: tablespace.location for tablespace in known_tablespaces(self._server)})
        if self._wal.has_switched:
            self._head = msgspec.structs.replace(self._head, stop_time=iso(now))
        yield from self._wal.items(start=None, stop=stop)

    def finish(self) -> RecordHead:
        """Return the record's head."""
        return self._finish()


def label_items(root: str, stop: BackupStop) -> Iterator[Item]:
    """Yield ``backup_label`` and ``tablespace_map`` as the server gave them."""
    for name, text in (("backup_label", stop.backup_label), ("tablespace_map", stop.tablespace_map)):
        if text:
            content = text.encode("utf-8", "surrogateescape")
            yield BytesItem(ItemHeader(path=f"{root}/{name}", size=len(content)), content)


def iso(moment: dt.datetime) -> str:
    """Return *moment* as records have it: ISO-8601, UTC, microseconds."""
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds")
