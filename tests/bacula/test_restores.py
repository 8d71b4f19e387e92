"""The ways to say to bconsole where a restore goes and which moment it brings back."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene, files_beneath
from tests.lab.bacula import JobResult
from tests.lab.cluster import free_port
from tests.lab.server_user import server_user
from tests.restore.keeper import Outcome, Restored

pytestmark = pytest.mark.bacula

MAJORS = pytest.mark.pg("!=17")

FAILED = ("E", "f")
"""Both are a ``*** Restore Error ***``."""


@pytest.fixture
def pitr(make_scene: MakeScene) -> Scene:
    """A scene with a job of mode pitr called ``pitr``, whose Full is made."""
    scene = make_scene()
    scene.transfer()
    scene.backup(scene.job("pitr", scene.line("pitr")), "Full")
    return scene


def _adopt(scene: Scene, result: JobResult, port: int) -> Restored:
    """Take charge of the server that a restore has started."""
    restored = Restored(scene.cluster.installation, scene.cluster.data_directory, port, Outcome(0, "", result.told))
    restored.guard()
    scene.restored.append(restored)
    return restored


@MAJORS
def test_the_moment_is_chosen_in_the_menu(major: int, make_scene: MakeScene) -> None:
    """A target_time from the restore menu brings back the rows of that moment, not those of the last backup."""
    scene = make_scene(major=major)
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("before")
    scene.cluster.sql("DROP TABLE ledger_entry")
    scene.backup(job, "Incremental")
    where = scene.directory / "out"
    result = scene.director.restore(job, where, options={"target_time": mark.time.isoformat()}).must()
    scene.assert_restored(where, mark)
    assert any(f"recovery target: time {mark.time:%Y-%m-%d}" in line for line in result.told), result.text


@pytest.mark.parametrize("form", ["query", "json", "profile"])
def test_the_moment_is_chosen_by_where(form: str, make_scene: MakeScene) -> None:
    """The same options in where=, as a query, as base64 or as a profile of the client."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("before")
    scene.transfer()
    scene.backup(job, "Incremental")
    target = scene.directory / "out"
    options = {"where": str(target), "target_time": mark.time.isoformat()}
    if form == "query":
        where = "/@pgkeep/?" + "&".join(f"{name}={quote(value, safe='/:.-')}" for name, value in options.items())
    elif form == "json":
        where = "#" + base64.urlsafe_b64encode(json.dumps(options).encode()).decode()
    else:
        profile = scene.director.directory / "restore.d" / "dr.conf"
        profile.parent.mkdir()
        profile.write_text(f"[restore]\ntarget_time = {options['target_time']}\npgdata_dir = {target}/data\n")
        profile.chmod(0o600)
        server_user().own(profile.parent)
        where = "/@pgkeep/dr"
    scene.director.restore(job, where).must()
    scene.assert_restored(target, mark)


@MAJORS
def test_the_service_comes_back(major: int, make_scene: MakeScene) -> None:
    """A stopped cluster comes back in its own place by where=/, when it may be overwritten, and is started."""
    scene = make_scene(major=major)
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("before")
    scene.cluster.sql("DROP TABLE ledger_entry")
    scene.backup(job, "Incremental")
    refused = scene.director.restore(job, "/", options={"target_time": mark.time.isoformat()})
    assert refused.status in FAILED, refused.text
    assert scene.cluster.value("SELECT count(*) FROM ledger_account") == 50
    port = free_port()
    scene.cluster.configure(
        {"unix_socket_directories": str(scene.directory), "listen_addresses": " ", "port": str(port)}
    )
    scene.cluster.stop()
    options = {
        "target_time": mark.time.isoformat(), "overwrite_existing": "yes", "start_postgresql_after_restore": "yes",
        "port": str(port),
    }  # fmt: skip
    result = scene.director.restore(job, "/", options=options)
    restored = _adopt(scene, result, port)
    result.must()
    restored.wait_until_promoted()
    restored.assert_is_at(mark)


def test_a_running_server_is_not_touched(pitr: Scene) -> None:
    """where=/ on a running server is refused before a byte, unless it may be overwritten; the job fails."""
    result = pitr.director.restore("pitr", "/")
    assert result.status in FAILED, result.text
    assert any(line.startswith("Error: a server runs in ") for line in result.told), result.text
    assert any(line.startswith("Fatal error: the restore has failed") for line in result.told), result.text
    assert pitr.cluster.is_running
    assert pitr.ledger.check() > 0


def test_part_of_a_cluster_is_said(pitr: Scene) -> None:
    """A selection of some files into a directory lays those files, and the log says that they are no cluster."""
    newest = pitr.director.last_job_id()
    name = next(name for name, _, _ in pitr.director.files(newest) if name.endswith("/postgresql.conf"))
    where = pitr.directory / "part"
    result = pitr.director.restore("pitr", where, mark=[name])
    assert result.status == "T", result.text
    assert [path for path in files_beneath(where) if path.endswith("postgresql.conf")]
    assert any("restored as they are, not as a cluster" in line for line in result.told), result.text


