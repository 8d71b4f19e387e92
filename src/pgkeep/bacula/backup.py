"""A backup: the job's level and predecessor come from the Director, the items go into its stream."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from pgkeep.bacula.catalog import Catalog
from pgkeep.bacula.channel import Channel
from pgkeep.bacula.file_list import FileList
from pgkeep.bacula.history import JobBase, JobHistory
from pgkeep.bacula.kept_manifest import KeptManifest
from pgkeep.bacula.objects import (
    OPTIONS_OBJECT,
    RESTORE_OBJECT,
    plugin_objects,
    render_head_object,
    restore_options_text,
)
from pgkeep.bacula.session import Session, expect_end_of_job
from pgkeep.bacula.sink import BaculaSink, Marks
from pgkeep.bacula.state import ClusterState, UnnamedRecord
from pgkeep.errors import ServerError, SettingsError
from pgkeep.jobs.amount import size_text
from pgkeep.jobs.backup import RecordingSink, backup
from pgkeep.jobs.connection import open_source
from pgkeep.modes import mode_named
from pgkeep.modes.cdp import CdpOptions
from pgkeep.modes.contract import BackupRequest, Mode, Plan
from pgkeep.pg.lsn import Lsn, Timeline, WalPosition
from pgkeep.server import queries
from pgkeep.server.connection import Server
from pgkeep.server.slots import advance_slot, find_slot
from pgkeep.settings import Resolved
from pgkeep.spool.taken import write_taken
from pgkeep.streams.item import Buffer
from pgkeep.streams.record import Level, RecordHead, RecordTail

LEVELS = {"F": Level.FULL, "D": Level.DIFFERENTIAL, "I": Level.INCREMENTAL, "": Level.FULL}
MAX_WORKERS = 4
"""More threads only wait for each other: the daemon takes one stream."""

_LINE_DIGITS = 16

_RECORDS = "2"
"""How the directories of records begin, named by UTC time, and no other name beside them does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupJob:
    """
    One line's part of a backup or estimate job, before the server is asked.

    Attributes:
        session: The conversation.
        settings: What holds.
        mode: How it is backed up.
        request: What is asked for.
        state: Records of earlier jobs.
        history: The same, as the mode asks for it.
        catalog: What the Director has of them; None when it cannot be asked.
    """

    session: Session
    settings: Resolved
    mode: Mode
    request: BackupRequest
    state: ClusterState
    history: JobHistory
    catalog: Catalog | None = None

    @property
    def is_physical(self) -> bool:
        """Whether WAL matters."""
        return not self.mode.name.endswith("dump")


def run(session: Session) -> None:
    """Make the backup of one Plugin line."""
    channel, job = session.channel, session.job
    with prepared_job(session) as this:
        this.state.prepare()
        _judge_earlier_run(this)
        channel.end()
        # How a cluster is restored is asked once: with its base backup.
        if job.level in ("", "F") and channel.is_extended and this.mode.needs_server:
            _send_config_object(channel)
        with ExitStack() as held:
            record: list[UnnamedRecord] = []

            def recorded(head: RecordHead, tail: RecordTail) -> None:
                record.append(held.enter_context(contextlib.closing(this.state.begin(job.name, head, files, tail))))

            files = held.enter_context(contextlib.closing(FileList(str(this.state.directory))))
            manifest = held.enter_context(contextlib.closing(KeptManifest(this.state.directory, job.name)))
            with opened_server(this) as server:
                source = "its spool"
                if server is not None:
                    _release_slot(this, server)
                    source = f"{server.sql.info.host}:{server.sql.info.port}"
                open_sink = SinkOpener(this, files, manifest.write, recorded)
                head, tail = backup(
                    this.request,
                    mode=this.mode,
                    server=server,
                    history=this.history,
                    open_sink=open_sink,
                    confirms=False,
                )
            for one in plugin_objects(head, tail, source=source, sizes=open_sink.sizes):
                for command in one.commands():
                    channel.command(command)
                channel.end()
            below = this.history.below(head) if this.is_physical else ()
            _send_restore_object(channel, render_head_object(head, tail, lines=job.lines, below=below))
            _say_end(channel, head, tail)
            channel.end()
            expect_end_of_job(channel)
            if this.state.has(job.name):
                raise _of_another_director(this)
            # First: a record without the manifest could not be built on.
            manifest.publish()
            record[0].publish()
            _tell_receiver(this, head)
            this.state.prune(job.name)
            channel.end()


