"""Named tests of everything that a backup needs, ending with one WAL segment sent the whole way."""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pgkeep.errors import CheckFailed, PgkeepError
from pgkeep.jobs.named_tests import CheckResult, NamedTest, Warned, run_tests
from pgkeep.modes.locality import why_not_local
from pgkeep.modes.physical_base import ServerFacts, gather_facts
from pgkeep.modes.physical_wal import WalOptions, choose_supply
from pgkeep.pg.lsn import SystemIdentifier, Timeline
from pgkeep.pg.wal import WalSegment
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.dump_snapshot import check_no_pooler
from pgkeep.server.slots import TemporarySlot, find_slot, slots
from pgkeep.server.tools import toolbox_for_dump, toolbox_for_server
from pgkeep.spool.state import has_state
from pgkeep.vault.cluster_vault import ClusterVault
from pgkeep.vault.layout import CLUSTER_FILE
from pgkeep.vault.vault import Vault
from pgkeep.vault.wal_archive import WalArchive


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """
    What to check.

    Attributes:
        cluster: The cluster's name in the vault.
        vault_path: Where the vault is.
        open_server: Connects to the server that backups will be taken from.
        mode: The mode that backups will be made with.
        transport: As the mode's option.
        summary_days: For how many days mode pitr_block wants WAL summaries.
        wal: How the mode finds its WAL.
        archive_timeout_seconds: How long to wait for the segment of the round trip.
        bin_dir: Where PostgreSQL's programs are; None to search.
        config_problems: What is wrong in the configuration file, one line each.
        track_replication_state: Whether backups record slots and subscriptions.
        spool: Where ``pgkeep receive`` has the cluster's spool on this host.
        receive_slot: Name of the slot of ``pgkeep receive``.
        window_seconds: How old WAL may be that it has not shipped.
    """

    cluster: str
    vault_path: Path
    open_server: Callable[[], Server]
    mode: str
    transport: str
    summary_days: int
    wal: WalOptions
    archive_timeout_seconds: float
    bin_dir: Path | None
    config_problems: list[str]
    track_replication_state: bool = False
    spool: Path
    receive_slot: str
    window_seconds: float


def check(request: CheckRequest) -> Iterator[CheckResult]:
    """Run every test, one after the other, and yield its result as soon as it is known."""
    with closing(_Checks(request)) as checks:
        yield from run_tests(checks.tests())


