"""The command line in its plain form: what is read without typer is what typer reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.cli.commands import app
from pgkeep.cli.plain_call import read_plain_call
from pgkeep.settings import cli_options
from pgkeep.vault.cluster_vault import ClusterIdentity
from pgkeep.vault.vault import Vault

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
VERBS = ("backup", "check", "merge", "receive", "restore", "verify", "info", "expire")
OWN = {"plan_only": "plan", "as_json": "json"}


def words_of(verb: str) -> st.SearchStrategy[list[str]]:
    """Return what may stand on a command line behind *verb*: right, wrong, and half of either."""
    flags = [flag for option in cli_options(verb) for flag in (*option.flags, *option.negative_flags)]
    values = st.sampled_from(["", "a", "1", "yes", "/x", "a,b", "x=y", "-1", "-h", "--", "--json", "a b", "é"])
    flag = st.sampled_from([*flags, "--json", "--plan", "--help", "--hos", "-j", "--new-system"])
    word = st.one_of(
        flag,
        values,
        st.tuples(flag, values).map("=".join),
        st.tuples(flag, values).map(list),
    )
    return st.lists(word, max_size=6).map(_flat)


def _flat(words: list[str | list[str]]) -> list[str]:
    return [one for word in words for one in ([word] if isinstance(word, str) else word)]


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """Return what was typed, in one form: an option that was left out is None, or a list of nothing."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, (), [])
    }


def _typer_reads(verb: str, words: list[str]) -> dict[str, Any]:
    with COMMANDS[verb].make_context(verb, list(words)) as context:
        return dict(context.params)


@given(st.sampled_from(VERBS).flatmap(lambda verb: st.tuples(st.just(verb), words_of(verb))))
def test_a_plain_command_line_says_what_typer_reads_in_it(line: tuple[str, list[str]]) -> None:
    """Whatever is typed: it is read as typer reads it, or left to typer."""
    verb, words = line
    call = read_plain_call([verb, *words])
    if call is None:
        return
    own = {OWN[name]: value for name, value in call.switches.items()}
    clusters = {"clusters": call.clusters} if verb == "receive" else {"cluster": call.clusters[0]}
    assert _said(_typer_reads(verb, words)) == _said({**call.values, **own, **clusters})


def test_options_of_every_kind_are_plain() -> None:
    """Switches, their negatives, texts in both forms, and lists that add up, are read without typer."""
    words = ["main", "--mode=pitr", "--host", "db1", "--no-start-fast", "--json"]
    call = read_plain_call(["backup", *words, "--exclude-tablespace=a", "--exclude-tablespace", "b"])
    assert call is not None
    given_values = {name: value for name, value in call.values.items() if value is not None}
    assert given_values == {"mode": "pitr", "host": "db1", "start_fast": False, "exclude_tablespace": ["a", "b"]}
    assert (call.clusters, call.switches) == (("main",), {"plan_only": False, "as_json": True})


@pytest.mark.parametrize(
    "words",
    [[], ["backup"], ["backup", "a", "b"], ["backup", "a", "--help"], ["backup", "a", "--host"], ["info", "a"]],
)
def test_what_needs_help_is_left_to_typer(words: list[str]) -> None:
    """A command that lacks something, has too much, asks for help or has other arguments is not plain."""
    assert read_plain_call(words) is None


def test_a_plain_command_loads_no_typer(tmp_path: Path) -> None:
    """A plain command, run as a process, answers as ever, and neither typer nor rich is among what it loads."""
    code = (
        "import atexit, sys\n"
        "from pgkeep.cli.app import main\n"
        "atexit.register(lambda: print(sorted({'typer', 'rich', 'click'} & set(sys.modules))))\n"
        "main()"
    )
    answers: list[tuple[str, int, str]] = []
    for words in (["verify", "main", f"--vault={tmp_path}/none"], ["verify", f"--vault={tmp_path}/none", "--", "main"]):
        done = subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True, text=True)
        answers.append((done.stdout.strip(), done.returncode, done.stderr))
    plain, other = answers
    assert plain[0] == "[]"
    assert "typer" in other[0]
    assert plain[1:] == other[1:]
    assert plain[1] == 6
    assert "there is no vault at" in plain[2]


@pytest.mark.parametrize("words", [["main"], ["--", "main"]])
def test_a_reader_that_leaves_ends_a_command_quietly(words: list[str], vault_with_main: Path) -> None:
    """Where nobody reads the report any more, a command ends with status 1 and without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        done = subprocess.run(
            [Path(sys.executable).with_name("pgkeep"), "verify", f"--vault={vault_with_main}", *words],
            check=False,
            stdout=nobody,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("words", [["main"], ["--", "main"]])
def test_a_broken_pipe_of_another_kind_is_told(words: list[str], vault_with_main: Path) -> None:
    """Where something else than the reader has left, a child say, that is a fault, and its place is said."""
    code = (
        "import sys\n"
        "from pgkeep.cli import verify\n"
        "from pgkeep.cli.app import program\n"
        "def fail(*_, **__): raise BrokenPipeError(32, 'Broken pipe')\n"
        "verify.run = fail\n"
        "program()"
    )
    command = [sys.executable, "-c", code, "verify", f"--vault={vault_with_main}", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("\nBrokenPipeError: [Errno 32] Broken pipe\n")


@pytest.fixture
def vault_with_main(tmp_path: Path) -> Path:
    """Return the path of a vault with a cluster called main, without backups."""
    identity = ClusterIdentity(system_identifier="7000000000000000001", major=17)
    Vault.create(tmp_path / "vault").create_cluster("main", identity)
    return tmp_path / "vault"
