"""Mode pitr_block through a Director: what each level builds on, and the way back from a lost manifest."""

from __future__ import annotations

import shutil

import pytest

from tests.bacula.conftest import MakeScene
from tests.lab.bacula import JobResult
from tests.lab.server_user import server_user
from tests.pitr_block.conftest import SUMMARIZING

pytestmark = pytest.mark.bacula


def warnings(result: JobResult) -> list[str]:
    """Return the warnings of a job."""
    return [line for line in result.told if line.startswith("Warning: ")]


def test_chain_of_blocks_and_a_manifest_from_the_volume(make_scene: MakeScene) -> None:
    """Jobs build on each other; a manifest that was lost is restored by the console, and the chain goes on."""
    scene = make_scene(settings=SUMMARIZING)
    job = scene.job("block", scene.line("pitr_block", "start_fast=yes"))
    manifests = []
    for level in ("Full", "Incremental", "Differential"):
        scene.transfer()
        result = scene.backup(job, level)
        assert warnings(result) == []
        names = [name for name, _, index in scene.director.files(result.job_id) if index > 0]
        manifests += [name for name in names if name.endswith("/backup_manifest")]
        assert any("/INCREMENTAL." in name for name in names) == (level != "Full")
    assert len(manifests) == 3
    state = scene.director.directory / "state/bacula/default/pitr_block"
    (state / f"{result.unique_name}.backup_manifest.zst").unlink()
    lost = scene.backup(job, "Incremental")
    [warning] = warnings(lost)
    backup_id = manifests[-1].split("/")[-2]
    assert warning == (
        f"Warning: making a Full instead of the Incremental asked for: the manifest of backup {backup_id} cannot be "
        f"used: it is not in {state}; the file {manifests[-1]} of job {result.unique_name}, restored as "
        f"{result.unique_name}.backup_manifest there, is what lacks"
    )
    # As if that job had not been: the next one builds on the Differential again.
    scene.director.console(f"delete jobid={lost.job_id} yes")
    where = scene.directory / "out"
    scene.director.restore(job, where, select=f"jobid={result.job_id}", mark=[manifests[-1]]).must()
    [restored] = where.rglob("backup_manifest")
    copy = state / f"{result.unique_name}.backup_manifest"
    shutil.copy(restored, copy)
    server_user().own(copy)
    again = scene.backup(job, "Incremental")
    assert warnings(again) == []
    assert any(f"building on backup {backup_id}, " in line for line in again.told)
    scene.assert_nothing_is_left()
