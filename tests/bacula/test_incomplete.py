"""Jobs that Bacula calls incomplete and goes on with, under the same number: what the second run sent counts."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene, forget_files
from tests.lab.bacula import JobResult
from tests.lab.bacula_config import JobDefinition, quoted
from tests.lab.cluster import wait_for
from tests.lab.ledger import fill
from tests.lab.server_user import server_user
from tests.pitr_block.conftest import SUMMARIZING

pytestmark = pytest.mark.bacula

SENT = " is complete: "


class Halting:
    """A job whose FileSet has a pipe behind pgkeep's line: there it waits until somebody writes."""

    def __init__(self, scene: Scene, line: str) -> None:
        """Add it, as ``job``."""
        self.scene = scene
        self.director = scene.director
        self._pipe = scene.directory / "pipe"
        os.mkfifo(self._pipe)
        server_user().own(self._pipe)
        self.job = JobDefinition("job", [line])
        include = (
            "  Include {\n    Options { readfifo = yes; signature = XXHASH64 }\n"
            f"    File = {quoted(str(self._pipe))}\n  }}\n"
        )
        self.director.add_resource(self.job.name, self.job.text().replace("  Exclude {", f"{include}  Exclude {{"))

    def begin(self, level: str) -> int:
        """Begin it, and return its number when pgkeep has sent everything."""
        job_id = self.director.queue(self.job.name, level)
        wait_for(lambda: SENT in self.director.result(job_id).text, "pgkeep is through")
        return job_id

    def end(self, job_id: int) -> JobResult:
        """Let it come to its end."""

        def has_ended() -> bool:
            # As long as nobody reads, it cannot be opened.
            with suppress(OSError):
                os.close(os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK))
            return _has_ended(self.scene, job_id)

        wait_for(has_ended, "the job has ended")
        return self.director.result(job_id)

    def stop(self, job_id: int) -> None:
        """Make it incomplete."""
        self.director.console(f"stop jobid={job_id}")
        result = self.end(job_id)
        assert result.status == "I", result.text

    def go_on(self, job_id: int) -> JobResult:
        """Let the Director go on with it; return what it has become when it is through again."""
        _restart(self.scene, self.job, job_id)
        wait_for(lambda: self.director.result(job_id).text.count(SENT) == 2, "pgkeep is through again")
        return self.end(job_id).must()


def _has_ended(scene: Scene, job_id: int) -> bool:
    return scene.director.status_of(job_id) not in ("C", "R")


def _stopped_in_its_middle(scene: Scene, job: JobDefinition, level: str) -> int:
    """Begin a job, and make it incomplete when some of it has been written; return its number."""
    director = scene.director

    def written() -> int:
        return sum(path.stat().st_size for path in director.layout.volume_directory.iterdir())

    before = written()
    job_id = director.queue(job.name, level)
    wait_for(lambda: written() > before + (2 << 20), "some of it is written")
    # The console takes a while; without its backend the job does not come to its end meanwhile.
    backends = director.children()
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    director.console(f"stop jobid={job_id}")
    for pid in backends:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: _has_ended(scene, job_id), "the job has ended")
    result = director.result(job_id)
    assert (result.status, SENT in result.text) == ("I", False), result.text
    return job_id


def _restart(scene: Scene, job: JobDefinition, job_id: int) -> None:
    """Do what the Director does by itself half an hour after."""
    scene.director.tick()
    answer = scene.director.console(f"restart incomplete job={job.name} jobid={job_id} yes")
    assert f"Job queued. JobId={job_id}" in answer
    wait_for(lambda: scene.director.status_of(job_id) != "I", "it has begun again")


@pytest.mark.parametrize(
    ("mode", "accurate"), [("pitr", True), ("pitr", False), ("pitr_block", True)], ids=["pitr", "unaware", "pitr_block"]
)
def test_a_chain_goes_on(mode: str, accurate: bool, make_scene: MakeScene) -> None:
    """A Full and an Incremental, each stopped in its middle and gone on with after a table went, restore its rows."""
    scene = make_scene(settings=SUMMARIZING)
    job = scene.job("job", scene.line(mode, "" if mode == "pitr" else "start_fast=yes"), accurate=accurate)
    for level in ("Full", "Incremental"):
        with scene.cluster.connect() as connection:
            fill(connection, f"big_{level}", size_mb=40)
        scene.cluster.sql("CREATE TABLE doomed AS SELECT 1 AS n")
        scene.cluster.sql("CHECKPOINT")
        job_id = _stopped_in_its_middle(scene, job, level)
        scene.cluster.sql("DROP TABLE doomed")
        scene.transfer()
        scene.cluster.sql("CHECKPOINT")
        mark = scene.ledger.mark(level)
        _restart(scene, job, job_id)
        assert scene.director.wait(job_id).must().level == level[0]
        where = scene.directory / level
        scene.director.restore(job, where).must()
        scene.assert_restored(where, mark)
    scene.assert_nothing_is_left()


