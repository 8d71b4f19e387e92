"""The proof that a restored cluster is one: what passes, and what each kind of damage is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgkeep.errors import CheckFailed, PgkeepError, RestoreRefused
from pgkeep.jobs.restoring.restored_checks import FAILED_HINT, WantedChecks, check_behind_fence, check_stopped
from pgkeep.server import queries
from pgkeep.server.connection import ConnectionTarget, Server
from tests.lab.cluster import SUPERUSER, Cluster, MakeCluster
from tests.lab.server_user import server_user

BLOCK = 8192


class Proof:
    """The checks of one running cluster, and what they said."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.said: list[str] = []
        self.warned: list[str] = []

    def ask(self, dbname: str) -> Server:
        return Server.open(
            ConnectionTarget(
                host=str(self.cluster.socket_directory),
                port=self.cluster.port,
                user=SUPERUSER,
                dbname=dbname or "postgres",
            )
        )

    def run(self, wanted: WantedChecks = WantedChecks(), **more: Any) -> tuple[str, ...]:  # noqa: B008 - frozen
        return check_behind_fence(
            self.ask, wanted, owner_uid=server_user().uid, say=self.said.append, warn=self.warned.append, **more
        )

    def fail(self, wanted: WantedChecks = WantedChecks(), **more: Any) -> str:  # noqa: B008 - frozen
        """Run the checks, which must fail, and return the error."""
        with pytest.raises(CheckFailed) as failed:
            self.run(wanted, **more)
        assert failed.value.hint == FAILED_HINT
        return failed.value.message


@pytest.fixture
def proof(make_cluster: MakeCluster) -> Proof:
    """A running cluster to be checked; of `major` where the test asks for it."""
    return Proof(make_cluster())


@pytest.fixture
def script(lab_directory: Path) -> Callable[[str], Path]:
    """Return a function that writes a file of SQL."""

    def write(text: str) -> Path:
        path = lab_directory / "proof.sql"
        path.write_text(text)
        path.chmod(0o644)
        return path

    return write


def test_a_sound_cluster_passes_and_stays_as_it_was(proof: Proof, script: Callable[[str], Path], major: int) -> None:
    """Every kind of relation is at its place; amcheck leaves nothing behind; the operator's results are in the log."""
    cluster = proof.cluster
    place = cluster.data_directory.parent / "fast"
    place.mkdir()
    server_user().own(place)
    cluster.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    cluster.sql('CREATE DATABASE "we/ird ""näme"')
    for statement in (
        "CREATE TABLE t (n int PRIMARY KEY, word text)",
        "INSERT INTO t SELECT n, repeat(md5(n::text), 100) FROM generate_series(1, 500) AS n",
        "CREATE INDEX words ON t (word) TABLESPACE fast",
        "CREATE UNLOGGED TABLE u TABLESPACE fast AS SELECT generate_series(1, 100) AS n",
        "CREATE TABLE parted (n int) PARTITION BY RANGE (n)",
        "CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (10)",
        "CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t",
        "CREATE SEQUENCE s",
        "CREATE INDEX broken ON t (n)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'broken'::regclass",
        # An extension's way to store tables may put them elsewhere.
        "CREATE ACCESS METHOD elsewhere TYPE TABLE HANDLER heap_tableam_handler",
        "CREATE TABLE e (n int) USING elsewhere",
        "CREATE INDEX of_e ON e (n)",
        "CHECKPOINT",
    ):
        cluster.sql(statement)
    for name in ("e", "of_e"):
        (cluster.data_directory / cluster.value(f"SELECT pg_relation_filepath('{name}')")).unlink()
    path = script(
        "SELECT count(*) AS rows, 'x%' LIKE 'x%' AS fits FROM t;\n"
        '\\c "we/ird ""näme"\nSELECT current_database(); SELECT generate_series(1, 22) AS n;\n'
    )
    before = cluster.value("SELECT count(*) FROM pg_class")
    wanted = WantedChecks.of_options({"verify_amcheck_after": True, "post_restore_sql": str(path)})
    assert wanted == WantedChecks(amcheck=True, sql=path, sql_timeout_seconds=600)
    assert proof.run(wanted) == ("postgres", "template1", 'we/ird "näme')
    assert cluster.value("SELECT count(*) FROM pg_class") == before
    assert cluster.value("SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'") == 0
    [line] = [line for line in proof.said if line.startswith("database postgres: ") and " rows of " in line]
    pattern = r"database postgres: \d{4,} rows of catalog, 5 tables, 5 indexes, 1 of them not valid"
    assert re.fullmatch(pattern, line), line
    assert proof.warned == ["database postgres: indexes that were not valid: public.broken"]
    read = [line for line in proof.said if " amcheck read " in line]
    assert len(read) == 3
    assert (" and 0 tables" in read[0]) == (major < 14)
    answers = [line.removeprefix("post_restore_sql: ") for line in proof.said if "post_restore_sql" in line]
    assert answers[:6] == ["rows | fits", "500 | True", "current_database", 'we/ird "näme', "n", "1"]
    assert answers[-2:] == ["20", "… 2 more rows"]


