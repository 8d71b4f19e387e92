"""Where the lab's servers come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.installation import Installation
from tests.lab.packages import Unavailable
from tests.lab.server_user import server_user
from tests.lab.servers import cached, fits, newest_installation


def test_is_of_the_major_that_was_asked_for(installation: Installation, major: int) -> None:
    """An installation has the programs of its own major that every test may count on."""
    assert installation.version.split(".")[0] == str(major)
    assert all(installation.has(program) for program in ("initdb", "pg_ctl", "postgres"))


def test_the_newest_has_every_client_program() -> None:
    """What older installations may lack is in the newest one, and what nobody has is refused by name."""
    newest = newest_installation()
    assert newest.has_client_programs
    assert newest.program("pg_combinebackup").exists()
    with pytest.raises(FileNotFoundError, match=rf"PostgreSQL {newest.version} from wheel has no pg_time_machine"):
        newest.program("pg_time_machine")


def test_the_cache_repeats_what_did_not_end(lab_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking runs again after it failed half-way, in an empty directory, and never again after it ended."""
    monkeypatch.setenv("PGKEEP_TEST_CACHE", str(lab_directory))
    calls = []

    def unpack(directory: Path) -> Path:
        calls.append(os.listdir(directory))
        (directory / "half").touch()
        if len(calls) == 1:
            raise Unavailable("the network is gone")
        return directory / "bin"

    with pytest.raises(Unavailable, match="the network is gone"):
        cached("thing", unpack)
    assert cached("thing", unpack) == cached("thing", unpack) == lab_directory / "thing/bin"
    assert calls == [[], []]


def test_reach_needs_every_directory_on_the_way(lab_directory: Path) -> None:
    """A file behind a closed directory of somebody else is out of the server's reach."""
    user = server_user()
    (lab_directory / "closed").mkdir(mode=0o700)
    (lab_directory / "closed/file").touch()
    assert user.can_reach(lab_directory)
    assert user.can_reach(lab_directory / "closed/file") == user.is_self
    user.own(lab_directory / "closed")
    assert user.can_reach(lab_directory / "closed/file")


@pytest.mark.parametrize(
    ("condition", "majors"),
    [(">=17", {17, 18}), ("<13", {12}), (">=13, <16", {13, 14, 15}), ("!= 15,>=14", {14, 16, 17, 18}), ("==12", {12})],
)
def test_conditions_choose_majors(condition: str, majors: set[int]) -> None:
    """Every part of the marker's condition must hold."""
    assert {major for major in range(12, 19) if fits(major, condition)} == majors


def test_a_condition_that_nobody_understands_is_refused() -> None:
    """A condition without an operator is an error that shows one with."""
    with pytest.raises(ValueError, match='expected a condition like ">=17", found "17"'):
        fits(18, "17")
