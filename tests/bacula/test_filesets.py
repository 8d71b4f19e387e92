"""What a FileSet and a schedule may ask for: signatures, compression, several lines, several jobs at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bacula.conftest import MakeScene
from tests.bacula.scene import Scene, files_beneath
from tests.lab.cluster import wait_for
from tests.lab.server_user import server_user

pytestmark = pytest.mark.bacula


@pytest.mark.parametrize(
    "options",
    [
        ("signature = MD5",),
        ("signature = SHA256", "compression = GZIP1"),
        ("signature = XXHASH64", "compression = LZO"),
        ("sparse = yes", "signature = SHA1"),
    ],
    ids=["md5", "sha256-gzip", "xxhash64-lzo", "sha1-sparse"],
)
def test_options_of_the_fileset(options: tuple[str, ...], make_scene: MakeScene) -> None:
    """Signature, compression and sparse files are Bacula's affair: what was saved with them comes back the same."""
    scene = make_scene()
    job = scene.job("pitr", scene.line("pitr"), options=options)
    scene.backup(job, "Full")
    scene.transfer()
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    scene.assert_restored(where, mark)


def test_two_lines_in_one_fileset(scene: Scene) -> None:
    """Two lines of one FileSet both come back, every file of both has its digest, and one object holds both heads."""
    job = scene.job("both", scene.line("dump"), scene.line("pitr"), files=["/etc/hostname"])
    first = scene.backup(job, "Full")
    files = [row for row in scene.director.files(first.job_id) if not row[0].endswith("/") and row[2] > 0]
    assert [name for name, digest, _ in files if digest in ("0", "")] == []
    assert any("/dump/" in name for name, _, _ in files)
    assert any("/pitr/" in name for name, _, _ in files)
    assert [name for name, kind, _, _ in scene.director.restore_objects(first.job_id) if kind == 25] == ["pgkeep"]
    scene.transfer()
    mark = scene.ledger.mark("end")
    scene.backup(job, "Incremental")
    where = scene.directory / "out"
    scene.director.restore(job, where).must()
    assert any(path.endswith("postgres.dump") for path in files_beneath(where))
    assert any(path.endswith("etc/hostname") for path in files_beneath(where))
    scene.assert_restored(where, mark)


def test_two_jobs_at_once(scene: Scene) -> None:
    """Two jobs over the same cluster run at the same time, and each is restorable by itself."""
    first = scene.job("pitr", scene.line("pitr"))
    second = scene.job("again", scene.line("pitr", "cluster_id=again"))
    third = scene.job("dump", scene.line("dump"))
    ids = [scene.director.queue(job.name, "Full") for job in (first, second, third)]
    for job_id in ids:
        scene.director.wait(job_id).must()
    mark = scene.ledger.mark("end")
    ids = [scene.director.queue(job.name, "Incremental") for job in (first, second)]
    for job_id in ids:
        scene.director.wait(job_id).must()
    for job in (first, second):
        where = scene.directory / f"out-{job.name}"
        scene.director.restore(job, where).must()
        scene.assert_restored(where, mark)
    scene.assert_nothing_is_left()


def test_no_secret_is_written_anywhere(scene: Scene) -> None:
    """A password that pgkeep uses is in no log, trace, catalog, record, command line or environment."""
    secret = "Tr0ub4dor-and-3"
    scene.cluster.sql(f"CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{secret}'")
    scene.cluster.set_hba("host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256")
    pgpass = scene.directory / "pgpass"
    pgpass.write_text(f"127.0.0.1:{scene.cluster.port}:*:keeper:{secret}\n")
    pgpass.chmod(0o600)
    server_user().own(pgpass)
    lines = [
        f"pgkeep: mode={mode} host=127.0.0.1 port={scene.cluster.port} user=keeper pgpass_file={pgpass} debug=2"
        for mode in ("dump", "pitr")
    ]
    director = scene.director
    director.console("setdebug level=200 trace=1 client=lab-fd")
    job = scene.job("secret", *(f"{line} start_fast=yes" if "pitr" in line else line for line in lines))
    job_id = director.queue("secret", "Full")
    seen = set()

    def is_over() -> bool:
        seen.update(_command_lines())
        return director.status_of(job_id) not in ("R", "C")

    wait_for(is_over, "the job is over", timeout_seconds=90)
    director.wait(job_id).must()
    director.restore(job, scene.directory / "out").must()
    director.query(lines[1], "database")
    assert any("pgkeep-backend" in words for words in seen)
    assert [words for words in seen if secret in words] == []
    places = [path for path, content in director.everything_written() if secret.encode() in content]
    state = [path for path in (director.directory / "state").rglob("*") if path.is_file()]
    assert state
    assert places + [path for path in state if secret.encode() in path.read_bytes()] == []


def _command_lines() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            found.append((entry / "environ").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