@contextmanager
def prepared_job(session: Session, *, is_estimate: bool = False) -> Iterator[BackupJob]:
    """Give what the job is about, from the Director's words and the settings."""
    channel, job = session.channel, session.job
    settings = session.settings("backup")
    mode = mode_named(settings.get("mode"))
    cluster_id = settings.text("cluster_id") or ""
    state = ClusterState(settings.require("state_dir"), cluster_id=cluster_id, mode=mode.name)
    level = LEVELS[job.level]
    if level is not Level.FULL and not is_estimate:
        state.confirm(job.previous)
    if level is not Level.FULL and level in mode.levels:
        level = _judge_level(session, state, level, may_be_full=settings.get("on_missing_base") != "fail")
    catalog = None
    if job.is_accurate and level is not Level.FULL and not is_estimate:
        catalog = Catalog(channel, warn=channel.warn)
    request = BackupRequest(
        cluster=cluster_id or "default",
        prefix=f"@postgresql/cluster_{cluster_id}" if cluster_id else "@postgresql",
        mode=mode.name,
        level=level,
        begin=dt.datetime.now(dt.UTC),
        options=mode.options(_values(settings, job.job_id)),
        say=channel.say,
        warn=channel.warn,
        track_replication_state=settings.flag("track_replication_state"),
        standby_hosts=settings.names("standby_host"),
    )
    previous = job.previous if level is not Level.FULL else ""
    holds = catalog.holds if catalog is not None else None
    history = JobHistory(
        state,
        job=job.name,
        previous=previous,
        continues=level is Level.INCREMENTAL,
        holds=holds,
        warn=channel.warn,
        reserves=not is_estimate,
    )
    try:
        yield BackupJob(
            session=session,
            settings=settings,
            mode=mode,
            request=request,
            state=state,
            history=history,
            catalog=catalog,
        )
    finally:
        history.close()


def opened_server(job: BackupJob) -> AbstractContextManager[Server | None]:
    """
    Connect to the server; give None when it does not answer and the mode can do without.

    Raises:
        ServerError: It cannot be reached, and must be.
    """
    channel = job.session.channel
    try:
        return open_source(job.settings, say=channel.say, warn=channel.warn)
    except ServerError as error:
        if job.mode.needs_server:
            raise
        channel.warn(f"{error.message}: what was received from it before is sent")
        return contextlib.nullcontext(None)


def _judge_earlier_run(this: BackupJob) -> None:
    """
    Forget what an earlier run of this job has left, which Bacula calls incomplete and goes on with.

    A backup cannot go on: all is sent anew, and the record of this run says what of the job's files counts.

    Raises:
        SettingsError: It was another line of the same run that wrote the record, or a job of another Director, which
            counts on it.
    """
    job = this.session.job
    if this.state.has(job.name):
        record = this.state.record(job.name)
        known = record.head.details.get("bacula", {}) if record is not None else {}
        if 0 != known.get("job_id", 0) != job.job_id != 0:
            raise _of_another_director(this)
        if known.get("run", 0) == job.run:
            raise SettingsError(
                f"two Plugin lines of this job back up the same cluster in mode {this.mode.name}",
                hint="give each server a cluster_id of its own",
            )
        this.request.say("the job goes on with one that was incomplete: all of it is sent anew")
    else:
        _warn_of_another_director(this)
    this.state.forget(job.name)


