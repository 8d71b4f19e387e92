"""Chains of jobs: levels, what each builds on, and what the catalog is told."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from blake3 import blake3

from pgkeep.bacula.objects import parse_head_object
from pgkeep.bacula.state import confirm_job
from pgkeep.errors import UsageError
from tests.bacula_backend.bridge import Bridge, Job, PlainBridge
from tests.bacula_backend.conftest import Client
from tests.lab.server_user import server_user

ROOT = "/@postgresql/pitr"


def record_of(job: Job) -> dict[str, Any]:
    """Return the record that *job* sent, as any JSON parser reads it."""
    [name] = [name for name in job.order if name.endswith("_manifest.json")]
    content = job.files[name].content
    assert content is not None
    assert job.order[-1] == name
    found: dict[str, Any] = json.loads(content)
    return found


def age_files(client: Client) -> None:
    """Let all files be older than the next checkpoint by more than a clock's step."""
    client.cluster.sql("CHECKPOINT")
    client.cluster.sql("SELECT pg_sleep(3)")


@pytest.mark.parametrize("bridge", [Bridge, PlainBridge])
def test_full_holds_every_file_with_its_digest(client: Client, bridge: type[PlainBridge]) -> None:
    """A Full sends what its record names, byte for byte, in either protocol."""
    client.cluster.sql("CREATE TABLE sales AS SELECT g, repeat('x', 100) FROM generate_series(1, 50000) AS g")
    job = client.run(bridge=bridge, keep=lambda name: True)
    assert (job.status, job.stderr, job.said("warning")) == (0, "", [])
    record = record_of(job)
    assert record["head"]["level"] == "F"
    assert record["tail"]["files"] == len(record["files"])
    for entry in record["files"]:
        is_directory = entry.get("kind") == "directory"
        file = job.files[f"/{entry['path']}/" if is_directory else f"/{entry['path']}"]
        if not is_directory:
            assert (file.size, file.stated_size) == (entry.get("size", 0), entry.get("size", 0))
            assert blake3(file.content or b"").hexdigest() == entry["digest"]
    sent = set(job.order) - {f"{ROOT}/", job.order[-1]}
    assert record["tail"]["sent_files"] == len(sent)
    named = {f"/{e['path']}/" if e.get("kind") == "directory" else f"/{e['path']}" for e in record["files"]}
    assert named <= sent
    assert {name.split("/")[3] for name in sent - named} <= {"wal"}


def test_chain_of_levels_builds_on_the_job_that_the_director_names(client: Client) -> None:
    """A Differential sends what changed since the Full, an Incremental the WAL since the job before."""
    client.cluster.sql("CREATE TABLE still AS SELECT g FROM generate_series(1, 20000) AS g")
    age_files(client)
    full = record_of(client.run())
    client.cluster.sql("CREATE TABLE moved AS SELECT g FROM generate_series(1, 20000) AS g")
    first = client.run("I")
    second = client.run("I")
    differential = client.run("D")
    third = client.run("I")
    heads = [record_of(job)["head"] for job in (first, second, differential, third)]
    assert [head["level"] for head in heads] == ["I", "I", "D", "I"]
    ids = [head["backup_id"] for head in heads]
    assert [head["base"] for head in heads] == [full["head"]["backup_id"], ids[0], full["head"]["backup_id"], ids[2]]
    # Each continues the WAL where the job that it builds on ended, the Differential where the first Incremental did:
    # that one is known to have succeeded, since the second builds on it.
    stops = [full["head"]["wal"]["stop"]] + [head["wal"]["stop"] for head in heads]
    assert [head["wal"]["start"] for head in heads] == [stops[0], stops[1], stops[1], stops[3]]
    assert all("/pgdata/" not in name for name in first.order)
    unchanged = [e for e in record_of(differential)["files"] if f"/{e['path']}" not in differential.files]
    assert sum(e.get("kind") != "directory" for e in unchanged) > 500
    # What was not sent stands in the record as the Full has it.
    digests = {e["path"]: e.get("digest") for e in full["files"]}
    assert all(digests[e["path"]] == e.get("digest") for e in unchanged if e.get("kind") != "directory")


