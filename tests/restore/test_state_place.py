"""Where a restore keeps its state: found by whatever name, and nobody else's."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.lab.cluster import free_port
from tests.lab.ledger import Ledger
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper, Outcome, Restored
from tests.restore.test_files import make_directory
from tests.restore.unfinished import call
from tests.survive.job import Job

SOMEBODY = 65533
"""An account that has no part in anything."""


def test_two_names_of_one_directory_are_one_restore(keeper: Keeper) -> None:
    """What is begun under one link is gone on with, guarded, finished and given up under another."""
    ledger = Ledger(keeper.cluster)
    keeper.backup("full", "local")
    mark = ledger.mark("target")
    keeper.backup("incremental", "local")
    place = make_directory(keeper.directory / "disk") / "place"
    server_user().own(make_directory(place))
    names = [keeper.directory / name for name in ("first", "second", "third")]
    for name in names:
        name.symlink_to(place)
        os.chown(name, server_user().uid, server_user().gid, follow_symlinks=False)
    first, second, third = names
    installation = keeper.cluster.installation
    restored = Restored(installation, second, free_port(), Outcome(0, "", []))
    keeper.restored.append(restored)
    arguments = [f"--bin-dir={installation.bin_dir}", f"--port={restored.port}", f"--target-lsn={mark.lsn}"]
    with Job(keeper, "restore", f"--pgdata-dir={first}", *arguments, at=("STOP", 500, "open", r"^\d+ ")) as job:
        job.wait_until_stopped()
        status, refusal = keeper.refuse(f"--pgdata-dir={second}", *arguments)
        assert (status, refusal[0]) == (8, f"error: another pgkeep works on the restore into {second}")
        job.kill()
    outcome = keeper.must("restore", f"--pgdata-dir={second}", *arguments, "--no-start")
    assert any(line.startswith("going on with the restore ") for line in outcome.lines)
    assert [path.name for path in place.parent.glob("*.pgkeep-restore")] == ["place.pgkeep-restore"]
    assert list(keeper.directory.glob("*.pgkeep-restore")) == []
    assert call("finish", third).status == 0
    restored.guard()
    restored.assert_is_at(mark)
    restored.stop()
    assert call("rollback", first, "--discard").status == 0
    assert list(place.iterdir()) == []


def test_a_state_that_somebody_planted(make_keeper: MakeKeeper) -> None:
    """Neither followed nor believed nor written into: beside the data directory, and in it."""
    keeper = make_keeper()
    Ledger(keeper.cluster)
    keeper.backup("full", "local")
    restored = keeper.restore("--target-immediate", start=False)
    data = restored.data_directory
    beside, inside = data.with_name(f"{data.name}.pgkeep-restore"), data / "pgkeep.restore"
    state = (beside / "state.json").read_text()
    # What a planted state would have root or the owner do.
    evil = json.loads(state) | {"bin_directory": str(make_directory(keeper.directory / "evil"))}
    shutil.rmtree(beside)

    for place, verb in ((beside, "finish"), (inside, "rollback")):
        elsewhere = make_directory(keeper.directory / f"of-{place.name}")
        (elsewhere / "state.json").write_text(json.dumps(evil))
        server_user().own(elsewhere)
        place.symlink_to(elsewhere)
        outcome = call(verb, data)
        error = f"error: {place} is a link, expected the directory of a restore"
        assert (outcome.status, outcome.refusal[0]) == (8, error)
        status, refusal = keeper.refuse(f"--pgdata-dir={data}", "--overwrite-existing")
        assert (status, refusal[0]) == (8, error)
        assert sorted(path.name for path in elsewhere.iterdir()) == ["state.json"]
        place.unlink()

    # One that nobody uses is no place for a state: it would be renamed with the data directory.
    server_user().own(make_directory(inside))
    keeper.must(
        "restore",
        *(f"--pgdata-dir={data}", f"--bin-dir={restored.installation.bin_dir}", "--target-immediate"),
        *("--overwrite-existing", "--no-start"),
    )
    assert (beside / "state.json").exists()
    assert not inside.exists()
    [old] = data.parent.glob(f"{data.name}.old.*")
    assert (old / "pgkeep.restore").is_dir()
    assert call("rollback", data).status == 0
    assert (data / "pgkeep.restore").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to another account")
def test_a_state_of_another_account(keeper: Keeper) -> None:
    """A directory that anybody may write into, but another account's: refused, and what it says is not done."""
    Ledger(keeper.cluster)
    keeper.backup("full", "local")
    target = keeper.directory / "target"
    server_user().own(make_directory(target))
    for name, verb in (("target/pgkeep.restore", "finish"), ("target.pgkeep-restore", "rollback")):
        planted = make_directory(keeper.directory / name)
        (planted / "state.json").write_text("{}")
        for path in (planted, planted / "state.json"):
            path.chmod(0o777)
            os.chown(path, SOMEBODY, SOMEBODY)
        error = f'error: the restore into {target} was begun by "{SOMEBODY}"'
        outcome = call(verb, target)
        assert (outcome.status, outcome.refusal[0]) == (8, error)
        assert keeper.refuse(f"--pgdata-dir={target}")[1][0] == error
        (planted / "state.json").unlink()
    # The one within is an empty directory now, beside which a restore keeps its own; not in that one.
    status, refusal = keeper.refuse(f"--pgdata-dir={target}")
    assert (status, refusal[0]) == (8, f'error: {planted} belongs to "{SOMEBODY}", who has no part in this restore')
    assert list(planted.iterdir()) == []
    assert [path.name for path in target.iterdir()] == ["pgkeep.restore"]