def _of_another_director(this: BackupJob) -> SettingsError:
    """Two Directors that start jobs by one timetable give them the same unique name sooner or later."""
    name, directory = this.session.job.name, this.state.directory
    return SettingsError(
        f"a job of another Director is called {name} as well, with its record in {directory}",
        hint="give each Director a state_dir or a cluster_id of its own",
    )


def _warn_of_another_director(this: BackupJob) -> None:
    """A Director's numbers only rise: one that falls is of another Director, or of a catalog that was made anew."""
    job, last = this.session.job, this.history.named_before()
    number = last.head.details.get("bacula", {}).get("job_id", 0) if last is not None else 0
    # One dump counts on nothing of another.
    if last is not None and this.is_physical and number > job.job_id > 0:
        this.request.warn(
            f"job {last.job} was made before this one and has the higher number {number}: the catalog was made anew, "
            "or two Directors share this state_dir, and their jobs count on each other's WAL (give each a state_dir or "
            "a cluster_id of its own)"
        )


def _judge_level(session: Session, state: ClusterState, level: Level, *, may_be_full: bool) -> Level:
    """
    Return the level that is possible in this conversation; say why it is another, or why there will be no base.

    The daemon hands each file of a restore to the Plugin line that it was saved with: what two lines saved comes back
    as two halves. Bacula itself makes a Full when a FileSet changes, unless it has Ignore FileSet Changes.
    """
    channel, job = session.channel, session.job
    if job.is_accurate and not channel.is_extended:
        # What is not sent would be taken for deleted, and plain PTCOMM has no word against that.
        channel.warn(f"making a Full instead of the {level.word} asked for: the job is accurate, the plugin not ours")
        return Level.FULL
    if not job.previous:
        channel.warn(f"the Director names no job that this {level.word} could build on")
    elif (record := state.record(job.previous)) is None:
        channel.warn(f"job {job.previous}, which this {level.word} builds on, has no record in {state.directory}")
    elif _line_of(record.head) not in ("", _line(session)):
        problem = f"job {job.previous} was made with another Plugin line, and files of two lines do not restore as one"
        if not may_be_full:
            raise SettingsError(f"{level.word} refused: {problem}", hint="make a Full, or set on_missing_base=full")
        hint = "" if job.is_accurate else "; without Accurate restore this job and later ones only: jobid="
        channel.warn(f"making a Full instead of the {level.word} asked for: {problem}{hint}")
        return Level.FULL
    return level


def _line(session: Session) -> str:
    """Return what tells the Plugin line from others, without saying what is in it."""
    return blake3(repr(session.words).encode("utf-8", "surrogateescape")).hexdigest()[:_LINE_DIGITS]


def _line_of(head: RecordHead) -> str:
    return str(head.details.get("bacula", {}).get("line", ""))


def _values(settings: Resolved, job_id: int) -> Callable[[str], Any]:
    def value_of(name: str) -> Any:
        value = settings.get(name)
        return f"bacula_{job_id}" if name == "pitr_label" and value is None else value

    return value_of


class SinkOpener:
    """Opens the sink once the plan is known; remembers what only the sink learns."""

    def __init__(
        self,
        job: BackupJob,
        files: FileList,
        keep_manifest: Callable[[Buffer], None],
        recorded: Callable[[RecordHead, RecordTail], None],
    ) -> None:
        self._job = job
        self._files = files
        self._keep_manifest = keep_manifest
        self._recorded = recorded
        self.sizes: dict[str, int] = {}

    def __call__(self, plan: Plan) -> AbstractContextManager[RecordingSink]:
        """Open the sink of the backup that *plan* describes."""
        this, job = self._job, self._job.session.job
        channel = this.session.channel
        base = this.history.base_of(plan.base.head.backup_id) if plan.base is not None else None
        marks = Marks(channel, is_on=job.is_accurate and channel.is_extended and job.level in ("D", "I"))
        if base is not None:
            _say_base(this, plan, base)
            _keep(marks, this, plan)
        sink = BaculaSink(
            channel,
            root=this.request.root,
            files=self._files,
            workers=min(MAX_WORKERS, this.settings.number("parallel_jobs")),
            marks=marks,
            held=base,
            goes_on=not this.is_physical and not this.settings.flag("abort_on_error"),
            keep_manifest=self._keep_manifest,
            recorded=self._recorded,
            details={
                "job": job.name,
                "job_id": job.job_id,
                "client": job.client,
                "previous": job.previous,
                "line": _line(this.session),
                "run": job.run,
            },
        )
        self.sizes = sink.sizes
        if this.catalog is not None:
            this.catalog.between_files = sink.end_open_file
        return sink


