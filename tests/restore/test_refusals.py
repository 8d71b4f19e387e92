"""Restores that cannot work, or must not, are refused before anything is touched; each with its whole message."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from pgkeep.pg.lsn import Lsn
from tests.lab.cluster import Cluster, free_port
from tests.lab.ledger import Ledger, Mark
from tests.lab.server_user import server_directory, server_user
from tests.lab.servers import newest_installation
from tests.restore.keeper import Keeper


@dataclass
class Kept:
    """A cluster with one Full and one Incremental, and a mark on either side of the Full."""

    keeper: Keeper
    before: Mark
    after: Mark
    incremental: dict[str, object]

    @cached_property
    def facts(self) -> dict[str, object]:
        """Return what messages are made of."""
        window = self.keeper.info()["windows"][0]
        [full] = [backup for backup in self.keeper.info()["backups"] if backup["level"] == "Full"]
        return {
            "full": full["backup_id"],
            "incremental": self.incremental["backup_id"],
            "stop": full["stop_lsn"],
            "stop_time": full["stop_time"],
            "before_lsn": Lsn.parse(self.before.lsn),
            "before_time": self.before.time.isoformat(sep=" "),
            "before_xid": self.before.xid,
            "after_time": self.after.time.isoformat(sep=" "),
            "start": full["start_lsn"],
            "end": window["end_lsn"],
            "last_xid": self.after.xid,
            "occupied": self.keeper.directory / "occupied",
            "copy": self.keeper.directory / "copy",
            "data": self.keeper.cluster.data_directory,
            "port": self.keeper.cluster.port,
            "pid": self.keeper.cluster.pid,
        }


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    """Make the cluster and its backups once: nothing here changes them."""
    with ExitStack() as stack:
        directory = stack.enter_context(server_directory())
        cluster = stack.enter_context(Cluster.create(newest_installation(), directory / "data")).start()
        keeper = Keeper(directory, cluster)
        keeper.init()
        ledger = Ledger(cluster)
        before = ledger.mark("before")
        keeper.backup("full", "local")
        after = ledger.mark("after")
        incremental = keeper.backup("incremental", "local").report
        occupied = directory / "occupied"
        occupied.mkdir()
        (occupied / "precious").touch()
        server_user().own(occupied)
        yield Kept(keeper, before, after, incremental)


_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\+00:00")
_LSN = re.compile(r"[0-9A-F]+/[0-9A-F]{8}$")
_TYPED = "on the command line"

# What is asked for; the exit status; the error; the hint.
REFUSALS: dict[str, tuple[list[str], int, str, str]] = {
    "time before the backup's end": (
        ["--target-time={before_time}"],
        8,
        "target time {before_time} is before the end of backup {full}, which became consistent at {stop_time}",
        "the earliest reachable moment is {stop_time}",
    ),
    "LSN before the backup's end": (
        ["--target-lsn={before_lsn}"],
        8,
        "target LSN {before_lsn} is before the end of backup {full} at {stop}",
        "the earliest reachable LSN is {stop}",
    ),
    "transaction before the backup": (
        ["--target-xid={before_xid}"],
        8,
        "transaction {before_xid} is older than backup {full}",
        "the earliest reachable moment is {stop_time}",
    ),
    "time in the future": (
        ["--target-time=2126-01-01 00:00:00Z"],
        8,
        "target time 2126-01-01 00:00:00+00:00 is in the future",
        "the latest reachable moment is TIME; leave the target out to recover to the end of the WAL held",
    ),
    "LSN beyond the WAL": (
        ["--target-lsn=FF/00000010"],
        8,
        "target LSN FF/00000010 is beyond the WAL held, whose last record begins at LSN",
        "the latest reachable LSN is LSN",
    ),
    "LSN behind the last record": (
        ["--target-lsn={end}"],
        8,
        "target LSN {end} is beyond the WAL held, whose last record begins at LSN",
        "the latest reachable LSN is LSN",
    ),
    "transaction that has not been": (
        ["--target-xid=2000000"],
        8,
        "transaction 2000000 does not end in the WAL held, from {start} to {end}",
        (
            "the last commit held is that of transaction {last_xid} at TIME; a subtransaction ends with the "
            "transaction that it belongs to"
        ),
    ),
    "restore point before the backup": (
        ["--target-name=before"],
        8,
        'restore point "before" is not in the WAL held, from {start} to {end}',
        'restore points that can be reached: "after" at TIME',
    ),
    "unknown timeline": (
        ["--target-timeline=7"],
        8,
        "timeline 7 is not known: expected one of 1",
        "",
    ),
    "not a timeline": (
        ["--target-timeline=newest"],
        2,
        'target_timeline must be latest, current or the number of a timeline, found "newest" on the command line',
        "",
    ),
    "two targets": (
        ["--target-lsn=0/05000000", "--target-name=after"],
        2,
        f"one recovery target is possible, found target_lsn {_TYPED} and target_name {_TYPED}",
        "leave one of them",
    ),
    "time and consistency": (
        ["--target-time={after_time}", "--skip-wal-replay"],
        2,
        f"one recovery target is possible, found target_time {_TYPED} and skip_wal_replay {_TYPED}",
        "leave one of them",
    ),
    "unknown backup": (
        ["--backup-id=20200101T000000Z-F"],
        8,
        "backup 20200101T000000Z-F is not a base backup of this cluster",
        "pgkeep info lists the backups and their timelines",
    ),
    "backup without files": (
        ["--backup-id={incremental}"],
        8,
        "backup {incremental} is not a base backup of this cluster",
        "pgkeep info lists the backups and their timelines",
    ),
    "time that happened twice": (
        ["--target-time=2026-10-25 02:30:00", "--local-timezone=Europe/Berlin"],
        2,
        (
            "local time 2026-10-25 02:30:00 happened twice in Europe/Berlin: it is 2026-10-25 02:30:00+02:00 or "
            "2026-10-25 02:30:00+01:00"
        ),
        "write the offset that you mean",
    ),
    "time that was skipped": (
        ["--target-time=2026-03-29 02:30:00 Europe/Berlin"],
        2,
        (
            "local time 2026-03-29 02:30:00 was skipped in Europe/Berlin: it is 2026-03-29 03:30:00+02:00 or "
            "2026-03-29 01:30:00+01:00"
        ),
        "write the offset that you mean",
    ),
    "not a time": (
        ["--target-time=yesterday"],
        2,
        'not a date and time: "yesterday"',
        "write it like 2026-11-20 20:48:00+01:00 or 2026-11-20T19:48:00Z",
    ),
    "directory that is not empty": (
        ["--pgdata-dir={occupied}"],
        8,
        "restore target is not empty: {occupied} holds precious",
        "choose another directory, or allow the restore to overwrite",
    ),
    "server that runs": (
        ["--pgdata-dir={data}"],
        8,
        "a server runs in {data}: process {pid}",
        "restore into another directory, or let overwrite_existing stop it and move its files away",
    ),
    "port of the original": (
        ["--port={port}"],
        8,
        "port {port} is in use by the server in {data}",
        "give the copy its own: --port=NUMBER",
    ),
    "directory that nobody may make": (
        ["--pgdata-dir=/proc/pgkeep"],
        8,
        "cannot restore into /proc/pgkeep: no right to write in /proc",
        "run pgkeep as root or as the owner of the directory",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(kept: Kept, name: str) -> None:
    """The refusal says what was found and what would work, and nothing has changed."""
    arguments, status, error, hint = REFUSALS[name]
    facts = kept.facts
    defaults = {"--pgdata-dir": "--pgdata-dir={copy}", "--port": f"--port={free_port()}"}
    where = [word for name, word in defaults.items() if not any(given.startswith(name) for given in arguments)]
    before = listing(kept)
    found = kept.keeper.refuse(*(word.format(**facts) for word in [*arguments, *where, "--start"]))
    expected = [f"error: {error}", f"hint: {hint}"] if hint else [f"error: {error}"]
    lines = [line.format(**facts) for line in expected]
    assert (found[0], [_like(line, shown) for line, shown in zip(found[1], lines, strict=True)]) == (status, lines)
    assert listing(kept) == before


def _like(line: str, expected: str) -> str:
    """Return *line* with TIME and LSN for the first time and LSN, where *expected* has these."""
    if "TIME" in expected:
        line = _TIME.sub("TIME", line, count=1)
    if expected.endswith("LSN"):
        line = _LSN.sub("LSN", line)
    return line


def test_the_nearest_moments_can_be_reached(kept: Kept) -> None:
    """What a refusal names as the latest time, LSN or transaction is reached, and nothing behind that LSN."""
    where = f"--pgdata-dir={kept.keeper.directory}/copy"
    found = {}
    for option, pattern in (
        ("--target-time=2126-01-01Z", r"moment is (\S+ [^;]+);"),
        ("--target-lsn=FF/0", r"LSN is (\S+)$"),
        ("--target-xid=2000000", r"transaction (\d+) at"),
    ):
        _, [_, hint] = kept.keeper.refuse(where, option.replace("01Z", "01 00:00Z"))
        match = re.search(pattern, hint)
        assert match is not None, hint
        name = option.partition("=")[0]
        found[name] = match[1]
        restored = kept.keeper.restore(f"{name}={match[1]}")
        restored.assert_is_at(kept.after)
        restored.stop()
    behind = Lsn(Lsn.parse(found["--target-lsn"]) + 1)
    assert kept.keeper.refuse(where, f"--target-lsn={behind}")[0] == 8


def test_plan_touches_nothing(kept: Kept) -> None:
    """--plan prints what would happen, and leaves no trace."""
    facts = kept.facts
    before = listing(kept)
    target = f"--target-time={kept.after.time.isoformat()}"
    bin_dir = kept.keeper.cluster.installation.bin_dir
    plan = kept.keeper.plan(f"--pgdata-dir={facts['copy']}", target)
    assert listing(kept) == before
    [head] = [backup for backup in kept.keeper.info()["backups"] if backup["level"] == "Full"]
    version = newest_installation().version
    [disk] = [line for line in plan if line.startswith("disk: ")]
    plan.remove(disk)
    assert plan == [
        f"backup: {facts['full']} (Full, PostgreSQL {version}, local)",
        f"files: {head['files']}, {head['bytes']} bytes, into {facts['copy']}",
        f"recovery target: time {kept.after.time.isoformat(sep=' ', timespec='microseconds')}, timeline 1",
        f"wal: from {head['start_lsn']} to {facts['end']}, 2 segments of 16.0 MiB",
        f"programs: {version} in {bin_dir}",
        "server: not started",
        plan[-1],
    ]
    assert _like(plan[-1], "TIME") == (
        "note: the target time is after the last commit held, which was at TIME: replay goes to the end of the WAL"
    )


def test_plan_of_an_overwrite_touches_nothing(kept: Kept) -> None:
    """--plan with --overwrite-existing names what would be moved, and does not move it."""
    before = listing(kept)
    occupied = kept.keeper.directory / "occupied"
    plan = kept.keeper.plan(f"--pgdata-dir={occupied}", "--overwrite-existing")
    assert listing(kept) == before
    [line] = [line for line in plan if line.startswith("moved away first: ")]
    today = dt.datetime.now(dt.UTC).strftime("%Y%m%d")
    assert line.startswith(f"moved away first: {occupied} to {occupied}.old.{today}T")


def test_restores_forbidden_on_this_host(kept: Kept, tmp_path: Path) -> None:
    """allow_restore = no in the configuration file forbids every restore."""
    tmp_path.chmod(0o755)
    config = kept.keeper.directory / "no.conf"
    config.write_text("[options]\nallow_restore = no\n")
    config.chmod(0o644)
    try:
        found = kept.keeper.refuse(
            f"--pgdata-dir={kept.keeper.directory}/copy", f"--config={config}", f"--log-dir={tmp_path}"
        )
    finally:
        config.unlink()
    assert found == (
        8,
        [
            "error: restores are forbidden on this host",
            "hint: allow_restore = no stands in the configuration file",
        ],
    )


def listing(kept: Kept) -> list[tuple[str, int, int, int]]:
    """Return what is there, but for the running server's own files."""
    server = f"{kept.keeper.cluster.data_directory}/"
    log = str(kept.keeper.cluster.log_file)
    # A reader's lock comes and goes in the vault, and what was read of WAL is kept for the next reader.
    own = kept.keeper.vault / kept.keeper.name
    passing = {log, str(own), str(own / "holders")}
    index = str(own / "wal-index")
    return [row for row in kept.keeper.listing() if not row[0].startswith((server, index)) and row[0] not in passing]