class _Checks:
    """The tests, and what the later ones take over from the earlier ones."""

    def __init__(self, request: CheckRequest) -> None:
        self._request = request
        self._cluster: ClusterVault
        self._server: Server | None = None
        self._facts: ServerFacts

    def close(self) -> None:
        """Close the connection."""
        if self._server is not None:
            self._server.close()

    def tests(self) -> Iterator[NamedTest]:
        """Yield the tests, each after those that it needs."""
        physical = not self._request.mode.endswith("dump")
        yield "configuration", self._configuration, ()
        yield "vault", self._vault, ()
        yield "server", self._connect, ()
        if physical:
            yield "settings", self._settings, ("server",)
            yield "cluster", self._identity, ("vault", "settings")
            yield "checksums", self._checksums, ("settings",)
            if self._request.mode == "pitr_block":
                yield "summaries", self._summaries, ("server",)
            yield "transport", self._transport, ("settings",)
            yield "replication", self._replication, ("server",)
            yield "archiving", self._archiving, ("settings",)
            yield "slot", self._slot, ("server",)
            yield "slots-recorded", self._replication_state, ("server",)
        if self._receives:
            yield from self._receiving()
        if self._request.mode == "parallel_dump":
            yield "pooler", self._pooler, ("server",)
        yield "vault-apart", self._vault_apart, ("vault", "server")
        yield "rights", self._rights, ("server",)
        yield "programs", self._programs, ("server",)
        if physical:
            yield "wal-round-trip", self._round_trip, ("cluster", "transport")

    @property
    def _receives(self) -> bool:
        return self._request.mode == "cdp" or has_state(self._request.spool)

    def _receiving(self) -> Iterator[NamedTest]:
        # Its mode brings parts that the others do without.
        from pgkeep.jobs.check_receiving import ReceivingChecks

        request = self._request
        return ReceivingChecks(
            cluster=request.cluster,
            spool=request.spool,
            slot=request.receive_slot,
            window_seconds=request.window_seconds,
            server=lambda: self._connected,
            vault=lambda: self._cluster,
        ).tests()

    @property
    def _connected(self) -> Server:
        assert self._server is not None
        return self._server

    def _configuration(self) -> str:
        problems = self._request.config_problems
        if problems:
            raise CheckFailed("; ".join(problems))
        return "every line is understood"

    def _vault(self) -> str:
        self._cluster = Vault.open(self._request.vault_path).cluster(self._request.cluster)
        try:
            with tempfile.TemporaryFile(dir=self._cluster.directory) as file:
                file.write(b"pgkeep")
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckFailed(
                f"cannot write in {self._cluster.directory}: {error.strerror}",
                hint="run pgkeep as the user that owns the vault",
            ) from error
        status = os.statvfs(self._cluster.directory)
        return (
            f"{self._request.vault_path} can be written, {status.f_bavail * status.f_frsize / (1 << 30):.1f} GiB free"
        )

    def _connect(self) -> str:
        self._server = self._request.open_server()
        return f"PostgreSQL {self._server.version_text} at {self._server.where}"

    def _settings(self) -> str:
        self._facts = gather_facts(self._connected)
        settings = self._facts.settings
        if settings.get("full_page_writes") == "off":
            raise CheckFailed("full_page_writes is off: a backup could hold torn pages", hint="set it to on")
        return f"wal_level {settings.get('wal_level')}, segments of {self._facts.segment_size >> 20} MiB"

    def _identity(self) -> str:
        known, found = self._cluster.identity, self._facts.identity.system_identifier
        if int(known.system_identifier) != found:
            raise CheckFailed(
                f"the vault's cluster has system identifier {known.system_identifier}, the server has {found}",
                hint="another server, or one that was initialised anew: pgkeep init --new-system",
            )
        if known.wal_segment_size != self._facts.segment_size:
            raise CheckFailed(
                f"the vault's cluster has WAL segments of {known.wal_segment_size} bytes, "
                f"the server of {self._facts.segment_size}"
            )
        return f"system identifier {found}, timeline {int(self._facts.identity.timeline)}"

    def _checksums(self) -> str:
        if not self._facts.has_checksums:
            raise Warned(
                "data checksums are off: damaged pages go into backups unnoticed",
                hint="stop the server and run pg_checksums --enable",
            )
        return "data checksums are on"

    def _summaries(self) -> str:
        # Its mode brings libraries that the others do without.
        from pgkeep.jobs.check_summaries import check_summaries

        return check_summaries(self._connected, wanted=dt.timedelta(days=self._request.summary_days))

    def _transport(self) -> str:
        wanted = self._request.transport
        problem = why_not_local(self._connected, self._facts) if wanted != "stream" else "transport=stream"
        if not problem:
            return f"local: {self._facts.files.data_directory}"
        if wanted == "local":
            raise CheckFailed(f"transport local is not possible: {problem}", hint="use transport=stream")
        with self._connected.replication() as replication:
            replication.identify()
        return f"stream ({problem})" if problem != "transport=stream" else "stream"

    def _replication(self) -> str:
        server = self._connected
        senders = int(queries.setting(server, "max_wal_senders") or 0)
        slots = int(queries.setting(server, "max_replication_slots") or 0)
        if senders < 2 or slots < 1:
            raise CheckFailed(
                f"max_wal_senders is {senders} and max_replication_slots {slots}, expected at least 2 and 1",
                hint="raise them and restart the server",
            )
        with TemporarySlot(server):
            return f"a slot can be made; max_wal_senders {senders}"

    def _archiving(self) -> str:
        archiving = queries.archiving(self._connected)
        if archiving.mode == "off":
            if self._request.wal.slot_name:
                return f'archiving is off; slot "{self._request.wal.slot_name}" keeps WAL between backups'
            if self._receives:
                return "archiving is off; pgkeep receive brings the WAL"
            raise Warned(
                "archiving is off and no slot is named: WAL may be gone before the next backup fetches it",
                hint="set archive_mode=on and archive_command (pgkeep init prints it), or slot_name",
            )
        status = queries.archiver_status(self._connected)
        last, failed = status.last_archived_time, status.last_failed_time
        if failed is not None and (last is None or failed > last):
            raise CheckFailed(
                f"archiving fails: {status.last_failed_wal} at {failed.isoformat(sep=' ', timespec='seconds')}, "
                f"{status.failed_count} failures",
                hint="the server's log has what archive_command said",
            )
        # A command may hold a key of somebody's store: only its program is named.
        by = archiving.library or archiving.command.partition(" ")[0]
        return f"{by}: last {status.last_archived_wal or 'nothing yet'}"

    def _slot(self) -> str:
        name = self._request.wal.slot_name
        if not name:
            return "none is named"
        slot = find_slot(self._connected, name)
        if slot is None:
            return f'"{name}" will be made by the first backup'
        if slot.is_lost:
            raise CheckFailed(f'slot "{name}" has lost WAL that it should have kept', hint="drop it and make a Full")
        return f'"{name}" keeps WAL from {slot.restart_lsn} on'

    def _replication_state(self) -> str:
        server = self._connected
        own = self._request.wal.slot_name
        slot_names = [slot.name for slot in slots(server) if not slot.is_temporary and slot.name != own]
        count = server.value("SELECT count(*) FROM pg_subscription")
        found = f"{len(slot_names)} replication slots and {count} subscriptions"
        if self._request.track_replication_state:
            return f"{found} are recorded with each backup"
        if slot_names or count:
            raise Warned(
                f"{found} are in no backup's record: no restore brings the slots back",
                hint="set track_replication_state=yes",
            )
        return "there is no slot and no subscription"

    def _vault_apart(self) -> str:
        data_directory = Path(queries.setting(self._connected, "data_directory") or "/nonexistent")
        if data_directory.is_dir() and os.stat(data_directory).st_dev == os.stat(self._cluster.directory).st_dev:
            raise Warned(
                "the vault is on the same file system as the data: one broken disk takes both",
                hint="put the vault on another disk, or better another machine",
            )
        return "not on the server's file system"

    def _pooler(self) -> str:
        server = self._connected
        check_no_pooler(server.sql, where=server.where)
        return "the connection leads to the server itself"

    def _rights(self) -> str:
        server, mode = self._connected, self._request.mode
        rights = queries.role_rights(server)
        missing = []
        if not rights.is_superuser and not mode.endswith("dump"):
            needed = ["pg_switch_wal()", "pg_create_restore_point(text)"]
            if self._request.transport != "stream":
                needed += [server.capabilities.start_signature, server.capabilities.stop_signature]
            missing = [function for function in needed if not queries.may_execute(server, f"pg_catalog.{function}")]
            if not rights.can_replicate:
                missing.append("REPLICATION")
        if missing:
            raise CheckFailed(
                f'role "{rights.name}" lacks: {", ".join(missing)}',
                hint=f"pgkeep grants {rights.name} --mode {mode} --major {server.capabilities.major} prints the SQL",
            )
        return f'role "{rights.name}"{" is a superuser" if rights.is_superuser else " has what it needs"}'

    def _programs(self) -> str:
        server, bin_dir = self._connected, self._request.bin_dir
        if self._request.mode.endswith("dump"):
            return str(toolbox_for_dump(server.version, bin_dir=bin_dir))
        try:
            return str(toolbox_for_server(server.capabilities.major, bin_dir=bin_dir))
        except PgkeepError as error:
            # A backup needs none of them; a restore on this host does.
            raise Warned(f"cannot restore on this host: {error.message}", hint=error.hint) from error

    def _round_trip(self) -> str:
        server, facts = self._connected, self._facts
        if facts.identity.is_in_recovery:
            return "a standby cannot end a segment: not tried"
        begin = time.monotonic()
        queries.create_restore_point(server, "pgkeep check")
        timeline, size = Timeline(facts.identity.timeline), facts.segment_size
        with TemporarySlot(server):
            end = queries.switch_wal(server)
            segment = WalSegment.ending_at(end, timeline=timeline, size=size)
            archiving = queries.archiving(server)
            if archiving.mode != "off" and "archive-push" in archiving.command and "pgkeep" in archiving.command:
                self._wait_until_archived(segment)
                self._cluster.archive.verify(segment.name)
                how = "archived by the server into the vault, and read back"
            else:
                self._fetch_and_store(segment)
                how = "fetched as a backup would, stored, and read back"
        return f"{segment.name} {how} in {time.monotonic() - begin:.1f} s"

    def _wait_until_archived(self, segment: WalSegment) -> None:
        deadline = time.monotonic() + self._request.archive_timeout_seconds
        while not self._cluster.archive.has(segment.name):
            if time.monotonic() > deadline:
                status = queries.archiver_status(self._connected)
                raise CheckFailed(
                    f"{segment.name} did not arrive in the vault within {self._request.archive_timeout_seconds:g} s; "
                    f"the server last archived {status.last_archived_wal or 'nothing'}",
                    hint="the server's log has what archive_command said",
                )
            time.sleep(0.05)

    def _fetch_and_store(self, segment: WalSegment) -> None:
        is_local = self._request.transport != "stream" and not why_not_local(self._connected, self._facts)
        supply = choose_supply(self._connected, self._facts, self._request.wal, is_local=is_local)
        # Apart from the archive: a segment by itself would look like the end of a gap there.
        with tempfile.TemporaryDirectory(dir=self._cluster.directory, prefix="check-") as directory:
            root = Path(directory) / "wal"
            root.mkdir()
            (Path(directory) / CLUSTER_FILE).write_text(json.dumps({"scratch": True}))
            scratch = WalArchive(
                root,
                system_identifier=SystemIdentifier(self._facts.identity.system_identifier),
                segment_size=segment.size,
            )
            try:
                deadline = time.monotonic() + self._request.archive_timeout_seconds
                content = supply.fetch(segment, through=segment.end_lsn, deadline=deadline)
                scratch.put(segment.name, content.chunks())
                scratch.verify(segment.name)
            finally:
                supply.close()
