"""Which of PostgreSQL's programs are found and chosen; the programs here only tell a version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgkeep.errors import SettingsError, ToolError
from pgkeep.server import tools
from pgkeep.server.pg_dump import check_extra_options
from pgkeep.server.tools import ToolVersion, toolbox_for_dump, toolbox_for_restore, toolbox_for_server

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that installs programs of a version where packages put them; nothing else is found."""
    monkeypatch.setattr(tools, "_USUAL_PLACES", (f"{tmp_path}/usr/*/bin",))
    monkeypatch.setenv("PATH", "")

    def install(version: str, *programs: str, place: str = "") -> Path:
        directory = tmp_path / (place or f"usr/{version}/bin")
        directory.mkdir(parents=True)
        for program in programs or ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
            path = directory / program
            path.write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version} (Debian {version}-1)'\n")
            path.chmod(0o755)
        return directory

    return install


@pytest.mark.parametrize(
    ("installed", "server", "chosen"),
    [
        (["15.20"], 150020, "15.20"),
        (["15.21", "15.20"], 150020, "15.21"),
        (["15.20", "18.6"], 150018, "15.20"),
        (["14.23", "18.6", "17.11"], 170010, "17.11"),
        (["19rc1"], 190000, "19.0"),
    ],
)
def test_own_major_is_chosen(install: Install, installed: list[str], server: int, chosen: str) -> None:
    """A dump takes the server's own major, not older than its minor, and of those the newest."""
    for version in installed:
        install(version)
    assert str(toolbox_for_dump(server).version) == chosen


def test_nothing_fits(install: Install, tmp_path: Path) -> None:
    """Neither an older minor nor another major is taken silently, and the error lists what is there."""
    install("15.18")
    install("18.6")
    with pytest.raises(ToolError) as failure:
        toolbox_for_dump(150020)
    assert str(failure.value) == (
        f"no pg_dump for server 15.20: expected 15, not older than 15.20, "
        f"found 18.6 in {tmp_path}/usr/18.6/bin, 15.18 in {tmp_path}/usr/15.18/bin"
    )
    assert failure.value.hint == (
        "install the client programs of PostgreSQL 15 (Debian: postgresql-client-15), "
        "or name a directory with a newer major version with bin_dir"
    )


def test_nothing_is_installed(install: Install) -> None:
    """Without any programs the error says so."""
    with pytest.raises(ToolError, match=r"found none$"):
        toolbox_for_dump(150020)


def test_named_directory(install: Install, tmp_path: Path) -> None:
    """A directory that the operator names may hold a newer major, but nothing older, and must hold something."""
    new = install("18.6", place="opt/new")
    old = install("14.23", place="opt/old")
    assert str(toolbox_for_dump(150020, bin_dir=new).version) == "18.6"
    with pytest.raises(ToolError) as failure:
        toolbox_for_dump(150020, bin_dir=old)
    assert str(failure.value) == f"pg_dump 14.23 in {old} is older than the server, which is 15.20"
    with pytest.raises(ToolError) as failure:
        toolbox_for_dump(150020, bin_dir=tmp_path)
    assert str(failure.value) == f"no PostgreSQL programs in {tmp_path}"


def test_wrapper_on_path_is_left_alone(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to Debian's pg_wrapper on PATH is no toolbox; a link to the program itself leads to its directory."""
    real = install("16.14", place="opt/real")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pg_dump").symlink_to(real / "pg_dump")
    wrapped = install("15.20", "pg_wrapper", place="opt/wrapped")
    (wrapped / "pg_dump").symlink_to("pg_wrapper")
    monkeypatch.setenv("PATH", f"{wrapped}:{linked}:/nonexistent::")
    assert [str(box) for box in tools.find_toolboxes()] == [f"16.14 in {real}"]


@pytest.mark.parametrize(
    ("dumped_by", "server", "chosen"),
    [
        (ToolVersion(15, 20), 150020, "15.20"),
        (ToolVersion(15, 20), 180006, "18.6"),
        (ToolVersion(15, 20), 160014, "15.20"),
        (ToolVersion(17, 11), 150020, "17.11"),
        (ToolVersion(15, 21), 150020, "17.11"),
    ],
)
def test_restore_is_not_older_than_the_dump(install: Install, dumped_by: ToolVersion, server: int, chosen: str) -> None:
    """A restore takes programs not older than the dump: the server's own major if there is one, else the oldest."""
    for version in ("14.23", "15.20", "17.11", "18.6"):
        install(version)
    assert str(toolbox_for_restore(server, dumped_by=dumped_by).version) == chosen


def test_no_restore_fits(install: Install, tmp_path: Path) -> None:
    """Programs older than the dump are refused with what is there."""
    install("15.20")
    with pytest.raises(ToolError) as failure:
        toolbox_for_restore(150020, dumped_by=ToolVersion(18, 6))
    assert str(failure.value) == (
        "no pg_restore for a dump made by pg_dump 18.6: expected 18.6 or newer, "
        f"found 15.20 in {tmp_path}/usr/15.20/bin"
    )


def test_server_programs(install: Install, tmp_path: Path) -> None:
    """Server programs are asked for by major; client packages do not count."""
    install("17.11")
    directory = install("17.10", "postgres", "pg_ctl", place="usr/server/bin")
    assert toolbox_for_server(17).directory == directory
    with pytest.raises(ToolError) as failure:
        toolbox_for_server(18)
    assert str(failure.value) == f"no server programs of PostgreSQL 18: found 17.10 in {directory}"
    with pytest.raises(ToolError) as failure:
        toolbox_for_server(17).program("pg_combinebackup")
    assert str(failure.value) == f"no program pg_combinebackup in {directory}, which has PostgreSQL 17.10"


@pytest.mark.parametrize(
    "words",
    [
        ["--schema=public", "--exclude-table-data=log_*", "-v", "-n", "public", "-nfoo", "-vOx"],
        ["--schema-only", "--data-only", "--no-sync", "--no-owner", "-T", "f*"],
        [],
    ],
)
def test_allowed_options(words: list[str]) -> None:
    """Options that only choose what is dumped pass, whatever their values look like."""
    check_extra_options(words)


@pytest.mark.parametrize(
    ("word", "clash"),
    [
        ("--file=x", "file"),
        ("--form=p", "format"),
        ("-Fc", "format"),
        ("-vf", "file"),
        ("-j4", "jobs"),
        ("--dbname=x", "dbname"),
        ("--lock-wait-timeout=1", "lock-wait-timeout"),
        ("-Z9", "compress"),
        ("-W", "password"),
    ],
)
def test_refused_options(word: str, clash: str) -> None:
    """Options that pgkeep sets itself are refused in every spelling that pg_dump takes."""
    with pytest.raises(SettingsError) as failure:
        check_extra_options([word])
    assert str(failure.value) == f'dump_options: "{word}" is pg_dump\'s --{clash}, which pgkeep sets itself'


def test_word_that_is_no_option() -> None:
    """A bare word would be taken for a database."""
    with pytest.raises(SettingsError) as failure:
        check_extra_options(["-v", "postgres"])
    assert str(failure.value) == 'dump_options: expected options of pg_dump, found "postgres"'
