"""
``./dev demo-bacula [STORY]``: the main job through a real Bacula, told as it happens.

A server works under load; a Director backs it up at three levels; a table is dropped by accident; bconsole brings the
moment before back, row for row. Everything lives in one temporary directory, which is removed in the end.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab.acknowledged import SCHEMA, Commits
from tests.lab.bacula import Director, JobResult
from tests.lab.bacula_packages import VERSION
from tests.lab.cluster import SUPERUSER, Cluster, free_port
from tests.lab.ledger import Ledger, check_ledger, digest
from tests.lab.receiving import SETTINGS as RECEIVED
from tests.lab.receiving import SLOT, receiving
from tests.lab.server_user import server_directory, server_user
from tests.lab.servers import newest_installation

LOAD_TRANSFERS = 300
STORIES = ("pitr", "pitr_block", "parallel_dump", "cdp")
_PROGRAMS = Path(sys.executable).parent
_SUMMARIZING = {"summarize_wal": "on", "wal_summary_keep_time": "14d"}


def main(story: str = "pitr") -> int:
    """Tell the whole story, that of *story*; return the exit status."""
    if story not in STORIES:
        print(f'demo-bacula: no story "{story}": expected one of {", ".join(STORIES)}', file=sys.stderr)
        return 2
    settings = {"pitr_block": _SUMMARIZING, "cdp": RECEIVED}.get(story, {})
    with server_directory() as directory, ExitStack() as stack:
        installation = newest_installation()
        _tell(f"a new server, {installation.version}, and a Bacula {VERSION} of its own, in {directory}")
        cluster = stack.enter_context(Cluster.create(installation, directory / "data", settings=settings)).start()
        director = stack.enter_context(Director(directory / "bacula"))
        _install(director, installation.bin_dir)
        director.start()
        if story == "parallel_dump":
            return _parallel_dump(cluster, director)
        if story == "cdp":
            return _cdp(directory, cluster, director)
        return _story(directory, cluster, director, mode=story)


def _story(directory: Path, cluster: Cluster, director: Director, *, mode: str) -> int:
    line = f"pgkeep: mode={mode} host={cluster.socket_directory} port={cluster.port} user={SUPERUSER} start_fast=yes"
    job = director.add_job("pitr", line)
    cluster.sql("CREATE TABLE history AS SELECT g, md5(g::text) AS note FROM generate_series(1, 200000) AS g")
    cluster.sql("VACUUM history")
    print(job.text())
    ledger = Ledger(cluster)
    with ledger.load() as load:
        for level in ("Full", "Differential", "Incremental"):
            load.wait_for(LOAD_TRANSFERS)
            # A few blocks of many.
            cluster.sql(f"UPDATE history SET note = '{level}' WHERE g % 20000 = 0")
            _backup(director, level)
        load.wait_for(LOAD_TRANSFERS)
    mark = ledger.mark("before")
    _tell(f"the moment before the accident: {mark.time.isoformat()}, {ledger.check()} transfers")
    cluster.sql("DROP TABLE ledger_entry, history")
    cluster.sql("UPDATE ledger_account SET balance = 0")
    _tell("DROP TABLE ledger_entry, history; UPDATE ledger_account SET balance = 0   -- the accident")
    _backup(director, "Incremental")

    where = directory / "restored"
    _tell("the restore, in bconsole")
    with director.open_console() as console:
        job_id = director.restore_in(console, job, where, options={"target_time": mark.time.isoformat()})
        print(_indented(console.transcript))
    if not _show(director.wait(job_id)):
        return 1
    [label] = where.rglob("backup_label")
    digests, transfers = _start_and_look(cluster, label.parent, directory)
    for name, value in mark.digests.items():
        verdict = "equal" if digests.get(name) == value else "DIFFERENT"
        _tell(f"table {name}: {value.partition(':')[0]} rows, digest {value[-16:]}: {verdict}")
    _tell(f"balances add up, {transfers} transfers")
    is_well = digests == mark.digests
    print("demo-bacula: OK" if is_well else "demo-bacula: the rows are not those of the moment before", flush=True)
    return 0 if is_well else 1


def _parallel_dump(cluster: Cluster, director: Director) -> int:
    """Dump a database with a large table, lose the table, bring the database back beside the original."""
    line = f"pgkeep: mode=parallel_dump host={cluster.socket_directory} port={cluster.port} user={SUPERUSER}"
    job = director.add_job("parallel", f"{line} parallel_tables=2 large_table_threshold=20M")
    print(job.text())
    cluster.sql("CREATE DATABASE shop")
    rows = "SELECT g, repeat(md5(g::text), 3) FROM generate_series(1, 500000) g"
    cluster.sql(f"CREATE TABLE history (id, note) AS {rows}", dbname="shop")
    ledger = Ledger(cluster, dbname="shop")
    with ledger.load() as load:
        load.wait_for(LOAD_TRANSFERS)
        with cluster.connect("shop") as connection:
            before = digest(connection)["public.history"]
        _backup(director, "Full", name="parallel")
        load.wait_for(LOAD_TRANSFERS)
    cluster.sql("DROP TABLE history", dbname="shop")
    _tell("DROP TABLE history   -- the accident")
    options = {"target_database": "shop", "new_database": "back"}
    if not _show(director.restore(job, "/", options=options)):
        return 1
    with cluster.connect("back") as connection:
        found = digest(connection)["public.history"]
        transfers = check_ledger(connection)
    _tell(f"table history: {found.partition(':')[0]} rows: {'equal' if found == before else 'DIFFERENT'}")
    _tell(f"balances add up, {transfers} transfers")
    is_well = found == before
    print("demo-bacula: OK" if is_well else "demo-bacula: the rows are not those of the dump", flush=True)
    return 0 if is_well else 1


def _cdp(directory: Path, cluster: Cluster, director: Director) -> int:
    """Kill the server under load; bring back every transaction that was acknowledged."""
    spool_dir = directory / "spool"
    spool_dir.mkdir()
    server_user().own(spool_dir)
    place = f"host={cluster.socket_directory} port={cluster.port} user={SUPERUSER}"
    base = director.add_job("base", f"pgkeep: mode=pitr {place} start_fast=yes")
    print(base.text())
    print(director.add_job("wal", f"pgkeep: mode=cdp {place} spool_dir={spool_dir}").text())
    cluster.sql(SCHEMA)
    with receiving(cluster, spool_dir) as lines:
        cluster.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{SLOT}'")
        cluster.sql("SELECT pg_reload_conf()")
        _tell(f"pgkeep receive default --spool-for=bacula, a synchronous standby: {lines[-1].strip()}")
        _backup(director, "Full", name="base")
        commits = Commits(cluster, "load", slot=SLOT)
        commits.wait_for(LOAD_TRANSFERS)
        _backup(director, "Full", name="wal")
        commits.wait_for(LOAD_TRANSFERS)
        _backup(director, "Incremental", name="wal")
        commits.wait_for(LOAD_TRANSFERS)
        cluster.kill()
        commits.join()
        _tell(f"kill -9 of the server; {commits.count} transactions were acknowledged")
        _backup(director, "Incremental", name="wal")
    where = directory / "restored"
    _tell("the restore, in bconsole: the base backup and the WAL, which are of two FileSets")
    with director.open_console() as console:
        job_id = director.restore_in(console, base, where, select="jobid=1,2,3,4")
        print(_indented(console.transcript))
    if not _show(director.wait(job_id)):
        return 1
    [label] = where.rglob("backup_label")
    with _started(cluster, label.parent, directory) as restored:
        commits.assert_in(restored.value)
        _tell(f"all {commits.count} are there, and nothing but those")
    print("demo-bacula: OK", flush=True)
    return 0


def _install(director: Director, bin_dir: Path) -> None:
    """Give the plugin to the File Daemon, as an administrator would."""
    state, config = director.directory / "state", director.directory / "pgkeep.conf"
    config.write_text(f"[options]\nstate_dir = {state}\nbin_dir = {bin_dir}\n")
    config.chmod(0o600)
    server_user().own(config)
    arguments = [
        *("bacula", "install", f"--fd-config={director.layout.configuration / 'bacula-fd.conf'}"),
        *(f"--config={config}", f"--state-dir={state}"),
    ]
    print(f"$ pgkeep {' '.join(arguments)}")
    done = subprocess.run(
        [_PROGRAMS / "pgkeep", *arguments],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **server_user().popen_arguments(),
    )
    print(_indented(done.stdout), flush=True)
    if done.returncode:
        raise SystemExit(f"pgkeep bacula install ended with {done.returncode}")


def _backup(director: Director, level: str, *, name: str = "pitr") -> None:
    print(f"* run job={name} level={level} yes")
    if not _show(director.run(name, level)):
        raise SystemExit(f"the {level} did not end well")


def _show(result: JobResult) -> bool:
    lines = result.told if result.is_ok else result.log
    print(_indented("\n".join(lines)))
    _tell(f"job {result.job_id}: status {result.status}, {result.files} files, {result.bytes} bytes")
    return result.is_ok


def _start_and_look(cluster: Cluster, data_directory: Path, directory: Path) -> tuple[dict[str, str], int]:
    """Start the restored server, wait until it has replayed, and return digests of its rows and their number."""
    with _started(cluster, data_directory, directory) as restored, restored.connect() as connection:
        return digest(connection), check_ledger(connection)


@contextmanager
def _started(cluster: Cluster, data_directory: Path, directory: Path) -> Iterator[Cluster]:
    """Start the restored server, wait until it has replayed, and stop it after the block."""
    restored = Cluster(cluster.installation, data_directory, work_directory=directory)
    restored.port = free_port()
    with restored.start(timeout_seconds=120):
        deadline = time.monotonic() + 60
        while restored.value("SELECT pg_is_in_recovery()"):
            if time.monotonic() > deadline:
                raise SystemExit("the restored server does not leave recovery")
            time.sleep(0.05)
        yield restored


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


def _tell(text: str) -> None:
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
