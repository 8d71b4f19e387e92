"""Chains of mode pitr_block: what each job builds on, and PostgreSQL's manifest, which the daemon gives nobody back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgkeep.bacula import state
from pgkeep.bacula.kept_manifest import KEPT_SUFFIX, RESTORED_SUFFIX, read_manifest
from tests.bacula_backend.bridge import Job, PlainBridge
from tests.bacula_backend.conftest import Client
from tests.bacula_backend.test_chain import record_of
from tests.lab.cluster import MakeCluster
from tests.lab.server_user import server_user
from tests.pitr_block.conftest import SUMMARIZING

ROOT = "/@postgresql/pitr_block"


@pytest.fixture
def client(make_cluster: MakeCluster, lab_directory: Path) -> Client:
    """A client with a running server that summarizes its WAL."""
    settings = {"wal_keep_size": "1GB", "unix_socket_directories": str(lab_directory), **SUMMARIZING}
    return Client(make_cluster(settings=settings), lab_directory, words="mode=pitr_block start_fast=yes")


def run(client: Client, level: str = "F", *, accurate: bool = False) -> Job:
    """Run a job that keeps the content of manifests; there must be nothing to remark."""
    job = client.run(level, accurate=accurate, keep=lambda name: name.endswith("manifest") or "_manifest" in name)
    assert (job.status, job.stderr, job.said("warning")) == (0, "", [])
    return job


def kept_for(client: Client, job: str) -> bytes:
    """Return the manifest that the state directory has of *job*."""
    return b"".join(read_manifest(client.state, job, path=""))


def test_each_job_builds_on_the_one_that_the_director_names(client: Client) -> None:
    """A Differential builds on the Full, an Incremental on the job before; the catalog keeps the whole chain."""
    client.cluster.sql("CREATE TABLE big AS SELECT g, repeat('x', 200) AS t FROM generate_series(1, 20000) AS g")
    # Otherwise whoever reads a row next marks its page, and all of them have changed.
    client.cluster.sql("VACUUM big")
    path = client.cluster.value("SELECT pg_relation_filepath('big')")
    jobs = []
    for level in "FIDI":
        jobs.append(run(client, level, accurate=True))
        client.cluster.sql("UPDATE big SET t = repeat('y', 200) WHERE g = 7")
        if level == "D":
            # One that the Director does not count is nobody's base.
            client.run("I", accurate=True, counts=False)
    heads = [record_of(job)["head"] for job in jobs]
    ids = [head["backup_id"] for head in heads]
    assert [head["level"] for head in heads] == ["F", "I", "D", "I"]
    assert [head["base"] for head in heads] == ["", ids[0], ids[0], ids[2]]
    assert [head["details"].get("chain", []) for head in heads] == [[], [ids[0]], [ids[0]], [ids[0], ids[2]]]
    directory, _, name = path.rpartition("/")
    for number, (job, backup_id) in enumerate(zip(jobs, ids, strict=True)):
        changed = f"{ROOT}/{backup_id}/pgdata/{directory}/INCREMENTAL.{name}"
        assert (changed in job.files) == (number > 0)
        manifest = f"{ROOT}/{backup_id}/backup_manifest"
        assert job.files[manifest].content == kept_for(client, client.jobs[number])
        own = (f"{ROOT}/{backup_id}/", f"{ROOT}/wal/")
        assert all(name.startswith(own) for name in job.order if name != f"{ROOT}/")
    assert all(name in client.catalog for job in (jobs[0], jobs[2]) for name in job.files)

    with PlainBridge() as bridge:
        [answer] = bridge.query(client.line, "json:recovery_window").lines
    windows = json.loads(answer)
    assert [one["backup"] for one in windows if one["backup"] in ids] == ids
    assert windows == sorted(windows, key=lambda one: str(one["from"]))
    # Each is a base, and the WAL of those after it leads on from there.
    assert {one["to"] for one in windows} == {heads[-1]["stop_time"]}


def test_a_lost_manifest_is_a_full_until_it_is_brought_back(client: Client) -> None:
    """Without the manifest the job says which file of which job lacks; put back as restored, it is built on again."""
    full = run(client)
    backup_id, job = record_of(full)["head"]["backup_id"], client.jobs[0]
    (client.state / f"{job}{KEPT_SUFFIX}").unlink()
    name = f"{ROOT}/{backup_id}/backup_manifest"
    reason = f"the manifest of backup {backup_id} cannot be used: "
    lost = client.run("I", counts=False)
    [warning] = lost.said("warning")
    assert warning == (
        f"making a Full instead of the Incremental asked for: {reason}it is not in {client.state}; "
        f"the file {name} of job {job}, restored as {job}{RESTORED_SUFFIX} there, is what lacks"
    )
    assert record_of(lost)["head"]["level"] == "F"
    restored = client.state / f"{job}{RESTORED_SUFFIX}"
    content = full.files[name].content
    assert content is not None
    restored.write_bytes(content[:-100])
    server_user().own(restored)
    damaged = client.run("I", counts=False)
    assert damaged.said("warning")[0].startswith(
        f"making a Full instead of the Incremental asked for: {reason}backup manifest is cut off after line "
    )
    restored.write_bytes(content)
    assert record_of(run(client, "I"))["head"]["base"] == backup_id
    # Another backup's manifest is one with a right checksum, too.
    restored.write_bytes(kept_for(client, client.jobs[1]))
    foreign = client.run("D")
    assert foreign.said("warning")[0].startswith(
        f"making a Full instead of the Differential asked for: {reason}it is of system identifier "
    )


def test_manifests_go_with_their_records(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the record of an older Full is forgotten, its manifest is; also one that was brought back."""
    monkeypatch.setattr(state, "KEPT_FULLS", 1)
    for _ in range(2):
        run(client)
        state.confirm_job(str(client.directory / "state"), client.jobs[-1])
    (client.state / f"{client.jobs[0]}{RESTORED_SUFFIX}").write_bytes(b"")
    assert state.ClusterState(str(client.directory / "state"), cluster_id="", mode="pitr_block").prune(client.jobs[1])
    left = {path.name for path in client.state.iterdir() if not path.name.endswith(".id")}
    assert left == {f"{client.jobs[1]}{suffix}" for suffix in (".json.zst", ".confirmed", KEPT_SUFFIX)}
