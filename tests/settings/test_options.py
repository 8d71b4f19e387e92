"""The command line's options, as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.errors import UsageError
from pgkeep.settings import VERBS, cli_options, from_flags, resolve
from pgkeep.settings.options import default_in_words
from pgkeep.settings.table import BY_NAME


def by_flag(verb: str) -> dict[str, str]:
    """Return first flag to parameter name."""
    return {option.flags[0]: option.parameter.name for option in cli_options(verb)}


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_can_be_built(verb: str) -> None:
    """Each option has flags, one line of help, and a metavar unless it is a switch."""
    for option in cli_options(verb):
        assert all(flag.startswith("--") and flag == flag.lower() for flag in option.flags)
        assert option.help
        assert "\n" not in option.help
        assert bool(option.metavar) != bool(option.negative_flags)


def test_flags_that_people_type() -> None:
    """Much used options have short names."""
    flags = by_flag("restore")
    assert flags["--plan"] == "dry_run_restore"
    assert flags["--jobs"] == "parallel_jobs"
    assert flags["--target-time"] == "target_time"
    assert by_flag("expire")["--keep"] == "retention_count"
    assert "--password" not in flags


def test_help_shows_range_and_default() -> None:
    """Nobody needs the manual for a range."""
    (option,) = [option for option in cli_options("backup") if option.parameter.name == "parallel_jobs"]
    assert option.help == "How much work is done at once. [from 1 to 64; default 4]"


def test_typed_values_become_assignments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches, repeated options and relative paths mean what a shell's user expects; what was not typed is absent."""
    monkeypatch.chdir(tmp_path)
    written = from_flags(
        {
            "start_fast": False,
            "database": ["a", "b,c"],
            "exclude_database": [],
            "vault": "vault",
            "archive_dir": "auto",
            "port": None,
            "level": "incremental",
        }
    )
    resolved = resolve(written, verb="backup")
    assert set(resolved.given) == {"start_fast", "database", "vault", "archive_dir", "level"}
    assert not resolved.flag("start_fast")
    assert resolved.names("database") == ("a", "b", "c")
    assert resolved.text("vault") == str(tmp_path / "vault")
    assert resolved.text("archive_dir") == "auto"


@pytest.mark.parametrize("name", ["target_time", "target_lsn", "target_name", "target_timeline", "pgdata_dir"])
def test_a_restore_is_not_led_by_an_empty_text(name: str) -> None:
    """A variable that the shell does not know must not become a restore to the end, or in the live server's place."""
    with pytest.raises(UsageError) as failure:
        from_flags({name: ""})
    assert str(failure.value) == f'{name} must not be empty, found "" on the command line'
    flag = f"--{name.replace('_', '-')}"
    assert failure.value.hint.startswith(
        f"is a variable of the shell not set? Leave {flag} out for the default: {default_in_words(BY_NAME[name])}"
    )
    assert from_flags({name: None}) == []
    assert [one.text for one in from_flags({"post_restore_sql": ""})] == [""]
