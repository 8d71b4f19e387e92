"""What people type into bconsole about pgkeep besides backup and restore."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import PGKEEP, Scene, pgkeep_bacula, run_pgkeep

pytestmark = pytest.mark.bacula


@pytest.fixture(scope="module")
def plugin_version() -> str:
    """The version that pgkeep has."""
    return subprocess.run([PGKEEP, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def test_looking_around(scene: Scene, plugin_version: str) -> None:
    """The commands status client, .ls, .query and estimate show the plugin and the server, and leave nothing behind."""
    director = scene.director
    scene.cluster.sql("CREATE DATABASE shop")
    assert f"pgkeep({plugin_version})" in director.console("status client=lab-fd")
    line = scene.line("pitr")
    top = director.ls(line)
    assert all(f" /{name}/" in top or f" {name}/" in top or f"{name}" in top for name in ("databases", "slots"))
    assert "shop" in director.ls(line, "/databases")
    answer = director.query(line, "version")
    assert re.search(r"version=18\.\d+", answer), answer
    assert "shop" in director.query(line, "database")
    assert "unknown parameter" in director.query(line, "weather")
    job = scene.job("pitr", line)
    plain = director.estimate(job.name, listing=False)
    listing = director.estimate(job.name)
    for text in (plain, listing):
        assert re.search(r"2000 OK estimate files=[\d,]+ bytes=[\d,]+", text), text
    assert "/@postgresql/pitr/" in listing
    scene.assert_nothing_is_left()


def test_an_estimate_is_near_the_truth(scene: Scene) -> None:
    """An estimate names as many files and bytes as the backup then has, but for records and WAL."""
    job = scene.job("pitr", scene.line("pitr"))
    text = scene.director.estimate(job.name, listing=False)
    found = re.search(r"files=([\d,]+) bytes=([\d,]+)", text)
    assert found is not None, text
    files, size = (int(number.replace(",", "")) for number in found.groups())
    result = scene.backup(job, "Full")
    assert abs(files - result.files) < 20
    assert abs(size - result.bytes) < 40 << 20


def test_objects(scene: Scene) -> None:
    """Each database, or the cluster, is an object of the job, and can be chosen by its id for a restore."""
    director = scene.director
    scene.cluster.sql("CREATE DATABASE shop")
    scene.cluster.sql("CREATE TABLE item (n int)", dbname="shop")
    dump = scene.job("dump", scene.line("dump"))
    pitr = scene.job("pitr", scene.line("pitr"))
    results = [scene.backup(job, "Full") for job in (dump, pitr)]
    rows = director.catalog(
        "SELECT JobId, ObjectCategory, ObjectType, ObjectName, ObjectStatus, ObjectId FROM Object ORDER BY ObjectId"
    )
    assert {(row[1], row[2], row[4]) for row in rows} == {
        ("Database", "PostgreSQL", "T"),
        ("Cluster", "PostgreSQL", "T"),
    }
    names = {row[3]: row for row in rows if row[0] == results[0].job_id}
    assert {"shop", "postgres"} <= names.keys()
    assert len([row for row in rows if row[0] == results[1].job_id]) == 1
    assert "shop" in director.console(f"list objects jobid={results[0].job_id}")
    where = scene.directory / "out"
    job_id = director.command(
        f"restore objectid={names['shop'][5]} where={where} client=lab-fd restorejob=Restore done yes"
    )
    director.wait(job_id).must()
    assert [path.name for path in where.rglob("*.dump")] == ["shop.dump"]


def test_check_and_confirm(make_scene: MakeScene) -> None:
    """The check passes from the plugin to the server; confirm marks a job, and refuses one that is unknown."""
    scene = make_scene()
    state = f"--state-dir={scene.director.directory / 'state'}"
    outcome = pgkeep_bacula("check", scene.director, f"--line={scene.line('pitr')}", state)
    assert "FAILED" not in outcome.stdout
    assert re.search(r"^OK +server +PostgreSQL 18", outcome.stdout, re.MULTILINE), outcome.stdout
    assert re.search(r"^OK +loads ", outcome.stdout, re.MULTILINE), outcome.stdout
    result = scene.backup(scene.job("pitr", scene.line("pitr")), "Full")
    config = f"--config={scene.director.directory / 'pgkeep.conf'}"
    assert run_pgkeep("bacula", "confirm", result.unique_name, config).status == 0
    refused = run_pgkeep("bacula", "confirm", "nothing.2026-01-01_00.00.00_01", config)
    assert refused.status == 2
