"""Ways to hurt a restore, and what it says: nothing that is not whole ever looks whole."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bacula_backend.bridge import File
from tests.bacula_restore.bridge import RestoreBridge, Restoring
from tests.bacula_restore.conftest import Daemon, MakeDaemon
from tests.lab.ledger import Ledger, Mark

ROOT = "/@postgresql/pitr"


@dataclass(frozen=True)
class Damage:
    """
    One way to hurt a restore.

    Attributes:
        hurt: What becomes of the stream.
        message: Part of the error.
        is_refused: Whether not a single file is asked for.
        only: Whether it needs a plain bridge, or pgkeep's own; empty for both.
    """

    hurt: Callable[[Restoring], Restoring]
    message: str
    is_refused: bool = False
    only: str = ""


def table(restoring: Restoring) -> str:
    """Return the name of a file of some size."""
    return restoring.first(f"{ROOT}/pgdata/base/", larger_than=100_000).name


def flipped(restoring: Restoring) -> Restoring:
    """Flip a bit."""
    content = bytearray(restoring.file(table(restoring)).content or b"")
    content[5000] ^= 1
    return restoring.with_file(table(restoring), content=bytes(content))


def shortened(restoring: Restoring) -> Restoring:
    """Cut the end off a file, and let nobody notice."""
    content = restoring.file(table(restoring)).content or b""
    return restoring.with_file(table(restoring), content=content[:-100])


def given_up(restoring: Restoring) -> Restoring:
    """Let the daemon give up in the middle of a file."""
    return dataclasses.replace(restoring, failed={table(restoring): 50_000})


def renamed(name: str, **more: Any) -> Callable[[Restoring], Restoring]:
    """Return what gives a file another name, or another nature."""

    def hurt(restoring: Restoring) -> Restoring:
        return restoring.with_file(table(restoring), name=name, **more)

    return hurt


def wal_of(restoring: Restoring) -> list[str]:
    """Return the names of the WAL, oldest first."""
    return sorted(file.name for file in restoring.files if file.name.startswith(f"{ROOT}/wal/"))


def record_of(restoring: Restoring) -> str:
    """Return the name of the record."""
    return next(file.name for file in restoring.files if file.name.endswith("_manifest.json"))


def broken_record(restoring: Restoring) -> Restoring:
    """Cut the record."""
    content = restoring.file(record_of(restoring)).content or b""
    return restoring.with_file(record_of(restoring), content=content[: len(content) // 2])


def foreign_wal(restoring: Restoring) -> Restoring:
    """Put something else into a segment."""
    name = wal_of(restoring)[-1]
    content = bytearray(restoring.file(name).content or b"")
    content[24:32] = b"\1\2\3\4\5\6\7\0"
    return restoring.with_file(name, content=bytes(content))


DAMAGE = {
    "a flipped bit": Damage(flipped, "did not arrive as it was backed up: it has the digest"),
    "a shorter file": Damage(shortened, "was announced with"),
    "a file that the daemon gives up": Damage(given_up, "the daemon says the volume is damaged", only="own"),
    "a lost record": Damage(lambda r: r.without(record_of(r)), "is not selected", is_refused=True, only="own"),
    "a lost record, unannounced": Damage(
        lambda r: r.without(record_of(r)), "did not arrive: nobody knows whether its files are whole", only="plain"
    ),
    "a lost file": Damage(lambda r: r.without(table(r)), "files are selected, backup", is_refused=True, only="own"),
    "a lost file, unannounced": Damage(lambda r: r.without(table(r)), "1 files of backup", only="plain"),
    "a lost control file": Damage(
        lambda r: r.without(f"{ROOT}/pgdata/global/pg_control"), "pg_control", is_refused=True, only="own"
    ),
    "lost WAL": Damage(lambda r: r.without(*wal_of(r)[-1:]), "files are selected, backup", is_refused=True, only="own"),
    "lost WAL, unannounced": Damage(lambda r: r.without(*wal_of(r)[-1:]), "did not arrive", only="plain"),
    "a record that is cut": Damage(broken_record, "truncated"),
    "WAL of another cluster": Damage(foreign_wal, "system identifier"),
    "a way up": Damage(renamed(f"{ROOT}/pgdata/base/../../../../evil"), "leads out of its place"),
    "a place that is none": Damage(renamed(f"{ROOT}/elsewhere/evil"), "has no place in a data directory"),
    "an absolute link": Damage(
        renamed(f"{ROOT}/pgdata/evil", stat="S 0 0 0 120777 1", link="/etc/passwd", content=b""),
        "leads out of its place",
    ),
    "a link upwards": Damage(
        renamed(f"{ROOT}/pgdata/base/evil", stat="S 0 0 0 120777 1", link="../../../x", content=b""),
        "leads out of its place",
    ),
    "a hard link": Damage(renamed(f"{ROOT}/pgdata/evil", stat="L 0 0 0 100600 1", content=b""), "hard link"),
}


@dataclass
class Backed:
    """A daemon with one Full, and what was there."""

    daemon: Daemon
    mark: Mark


@pytest.fixture(scope="module")
def backed(make_module_daemon: MakeDaemon) -> Backed:
    """A Full, for all rows."""
    daemon = make_module_daemon()
    ledger = Ledger(daemon.cluster)
    ledger.transfer(50)
    daemon.cluster.sql("CREATE TABLE big AS SELECT n, repeat('y', 50) t FROM generate_series(1, 5000) n")
    mark = ledger.mark("before")
    daemon.backup()
    return Backed(daemon, mark)


CASES = [
    (name, plain)
    for name, row in DAMAGE.items()
    for plain in (False, True)
    if row.only != ("own" if plain else "plain")
]


@pytest.mark.parametrize(("name", "plain"), CASES, ids=[f"{name}, {'plain' if p else 'own'}" for name, p in CASES])
def test_what_is_hurt_never_looks_whole(backed: Backed, name: str, plain: bool) -> None:
    """Every row fails with its message, and leaves nothing that a server would start."""
    row, daemon = DAMAGE[name], backed.daemon
    # Where partial selections are refused, not laid down as files.
    place = daemon.directory / f"hurt-{list(DAMAGE).index(name)}-{plain}"
    answer = daemon.restore(row.hurt(daemon.restoring()), options={"pgdata_dir": str(place)}, plain=plain)
    assert row.message in answer.error
    assert not row.is_refused or answer.answers == {}
    assert answer.job.status != 0
    assert not (place / "global/pg_control").exists()
    assert not place.with_name(f"{place.name}.pgkeep-wal").exists()
    assert not list(daemon.directory.rglob("evil"))


def test_a_restore_that_died_is_repeated(backed: Backed) -> None:
    """What a dead daemon left is no cluster; the next restore clears it and succeeds."""
    daemon = backed.daemon
    place = daemon.directory / "again"
    restoring = daemon.restoring()
    dying = dataclasses.replace(restoring, stop_before=restoring.files[len(restoring.files) // 2].name)
    daemon.restore(dying, options={"pgdata_dir": str(place)})
    assert (place / "pgkeep.restoring").exists()
    assert not (place / "global/pg_control").exists()
    answer = daemon.restore(options={"pgdata_dir": str(place), "start_postgresql_after_restore": "yes", "port": "5433"})
    assert answer.error == ""
    restored = daemon.server(place, answer)
    restored.assert_is_at(backed.mark)
    restored.stop()


def test_of_a_path_that_comes_twice_the_later_wins(backed: Backed) -> None:
    """Bacula may send old and new version of a file; the digest proves that the newer one stands."""
    daemon = backed.daemon
    restoring = daemon.restoring()
    name = table(restoring)
    old = dataclasses.replace(restoring.file(name), content=b"o" * len(restoring.file(name).content or b""))
    place = daemon.directory / "twice"
    index = [file.name for file in restoring.files].index(name)
    files = [*restoring.files[:index], old, *restoring.files[index:]]
    answer = daemon.restore(dataclasses.replace(restoring, files=files), options={"pgdata_dir": str(place)})
    assert answer.error == ""
    wrong = [*restoring.files[: index + 1], old, *restoring.files[index + 1 :]]
    place = daemon.directory / "twice-wrong"
    answer = daemon.restore(dataclasses.replace(restoring, files=wrong), options={"pgdata_dir": str(place)})
    assert "did not arrive as it was backed up" in answer.error
    assert not (place / "global/pg_control").exists()


def test_a_part_of_a_cluster_comes_as_files(backed: Backed) -> None:
    """Some files of a cluster, into a directory: said, laid down as they are, checked where the record comes along."""
    daemon = backed.daemon
    part = daemon.restoring().only(f"{ROOT}/pgdata/global/")
    answer = daemon.restore(part, where=f"{daemon.directory}/part")
    assert answer.error == ""
    assert any("the files are restored as they are, not as a cluster" in line for line in answer.job.said("warning"))
    for file in part.files:
        if file.kind == "F":
            assert Path(f"{daemon.directory}/part{file.name}").read_bytes() == file.content
    refused = daemon.restore(part)
    assert "is not selected" in refused.error
    assert refused.answers == {}


def test_files_of_other_lines_are_left_alone(backed: Backed) -> None:
    """A file of another line's root is skipped, whoever sends it here."""
    daemon = backed.daemon
    restoring = daemon.restoring()
    other = dataclasses.replace(restoring.files[0], name="/@postgresql/dump/sales.dump")
    place = daemon.directory / "others"
    answer = daemon.restore(
        dataclasses.replace(restoring, files=[other, *restoring.files]), options={"pgdata_dir": str(place)}
    )
    assert answer.error == ""
    assert answer.answers["/@postgresql/dump/sales.dump"] == "SKIP"