def _keep(marks: Marks, job: BackupJob, plan: Plan) -> None:
    """Tell the catalog what the chain still needs of what this job does not send."""
    root = f"/{job.request.root}/"
    if getattr(plan, "transport", "") == "wal":
        marks.keep(root)
        return
    marks.keep(f"{root}wal/")
    marks.keep(f"{root}{_RECORDS}")


def _say_base(job: BackupJob, plan: Plan, base: JobBase) -> None:
    decides = "the catalog and pgkeep's record decide" if job.session.job.is_accurate else "pgkeep's record decides"
    what = f"; {decides} which files are unchanged" if plan.compares_files else ""
    job.request.say(f"base: job {base.record.job}, backup {base.head.backup_id}{what}")


def _release_slot(job: BackupJob, server: Server) -> None:
    """Let the lasting slot forget what a job holds that is known to have succeeded."""
    name, held = job.settings.text("slot_name"), job.history.wal_held()
    # A mode that can do without the server has its own way with slots: they may be a receiver's.
    if not job.mode.needs_server or not job.is_physical or not name or held is None:
        return
    try:
        slot = find_slot(server, name)
        if slot is None or slot.restart_lsn is None or slot.restart_lsn >= held.lsn:
            return
        if queries.identify(server).timeline == held.timeline:
            advance_slot(server, name, held.lsn)
    except ServerError as error:
        job.request.warn(f'slot "{name}" was not advanced, it keeps WAL at the server: {error}')


def _tell_receiver(job: BackupJob, head: RecordHead) -> None:
    """Write into the spool from which this job had its WAL how far that goes: what lies behind it waits for a job."""
    options = job.request.options
    if not isinstance(options, CdpOptions) or head.wal is None:
        return
    spool = Path(options.spool_dir) / job.request.cluster
    try:
        write_taken(spool, WalPosition(Timeline(head.wal.timeline), Lsn.parse(head.wal.stop)))
    except FileNotFoundError:
        # There is no receiver.
        return
    except OSError as error:
        job.request.warn(f"the receiver will not know that this job has its WAL: {spool}: {error.strerror}")


def _send_config_object(channel: Channel) -> None:
    channel.command(f"CONFIGOBJ:{OPTIONS_OBJECT}")
    channel.send_data(restore_options_text().encode())
    channel.end()


def _send_restore_object(channel: Channel, content: bytes) -> None:
    channel.command(f"RESTOREOBJ:{RESTORE_OBJECT}")
    channel.command(f"RESTOREOBJ_LEN:{len(content)}")
    # Never through the ring: it is kept, not passed on.
    channel.send_small(content)
    channel.end()


def _say_end(channel: Channel, head: RecordHead, tail: RecordTail) -> None:
    wal = f", WAL to {head.wal.stop}" if head.wal is not None else ""
    channel.say(
        f"backup {head.backup_id} is complete: {tail.sent_files:,} files, {size_text(tail.sent_bytes)} sent, "
        f"{tail.files:,} files, {size_text(tail.bytes)} in its record{wal}"
    )
    if head.is_damaged:
        channel.warn("the backup holds damaged pages: see above")