def test_a_relation_without_its_file_fails_the_restore(proof: Proof) -> None:
    """Unless it is in a tablespace that was not to be restored; every one of them is named."""
    cluster = proof.cluster
    place = cluster.data_directory.parent / "fast"
    place.mkdir()
    server_user().own(place)
    cluster.sql(f"CREATE TABLESPACE fast LOCATION '{place}'")
    oid = cluster.value("SELECT oid::int FROM pg_tablespace WHERE spcname = 'fast'")
    cluster.sql("CREATE TABLE here AS SELECT 1 AS n")
    cluster.sql("CREATE TABLE there TABLESPACE fast AS SELECT 1 AS n")
    cluster.sql("CHECKPOINT")
    paths = {name: cluster.value(f"SELECT pg_relation_filepath('{name}')") for name in ("here", "there")}
    (cluster.data_directory / paths["there"]).unlink()
    fault = f"database postgres: public.there has no file {paths['there']}"
    assert proof.fail() == f"the restored cluster did not pass: {fault}"
    assert proof.run(left_out=[oid]) == ("postgres", "template1")
    (cluster.data_directory / paths["here"]).unlink()
    first = f"database postgres: public.here has no file {paths['here']}"
    assert proof.fail() == f"the restored cluster did not pass: {first} (2 checks failed)"
    assert [line for line in proof.said if line.startswith("check failed")][-2:] == [
        f"check failed: {first}",
        f"check failed: {fault}",
    ]


def test_a_database_that_does_not_answer_fails_the_restore(proof: Proof) -> None:
    """The others are checked all the same."""
    cluster = proof.cluster
    cluster.sql("CREATE DATABASE one")
    cluster.sql("CHECKPOINT")
    oid = cluster.value("SELECT oid::int FROM pg_database WHERE datname = 'one'")
    (cluster.data_directory / "base" / str(oid) / "PG_VERSION").unlink()
    message = proof.fail()
    assert message.startswith("the restored cluster did not pass: database one: cannot connect to PostgreSQL at ")
    assert any(line.startswith("database template1: ") for line in proof.said)


def test_amcheck_finds_the_index_that_does_not_fit_its_table(proof: Proof, major: int) -> None:
    """An index in another order than this host's is the fault of a restore to another release; all are found."""
    cluster = proof.cluster
    cluster.sql("CREATE FUNCTION order_of(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n'")
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 300) AS n")
    for name in ("first", "second"):
        cluster.sql(f"CREATE INDEX {name} ON t (public.order_of(n))")
    # As a library does that is replaced by a newer one.
    cluster.sql("CREATE OR REPLACE FUNCTION order_of(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT -n'")
    assert proof.run() == ("postgres", "template1")
    message = proof.fail(WantedChecks(amcheck=True))
    begin = "the restored cluster did not pass: database postgres: public.first: heap tuple (0,1) from table"
    assert message.startswith(begin)
    assert message.endswith("(2 checks failed)")
    assert cluster.value("SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'") == 0


def test_amcheck_finds_the_damaged_table(make_cluster: MakeCluster) -> None:
    """A page that no checksum guards."""
    cluster = make_cluster(data_checksums=False)
    cluster.sql("CREATE EXTENSION amcheck")
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 300) AS n")
    path = cluster.data_directory / cluster.value("SELECT pg_relation_filepath('t')")
    cluster.stop()
    with path.open("r+b") as file:
        # The header of the last row on the first page: its length in the item's pointer is far too small now.
        page = bytearray(file.read(BLOCK))
        offset = int.from_bytes(page[24:28], "little") & 0x7FFF
        page[offset + 22] = 255
        file.seek(0)
        file.write(page)
    cluster.start()
    proof = Proof(cluster)
    assert proof.run() == ("postgres", "template1")
    message = proof.fail(WantedChecks(amcheck=True))
    assert message.startswith("the restored cluster did not pass: database postgres: public.t: block 0: ")
    # It was there before, and it stays.
    assert cluster.value("SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'") == 1