def test_part_of_a_cluster_is_no_service(pitr: Scene) -> None:
    """A selection of some files into the service is refused."""
    newest = pitr.director.last_job_id()
    name = next(name for name, _, _ in pitr.director.files(newest) if name.endswith("/postgresql.conf"))
    pitr.cluster.stop()
    result = pitr.director.restore("pitr", "/", mark=[name], options={"overwrite_existing": "yes"})
    assert result.status in FAILED, result.text
    pitr.cluster.start()
    assert pitr.ledger.check() > 0


def test_a_plan_touches_nothing(pitr: Scene) -> None:
    """dry_run_restore shows the plan and writes no file."""
    where = pitr.directory / "plan"
    result = pitr.director.restore("pitr", where, options={"dry_run_restore": "yes"})
    assert result.status == "T", result.text
    assert any("recovery target: latest" in line for line in result.told), result.text
    assert files_beneath(where) == []


@MAJORS
def test_dumps_return_into_databases(major: int, make_scene: MakeScene) -> None:
    """where=/ restores a dump into its database on the server, under another name where one is given."""
    scene = make_scene(major=major)
    scene.cluster.sql("CREATE DATABASE shop")
    scene.cluster.sql("CREATE TABLE item AS SELECT generate_series(1, 7) AS n", dbname="shop")
    job = scene.job("dump", scene.line("dump"))
    scene.backup(job, "Full")
    scene.director.restore(job, "/", options={"target_database": "shop", "new_database": "shop2"}).must()
    assert scene.cluster.value("SELECT count(*) FROM item", dbname="shop2") == 7


@MAJORS
def test_parallel_dumps_return_into_databases(major: int, make_scene: MakeScene) -> None:
    """where=/ loads the chunks of a parallel dump, and the tables of a database have the rows that they had."""
    scene = make_scene(major=major)
    scene.cluster.sql("CREATE DATABASE shop")
    scene.cluster.sql(
        "CREATE TABLE item AS SELECT n, repeat(md5(n::text), 4) AS t FROM generate_series(1, 200000) n", dbname="shop"
    )
    scene.cluster.sql("ALTER TABLE item ADD PRIMARY KEY (n)", dbname="shop")
    # Before it, the plan would not know how the key is spread.
    scene.cluster.sql("ANALYZE item", dbname="shop")
    digest = "SELECT count(*)::text || md5(string_agg(t, '' ORDER BY n)) FROM item"
    job = scene.job("parallel", scene.line("parallel_dump", "parallel_tables=2 large_table_threshold=20M"))
    done = scene.backup(job, "Full")
    how = "ranges, by ctid" if major >= 14 else "ranges, by key n"
    assert any("public.item" in line and how in line for line in done.told), done.text
    scene.director.restore(job, "/", options={"target_database": "shop", "new_database": "shop2"}).must()
    assert scene.cluster.value(digest, dbname="shop2") == scene.cluster.value(digest, dbname="shop")
    files = scene.directory / "files"
    scene.director.restore(job, files).must()
    assert any(name.endswith("shop.parts/restore.sh") for name in files_beneath(files))


def test_several_volumes(make_scene: MakeScene) -> None:
    """A Full and an Incremental that are spread over many volumes of 4 MB come back whole."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"), more=["Pool = Small"])
    first = scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    volumes = scene.director.catalog("SELECT DISTINCT MediaId FROM JobMedia WHERE JobId = ?", first.job_id)
    assert len(volumes) > 3
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)


def test_a_restore_without_the_plugin(pitr: Scene) -> None:
    """A daemon without the plugin ends with "Restore OK": a log without pgkeep is the sign, and nothing starts."""
    director = pitr.director
    director.stop_daemon("fd")
    (director.layout.plugin_directory / "pgkeep-fd.so").unlink()
    director.start_daemon("fd")
    where = pitr.directory / "out"
    result = director.restore("pitr", where)
    assert result.status == "T", result.text
    assert result.told == []
    # What lies there has neither backup label nor WAL, so a server refuses it.
    with pytest.raises(AssertionError, match="could not start server"):
        pitr.start(pitr.pgdata(where))


def test_the_chain_ends_where_before_says(make_scene: MakeScene) -> None:
    """before= leaves later jobs out, and the rows are those of the last job before it."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"))
    scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("middle")
    middle = scene.backup(job, "Incremental")
    scene.transfer()
    scene.backup(job, "Incremental")
    [(ended,)] = scene.director.catalog("SELECT EndTime FROM Job WHERE JobId = ?", middle.job_id)
    where = scene.directory / "out"
    scene.director.restore(job, where, select=f'before="{ended}"').must()
    scene.assert_restored(where, mark)