def test_accurate_job_keeps_in_the_catalog_what_the_chain_needs(client: Client) -> None:
    """With Accurate the catalog loses what was dropped, and nothing that a restore needs."""
    client.cluster.sql("CREATE TABLE doomed AS SELECT g FROM generate_series(1, 20000) AS g")
    path = client.cluster.value("SELECT pg_relation_filepath('doomed')")
    age_files(client)
    full = client.run(accurate=True)
    client.cluster.sql("DROP TABLE doomed")
    client.cluster.sql("CHECKPOINT")
    incremental = client.run("I", accurate=True)
    assert incremental.keep == [f"{ROOT}/"]
    assert set(full.files) <= set(client.catalog)
    differential = client.run("D", accurate=True)
    assert differential.said("warning") == []
    assert set(differential.asked) >= differential.seen
    record = record_of(differential)
    needed = {f"/{e['path']}" for e in record["files"] if e.get("kind") != "directory"}
    assert needed <= set(client.catalog)
    assert f"{ROOT}/pgdata/{path}" not in client.catalog
    assert {name for name in full.files if "/wal/" in name} <= set(client.catalog)
    assert full.order[-1] in client.catalog


@pytest.mark.parametrize("ring", [True, False])
def test_questions_never_stand_among_the_data_of_a_file(client: Client, ring: bool) -> None:
    """Where large files have changed and small ones between them have not, each file still comes in one piece."""
    for number in range(6):
        client.cluster.sql(f"CREATE TABLE calm_{number} AS SELECT g FROM generate_series(1, 2000) AS g")
        client.cluster.sql(
            f"CREATE TABLE wild_{number} AS SELECT g, repeat('x', 1000) AS t FROM generate_series(1, 12000) AS g"
        )
    age_files(client)
    client.run(accurate=True)
    for number in range(6):
        client.cluster.sql(f"UPDATE wild_{number} SET t = repeat('y', 1000) WHERE g % 100 = 0")
    client.cluster.sql("CHECKPOINT")
    done = client.run("D", accurate=True, ring=ring, keep=lambda name: True)
    assert (done.status, done.said("warning")) == (0, [])
    sent = {f"/{e['path']}": e for e in record_of(done)["files"] if f"/{e['path']}" in done.files}
    assert sum("/base/" in name and e.get("size", 0) > 10_000_000 for name, e in sent.items()) == 6
    for name, entry in sent.items():
        assert blake3(done.files[name].content or b"").hexdigest() == entry["digest"]


def test_accurate_job_sends_what_the_catalog_lacks(client: Client) -> None:
    """What pgkeep's record has and the catalog has not, or has otherwise, is sent again."""
    age_files(client)
    client.run(accurate=True)
    [version] = [name for name in client.catalog if name.endswith("/pgdata/PG_VERSION")]
    del client.catalog[version]
    [conf] = [name for name in client.catalog if name.endswith("/pgdata/pg_hba.conf")]
    client.catalog[conf].times = "1 1 1"
    differential = client.run("D", accurate=True)
    assert {version, conf} <= set(differential.files)
    assert {version, conf}.isdisjoint(differential.seen)


def test_lost_state_makes_a_full_and_says_so(client: Client) -> None:
    """Where the record of the job to build on is gone, a Full is made and both reasons are told."""
    client.run()
    for file in client.state.iterdir():
        file.unlink()
    job = client.run("I")
    assert record_of(job)["head"]["level"] == "F"
    assert job.said("warning") == [
        f"job Nightly.2026-11-20_21.56.35_01, which this Incremental builds on, has no record in {client.state}",
        "making a Full instead of the Incremental asked for: there is no backup to build on",
    ]


def test_lost_state_fails_the_job_where_that_is_wanted(client: Client) -> None:
    """With on_missing_base=fail the job ends with a clear message instead."""
    job = client.run("I", words="on_missing_base=fail", previous="Nightly.2020-01-01_00.00.00_01")
    assert job.said("fatal") == [
        "Incremental refused: there is no backup to build on\nmake a Full, or set on_missing_base=full"
    ]
    assert job.status == 3


@pytest.mark.parametrize("switches", [0, 5])
@pytest.mark.parametrize("last", ["F", "I"])
def test_a_cluster_that_was_put_back_is_no_continuation(client: Client, last: str, switches: int) -> None:
    """Files that were put back to a state before the last job's end: its WAL is not continued, a Full is made."""
    cluster, saved = client.cluster, client.directory / "saved"
    client.run()
    cluster.stop()
    server_user().run(["cp", "-a", cluster.data_directory, saved])
    cluster.start()
    for _ in range(3):
        cluster.sql("CREATE TABLE IF NOT EXISTS later AS SELECT 1")
        cluster.switch_wal()
    client.run(last)
    cluster.stop()
    server_user().run(["rm", "-rf", cluster.data_directory])
    server_user().run(["cp", "-a", saved, cluster.data_directory])
    cluster.start()
    for number in range(switches):
        # Past the end of that job, on another way.
        cluster.sql(f"CREATE TABLE another_{number} AS SELECT generate_series(1, 1000)")
        cluster.switch_wal()
    job = client.run("I")
    assert record_of(job)["head"]["level"] == "F"
    assert any("put back to an earlier state" in line for line in job.said("warning"))