FAILING = {
    "SELECT 1;\n\nSELECT 1 / (count(*) - 1)\nFROM (SELECT 1) s;\n": "division by zero",
    "SELECT 1;\nSELECT nothing;\n": 'line 2: column "nothing" does not exist',
    "CREATE TABLE x (n int);\n": "cannot execute CREATE TABLE in a read-only transaction",
    "COPY (SELECT 1) TO STDOUT;\n": "COPY from or to the client is not possible here",
    "SELECT pg_sleep(60);\n": "canceling statement due to statement timeout",
    "\\c template1\n\n\nSELECT wrong;\n": 'line 4: column "wrong" does not exist',
    "DO $$ BEGIN RAISE 'no orders since %', '2026-11-20'; END $$;\n": "no orders since 2026-11-20",
}


def test_sql_that_fails_fails_the_restore(proof: Proof, script: Callable[[str], Path]) -> None:
    """In the server's words, with the line where it knows it."""
    for text, reason in FAILING.items():
        path = script(text)
        message = proof.fail(WantedChecks(sql=path, sql_timeout_seconds=1))
        separator = " " if reason.startswith("line ") else ": "
        assert message == f"the restored cluster did not pass: post_restore_sql {path}{separator}{reason}"


def test_sql_of_others_is_not_run_as_superuser(script: Callable[[str], Path]) -> None:
    """Refused in phase 1: who may write the file may do anything in the cluster; and psql's commands, which do more."""
    path = script("SELECT 1;\n\\! date\n")
    with pytest.raises(PgkeepError) as refused:
        WantedChecks(sql=path).check(bin_directory=path.parent, owner_uid=server_user().uid)
    assert refused.value.message == f"{path} has a command of psql's in line 2: \\! date"
    path.write_text("SELECT 1;")
    WantedChecks(sql=path).check(bin_directory=path.parent, owner_uid=server_user().uid)
    path.chmod(0o664)
    with pytest.raises(PgkeepError) as refused:
        WantedChecks(sql=path).check(bin_directory=path.parent, owner_uid=server_user().uid)
    assert refused.value.message == f"others may write {path}, which post_restore_sql would run as superuser"
    with pytest.raises(PgkeepError) as refused:
        WantedChecks(sql=path.with_name("absent")).check(bin_directory=path.parent, owner_uid=server_user().uid)
    assert refused.value.message.startswith(f"cannot read post_restore_sql {path.with_name('absent')}: ")


def test_text_that_is_sorted_otherwise_here_is_said(make_cluster: MakeCluster) -> None:
    """Where the backup was made another version sorted text: it need not be wrong, but somebody must know."""
    proof = Proof(make_cluster(major=15))
    with proof.ask("") as server:
        library, here = next(iter(queries.libraries(server).items()))
    proof.run(libraries={library: here, "other": "1"})
    assert proof.warned == []
    proof.run(libraries={library: "0.1"})
    [warning] = proof.warned
    assert warning.startswith(f"text was sorted by {library} 0.1, and is by {here} on this host: indexes on text may ")


@pytest.mark.parametrize("data_checksums", [True, False])
def test_pages_are_checked_when_the_server_is_stopped(make_cluster: MakeCluster, data_checksums: bool) -> None:
    """A damaged page fails the restore; a cluster without checksums has nothing to check, and that is said."""
    cluster = make_cluster(data_checksums=data_checksums)
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS n")
    path = cluster.data_directory / cluster.value("SELECT pg_relation_filepath('t')")
    cluster.stop()
    proof, wanted = Proof(cluster), WantedChecks(checksums=True)

    def check() -> None:
        bin_directory = cluster.installation.bin_dir
        check_stopped(
            cluster.data_directory, wanted, bin_directory=bin_directory, say=proof.said.append, warn=proof.warned.append
        )

    check()
    if not data_checksums:
        assert proof.warned == ["pg_checksums had nothing to check: the cluster has no page checksums"]
        return
    assert re.fullmatch(r"pg_checksums read \d{4,} pages in \d{3,} files: none is damaged", proof.said[0])
    with path.open("r+b") as file:
        file.seek(BLOCK + 4000)
        file.write(b"damage")
    with pytest.raises(CheckFailed) as failed:
        check()
    begin = "the restored cluster did not pass: pg_checksums: 1 bad pages, the first: checksum verification failed in "
    assert failed.value.message.startswith(begin)


def test_checksums_without_their_program_are_refused(tmp_path: Path) -> None:
    """Not after hours of replay."""
    with pytest.raises(RestoreRefused) as refused:
        WantedChecks(checksums=True).check(bin_directory=tmp_path, owner_uid=0)
    assert refused.value.message == f"verify_checksum_after needs pg_checksums, which is not in {tmp_path}"