def test_a_refusal_is_in_the_audit_file(backed: Backed) -> None:
    """What phase 1 refuses leaves its reason in log_dir as well; a dry run leaves nothing."""
    daemon = backed.daemon
    logs = daemon.directory / "logs"
    words = f"{daemon.words} log_dir={logs}"
    beyond = {"pgdata_dir": str(daemon.directory / "beyond"), "target_lsn": "FF/0"}
    assert daemon.restore(words=words, options=beyond | {"dry_run_restore": "yes"}).error
    assert not logs.exists()
    answer = daemon.restore(words=words, options=beyond)
    assert "is beyond the WAL held" in answer.error
    [path] = logs.iterdir()
    assert (path.name, stat.S_IMODE(path.stat().st_mode)) == ("restore-9.log", 0o600)
    message, hint = answer.error.strip().splitlines()
    assert _lines(path)[-2:] == [f"error: {message}", f"hint: {hint}"]
    assert not (daemon.directory / "beyond").exists()
    # The next one, which goes through phase 1, has its plan there as well.
    assert daemon.restore(words=words, options={"pgdata_dir": str(daemon.directory / "planned")}).error == ""
    lines = _lines(path)
    assert sum(line.startswith("backup: ") for line in lines) == 1
    assert sum(line.startswith("RESTORE PHASE ") for line in lines) == 3


def test_the_first_error_is_the_one_that_is_shown(backed: Backed) -> None:
    """A state file that cannot be read hides nothing, and the WAL stays for whoever mends it."""
    daemon = backed.daemon
    place = daemon.directory / "two-errors"
    state = place.with_name(f"{place.name}.pgkeep-restore") / "state.json"

    class Damaging(RestoreBridge):
        def send_file(self, file: File, name: str, cut: int | None) -> None:
            if file.name.endswith("_manifest.json"):
                state.write_text("damaged")
            super().send_file(file, name, cut)

    restoring = flipped(daemon.restoring())
    with Damaging(environment=daemon.environment()) as bridge:
        answer = bridge.restore(restoring, daemon.words, options=f'pgdata_dir="{place}"\n')
    assert "did not arrive as it was backed up: it has the digest" in answer.error
    [warning] = [line for line in answer.job.said("warning") if str(state) in line]
    assert warning.endswith(f"; the WAL of this restore stays in {place}.pgkeep-wal")
    assert place.with_name(f"{place.name}.pgkeep-wal").is_dir()


def _lines(path: Path) -> list[str]:
    return [line.partition("Z ")[2] for line in path.read_text().splitlines()]
