"""The lab itself, proved by plain files: what these tests say of pgkeep would mean nothing without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bacula.conftest import MakeDirector
from tests.lab.bacula import Director, JobNotQueued
from tests.lab.bacula_config import quoted
from tests.lab.server_user import server_user

pytestmark = pytest.mark.bacula


def _tree(directory: Path, **files: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    server_user().own(directory)
    return directory


def test_a_chain_of_files_comes_back(director: Director, lab_directory: Path) -> None:
    """A Full and two Incrementals restore the newest version of each file, and not the deleted one."""
    tree = _tree(lab_directory / "tree", a="one", b="one", c="one")
    job = director.add_job("files", files=[str(tree)])
    assert director.run("files", "Full").must().files == 4
    _tree(tree, b="number two")
    director.run("files", "Incremental").must()
    (tree / "c").unlink()
    director.run("files", "Incremental").must()
    target = lab_directory / "target"
    director.restore(job, target).must()
    restored = {path.name: path.read_text() for path in target.rglob("*") if path.is_file()}
    assert restored == {"a": "one", "b": "number two"}


def test_part_of_a_tree_comes_back(director: Director, lab_directory: Path) -> None:
    """What is marked in the file selection is restored, and nothing else."""
    tree = _tree(lab_directory / "tree", a="one", b="two")
    job = director.add_job("files", files=[str(tree)])
    director.run("files", "Full").must()
    assert director.restore(job, lab_directory / "target", mark=[f"{tree}/b"]).must().files == 1
    assert [path.name for path in (lab_directory / "target").rglob("*") if path.is_file()] == ["b"]


def test_two_labs_side_by_side(make_director: MakeDirector, lab_directory: Path) -> None:
    """Two labs run at once, each with ports of its own."""
    tree = _tree(lab_directory / "tree", a="one")
    labs = [make_director("first"), make_director("second", transport=False)]
    for lab in labs:
        lab.add_job("files", files=[str(tree)])
    for result in [lab.run("files", "Full") for lab in labs]:
        assert result.must().job_id == 1
    assert "TLS" not in labs[1].result(1).text


def test_a_refused_command_queues_nothing(director: Director) -> None:
    """What the Director does not take is told apart from a job that fails."""
    director.add_job("files", files=["/etc/hostname"])
    with pytest.raises(JobNotQueued, match="No Full backup before"):
        director.restore("files", "/nowhere")


def test_a_plugin_that_is_not_there_fails_the_job(director: Director) -> None:
    """A Plugin line without its plugin ends the job with the status f."""
    director.add_job("missing", "pgkeep: mode=dump")
    result = director.run("missing", "Full")
    assert result.status == "f"
    assert "pgkeep: mode=dump" in result.text


def test_quotes_in_a_plugin_line() -> None:
    """A quotation mark and a backslash reach the Director as they are."""
    assert quoted('a "b c" \\d') == '"a \\"b c\\" \\\\d"'