def test_base_is_the_named_job_and_not_the_newest_on_disk(client: Client) -> None:
    """A job that the Director does not count is passed over, though its record is newer."""
    full = record_of(client.run())
    client.run("I", counts=False)
    head = record_of(client.run("I"))["head"]
    assert head["base"] == full["head"]["backup_id"]
    assert head["wal"]["start"] == full["head"]["wal"]["stop"]


def test_differential_carries_the_wal_that_no_incremental_surely_has(client: Client) -> None:
    """A Differential begins its WAL where the newest Incremental ends that is known to have succeeded."""
    full = record_of(client.run())["head"]
    ends = []
    for _ in range(3):
        client.cluster.sql("CREATE TABLE IF NOT EXISTS later AS SELECT 1")
        ends.append(record_of(client.run("I"))["head"]["wal"]["stop"])
    client.cluster.sql("INSERT INTO later VALUES (2)")
    previous = full["details"]["bacula"]["job"]
    differential = record_of(client.run("D", previous=previous))["head"]
    assert differential["base"] == full["backup_id"]
    assert differential["wal"]["start"] == ends[1]


def test_damaged_record_is_no_base(client: Client) -> None:
    """A record whose seal is broken is not built on."""
    age_files(client)
    client.run()
    [record] = client.state.glob("*.json.zst")
    content = bytearray(record.read_bytes())
    content[len(content) // 2] ^= 1
    record.write_bytes(content)
    job = client.run("D")
    assert record_of(job)["head"]["level"] == "F"
    assert any("cannot be used" in text or "has no record" in text for text in job.said("warning"))


def test_slot_moves_only_to_what_a_confirmed_job_holds(client: Client) -> None:
    """WAL stays at the server until the Director has named the job that holds it."""

    def restart_lsn() -> str:
        return str(client.cluster.value("SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'keep'"))

    words = "slot_name=keep allow_unbounded_slot=yes"
    client.run(words=words)
    begin = restart_lsn()
    client.cluster.switch_wal()
    second = client.run(words=words)
    # Nobody has said yet that either of the Fulls succeeded.
    assert restart_lsn() == begin
    stop = record_of(second)["head"]["wal"]["stop"]
    client.run("I", words=words)
    assert client.cluster.value("SELECT %s::pg_lsn <= %s::pg_lsn", [stop, restart_lsn()])


def test_confirmed_full_is_what_the_next_full_continues(client: Client) -> None:
    """A Full has no predecessor; once RunAfterJob has confirmed one, the next carries the WAL since then."""
    first = record_of(client.run())
    client.cluster.switch_wal()
    assert record_of(client.run())["head"]["wal"]["start"] != first["head"]["wal"]["stop"]
    assert confirm_job(str(client.directory / "state"), client.jobs[0]) == [str(client.state)]
    client.cluster.switch_wal()
    assert record_of(client.run())["head"]["wal"]["start"] == first["head"]["wal"]["stop"]
    with pytest.raises(UsageError, match=r'no job "Nightly\.x" has a record in'):
        confirm_job(str(client.directory / "state"), "Nightly.x")


def test_restore_object_has_the_head(client: Client) -> None:
    """The restore object is the record's head and tail, small enough for Bacula."""
    job = client.run()
    head, tail = parse_head_object(job.objects["pgkeep"])
    record = record_of(job)
    assert head.backup_id == record["head"]["backup_id"]
    assert tail.sent_files == record["tail"]["sent_files"]
    assert head.details["bacula"]["job"] == "Nightly.2026-11-20_21.56.35_01"
    assert len(job.objects["pgkeep"]) < 61_440


def test_dump_at_any_level_is_a_full(client: Client) -> None:
    """Mode dump dumps everything at each level, says so, and keeps nothing that it did not send."""
    client.words = "mode=dump"
    client.cluster.sql('CREATE DATABASE "we/ird ""näme"""')
    full = client.run(accurate=True)
    assert "/@postgresql/dump/we%2Fird%20%22näme%22.dump" in full.files
    assert [one["name"] for one in full.plugin_objects] == ["postgres", "template1", 'we/ird "näme"']
    assert all(all(one.values()) and one["path"] in full.files for one in full.plugin_objects)
    incremental = client.run("I", accurate=True)
    assert incremental.said("warning") == ["mode dump has no Incremental: this is a Full"]
    assert (incremental.seen, incremental.keep, incremental.asked) == (set(), [], [])


def test_failing_database_ends_the_job_after_the_others(client: Client) -> None:
    """A database that cannot be dumped is an error, the others are dumped, and there is no record in the end."""
    client.words = "mode=dump"
    for name in ("apart", "broken", "tidy"):
        client.cluster.sql(f"CREATE DATABASE {name}")
    with psycopg.connect(client.cluster.conninfo(dbname="broken"), autocommit=True) as other:
        other.execute("CREATE TABLE locked (i int)")
        other.autocommit = False
        other.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        job = client.run(words="lock_wait_timeout=1", counts=False)
        assert "/@postgresql/dump/tidy.dump" in job.files
        [error] = job.said("job error")
        assert error.startswith('pg_dump of database "broken" did not get its lock on a table within 1 s')
        assert job.said("error")[0].startswith("the backup is not complete: pg_dump of database")
        assert not list(client.state.glob("*.json.zst"))
        at_once = client.run(words="lock_wait_timeout=1 abort_on_error", counts=False)
        assert "/@postgresql/dump/tidy.dump" not in at_once.files
        assert at_once.said("error")[0].startswith('pg_dump of database "broken" did not get its lock')


@pytest.mark.parametrize("run", [0, 7])
def test_two_lines_for_the_same_cluster_are_refused(client: Client, run: int) -> None:
    """Two Plugin lines of one job would send files of the same names, so the second is refused."""
    client.run(name="Two.1", run=run, job_id=3)
    job = client.run(name="Two.1", run=run, job_id=3)
    assert job.said("fatal") == [
        "two Plugin lines of this job back up the same cluster in mode pitr\ngive each server a cluster_id of its own"
    ]


def test_a_later_run_of_the_same_job_takes_the_place_of_the_earlier(client: Client) -> None:
    """Bacula goes on with a job that it calls incomplete: what that had recorded is forgotten, kept manifests too."""
    client.run(name="Again.1", run=7, job_id=3, counts=False)
    [record] = client.state.glob("*.json.zst")
    before = record.read_bytes()
    manifest = client.state / "Again.1.backup_manifest.zst"
    manifest.write_bytes(b"of a run that died before its record had a name")
    job = client.run(name="Again.1", run=8, job_id=3)
    assert job.said("fatal") == []
    assert "the job goes on with one that was incomplete: all of it is sent anew" in job.said("info")
    assert record.read_bytes() != before
    assert not manifest.exists()
    assert client.run("I").said("fatal") == []


def test_a_job_of_another_director_is_not_taken_for_an_earlier_run(client: Client) -> None:
    """A record of the same unique name and another number stays, and the next job of its Director builds on it."""
    client.run(job_id=300)
    [record] = client.state.glob("*.json.zst")
    before = record.read_bytes()
    job = client.run(name=client.jobs[-1], run=1, job_id=12, counts=False)
    [error] = job.said("fatal")
    assert error.splitlines() == [
        f"a job of another Director is called {client.jobs[-1]} as well, with its record in {client.state}",
        "give each Director a state_dir or a cluster_id of its own",
    ]
    assert record.read_bytes() == before
    assert client.run("I", job_id=301).said("warning") == []


def test_numbers_that_fall_are_said(client: Client) -> None:
    """A job whose number is lower than that of the one before tells of two Directors that share a state_dir."""
    first = "Nightly.2026-11-20_21.56.35_01"
    assert client.run(job_id=300).said("warning") == []
    [warning] = client.run(job_id=12).said("warning")
    assert warning == (
        f"job {first} was made before this one and has the higher number 300: the catalog was made anew, or two "
        "Directors share this state_dir, and their jobs count on each other's WAL (give each a state_dir or a "
        "cluster_id of its own)"
    )
    assert client.run("I", job_id=13).said("warning") == []
    # One that goes on is older than its number says.
    assert client.run(name="Nightly.2026-11-20_21.56.35_00", job_id=11, run=2, counts=False).said("warning") == []
    assert client.run("I", name="Other.2026-11-20_21.56.35_03", job_id=1, previous=first).said("warning") == []


def test_cluster_id_gives_names_of_its_own(client: Client) -> None:
    """With cluster_id all names begin with the cluster's directory."""
    job = client.run(words="cluster_id=billing")
    assert all(name.startswith("/@postgresql/cluster_billing/pitr/") for name in job.order)
    assert job.plugin_objects[0]["path"] == "/@postgresql/cluster_billing/pitr/"


def test_accurate_increment_over_a_plain_bridge_is_a_full(client: Client) -> None:
    """Plain PTCOMM cannot say that an unsent file still stands, so an accurate job sends all."""
    client.run()
    with PlainBridge() as bridge:
        job = bridge.backup(
            {"Name": client.name(), "Level": "I", "PrevJobName": client.jobs[-1]}, f"{client.line} Accurate=1"
        )
    assert job.said("warning") == [
        "making a Full instead of the Incremental asked for: the job is accurate, the plugin not ours"
    ]
    assert record_of(job)["head"]["level"] == "F"
