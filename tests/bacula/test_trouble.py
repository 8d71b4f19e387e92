"""Jobs that are cancelled or broken: the status is right, nothing is left behind, and the next job is well."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene, files_beneath
from tests.lab.cluster import wait_for
from tests.lab.ledger import fill
from tests.lab.smallfs import small_filesystem

pytestmark = pytest.mark.bacula

MOMENTS = 10


@pytest.fixture
def filled(make_scene: MakeScene) -> Scene:
    """A scene with a job ``pitr`` over 60 MB of rows."""
    scene = make_scene()
    with scene.cluster.connect() as connection:
        fill(connection, "big", size_mb=60)
    scene.cluster.sql("CHECKPOINT")
    scene.job("pitr", scene.line("pitr"))
    return scene


def _written(scene: Scene) -> int:
    return sum(path.stat().st_size for path in scene.director.layout.volume_directory.iterdir())


def test_cancelled_at_ten_moments(filled: Scene) -> None:
    """A Full that is cancelled anywhere ends at once, leaves no session and no process, and is no base."""
    scene, director = filled, filled.director
    begin = time.monotonic()
    scene.backup(scene.director.add_job("pitr", scene.line("pitr")), "Full")
    seconds = time.monotonic() - begin
    cancelled = 0
    while cancelled < MOMENTS:
        job_id = director.queue("pitr", "Full")
        deadline = time.monotonic() + seconds * cancelled / MOMENTS
        wait_for(lambda deadline=deadline: time.monotonic() >= deadline, "the moment has come")
        director.cancel(job_id)
        result = director.wait(job_id)
        # Where the daemons learn of it in an unlucky order, Bacula itself calls the job incomplete.
        assert result.status in ("A", "I", "T"), result.text
        scene.assert_nothing_is_left()
        if result.status != "T":
            cancelled += 1
        else:
            # It was through already: the machine has become faster since.
            seconds *= 0.8
    mark = scene.ledger.mark("after")
    job = director.add_job("pitr", scene.line("pitr"))
    scene.backup(job, "Incremental")
    where = scene.directory / "out"
    director.restore(job, where).must()
    scene.assert_restored(where, mark)


def test_cancelled_in_the_start_checkpoint(make_scene: MakeScene) -> None:
    """A job that waits for a checkpoint of minutes is cancelled at once."""
    scene = make_scene(settings={"checkpoint_timeout": "10min", "checkpoint_completion_target": "0.9"})
    with scene.cluster.connect() as connection:
        fill(connection, "big", size_mb=40)
    scene.job("pitr", scene.line("pitr").replace("start_fast=yes", "start_fast=no"))
    job_id = scene.director.queue("pitr", "Full")
    waits = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgkeep%' AND wait_event LIKE 'Checkpoint%'"
    )
    wait_for(lambda: scene.cluster.value(waits) > 0, "the job waits for the checkpoint")
    begin = time.monotonic()
    scene.director.cancel(job_id)
    result = scene.director.wait(job_id)
    assert result.status == "A", result.text
    assert time.monotonic() - begin < 120
    scene.assert_nothing_is_left()


def test_a_killed_backend_fails_the_job(filled: Scene) -> None:
    """A backend that is killed ends the job with f, and what it sent is no base: the next job becomes a Full."""
    director = filled.director
    job_id = director.queue("pitr", "Full")
    wait_for(lambda: bool(director.children()), "the backend runs")
    for pid in director.children():
        os.kill(pid, signal.SIGKILL)
    result = director.wait(job_id)
    assert result.status == "f", result.text
    assert any(line.startswith("Fatal error: ") for line in result.told), result.text
    filled.assert_nothing_is_left()
    next_one = director.run("pitr", "Incremental").must()
    assert next_one.level == "F"


def test_a_backend_killed_in_a_restore_fails_it(filled: Scene) -> None:
    """A backend that is killed ends the restore with an error, and what it laid down does not look whole."""
    director = filled.director
    director.run("pitr", "Full").must()
    where = filled.directory / "out"
    with director.open_console() as console:
        job_id = director.restore_in(console, "pitr", where)
    wait_for(lambda: bool(director.children()), "the backend runs")
    wait_for(where.exists, "it writes")
    for pid in director.children():
        os.kill(pid, signal.SIGKILL)
    result = director.wait(job_id)
    assert result.status in ("E", "f"), result.text
    assert not [path for path in files_beneath(where) if path.endswith("backup_label")]


def test_a_killed_storage_daemon_fails_the_job(filled: Scene) -> None:
    """The Storage Daemon's death ends the job on the client at once; nothing is left, and the next job is well."""
    director = filled.director
    job_id = director.queue("pitr", "Full")
    wait_for(lambda: _written(filled) > 2 << 20, "some of it is written")
    director.stop_daemon("sd", signal.SIGKILL)
    wait_for(lambda: "Network send error to SD" in director.result(job_id).text, "the File Daemon gives the job up")
    filled.assert_nothing_is_left()
    # The Director itself waits for half an hour for word from the dead, as with any job.
    director.start_daemon("sd")
    director.cancel(job_id)
    result = director.wait(job_id)
    assert result.status in ("f", "E", "A"), result.text
    assert director.run("pitr", "Incremental").must().level == "F"


def test_a_full_disk_of_the_storage_daemon(make_scene: MakeScene) -> None:
    """A job whose volume's disk is full never ends well; it waits for a volume, and can be cancelled."""
    with small_filesystem(20) as volumes:
        scene = make_scene(volume_directory=volumes)
        with scene.cluster.connect() as connection:
            fill(connection, "big", size_mb=20)
        scene.job("pitr", scene.line("pitr"))
        director = scene.director
        job_id = director.queue("pitr", "Full")

        def is_over_or_waits() -> bool:
            log = director.result(job_id).text
            return "device is full" in log or director.status_of(job_id) in ("f", "E", "A", "T")

        wait_for(is_over_or_waits, "the disk is full")
        director.cancel(job_id)
        result = director.wait(job_id)
        assert result.status in ("f", "E", "A"), result.text
        scene.assert_nothing_is_left()
        director.stop()


def test_a_server_that_stops_fails_the_job(filled: Scene) -> None:
    """The server's death in the middle of a Full ends the job with f."""
    director = filled.director
    job_id = director.queue("pitr", "Full")
    wait_for(lambda: _written(filled) > 1 << 20, "some of it is written")
    filled.cluster.kill()
    result = director.wait(job_id)
    assert result.status == "f", result.text
    wait_for(lambda: not director.children(), "the daemon has no child left")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("colour=red", 'unknown parameter "colour"'),
        ("port=1", "cannot connect"),
        ("user=nobody_knows", "nobody_knows"),
    ],
)
def test_a_line_that_cannot_work_fails_the_job(more: str, expected: str, make_scene: MakeScene) -> None:
    """A wrong word, a server that does not answer and a role that does not exist end the job with f and a reason."""
    scene = make_scene()
    base = scene.line("pitr").split()
    words = [word for word in base if word.partition("=")[0] != more.partition("=")[0]]
    scene.job("wrong", " ".join([*words, more]))
    result = scene.director.run("wrong", "Full")
    assert result.status == "f", result.text
    assert expected in "\n".join(result.told), result.text