@pytest.mark.parametrize("mode", ["pitr", "pitr_block"])
def test_a_job_goes_on_that_had_sent_all(mode: str, make_scene: MakeScene) -> None:
    """A Full that was sent and recorded, and is incomplete all the same, is sent anew; the next job builds on that."""
    scene = make_scene(settings=SUMMARIZING)
    halting = Halting(scene, scene.line(mode, "" if mode == "pitr" else "start_fast=yes"))
    scene.cluster.sql("CREATE TABLE doomed AS SELECT 1 AS n")
    job_id = halting.begin("Full")
    halting.stop(job_id)
    scene.cluster.sql("DROP TABLE doomed")
    scene.transfer()
    result = halting.go_on(job_id)
    assert "the job goes on with one that was incomplete: all of it is sent anew" in result.told
    scene.transfer()
    mark = scene.ledger.mark("end")
    assert halting.end(halting.begin("Incremental")).must().level == "I"
    where = scene.directory / "out"
    scene.director.restore(halting.job, where, mark=[f"/@postgresql/{mode}"]).must()
    scene.assert_restored(where, mark)


@pytest.mark.parametrize("has_sent_all", [False, True], ids=["middle", "end"])
@pytest.mark.parametrize("mode", ["dump", "parallel_dump"])
def test_dumps_go_on(mode: str, has_sent_all: bool, make_scene: MakeScene) -> None:
    """A table that was dropped before the second run does not come back, and the rows are those of the second run."""
    scene = make_scene()
    more = "parallel_tables=2 large_table_threshold=4M" if mode == "parallel_dump" else ""
    rows = "SELECT n, gen_random_uuid()::text || gen_random_uuid() AS t FROM generate_series(1, 150000) n"
    for database, tables in (("gone", ["item"]), ("shop", ["item", "extra"])):
        scene.cluster.sql(f"CREATE DATABASE {database}")
        for table in tables:
            scene.cluster.sql(f"CREATE TABLE {table} AS {rows}", dbname=database)
            scene.cluster.sql(f"ANALYZE {table}", dbname=database)
    if has_sent_all:
        halting = Halting(scene, scene.line(mode, more))
        job, job_id = halting.job, halting.begin("Full")
        halting.stop(job_id)
    else:
        job = scene.job("job", scene.line(mode, more))
        job_id = _stopped_in_its_middle(scene, job, "Full")
    scene.cluster.sql("DROP DATABASE gone")
    scene.cluster.sql("DROP TABLE extra", dbname="shop")
    scene.cluster.sql("DELETE FROM item WHERE n > 50000", dbname="shop")
    scene.cluster.sql("VACUUM FULL item", dbname="shop")
    if has_sent_all:
        halting.go_on(job_id)
    else:
        _restart(scene, job, job_id)
        scene.director.wait(job_id).must()

    names = {"target_database": "shop", "new_database": "shop2"}
    scene.director.restore(job, "/", options=names, mark=[f"/@postgresql/{mode}"]).must()
    digest = "SELECT count(*)::text || md5(string_agg(t, '' ORDER BY n)) FROM item"
    assert scene.cluster.value(digest, dbname="shop2") == scene.cluster.value(digest, dbname="shop")
    assert scene.cluster.value("SELECT to_regclass('extra') IS NULL", dbname="shop2")
    if not has_sent_all:
        # Whole jobs, with what the first run sent: no name of a file is known any more.
        forget_files(scene)
        names["new_database"] = "shop3"
        scene.director.restore(job, "/", options=names, select=f"jobid={job_id}").must()
        assert scene.cluster.value(digest, dbname="shop3") == scene.cluster.value(digest, dbname="shop")
        assert scene.cluster.value("SELECT to_regclass('extra') IS NULL", dbname="shop3")
