"""What is generated from the table: the reference page and the sample configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pgkeep.settings import BY_NAME, PARAMETERS, Place, check_config, parse_config, parse_value
from pgkeep.settings.reference import REFERENCE_FILE, SAMPLE_FILE, main, render_reference, render_sample

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "content"), [(REFERENCE_FILE, render_reference()), (SAMPLE_FILE, render_sample())])
def test_generated_files_are_current(name: str, content: str) -> None:
    """The files in the tree are what the table says now: `python -m pgkeep.settings.reference` renews them."""
    assert (ROOT / name).read_text(encoding="utf-8") == content


def test_check_finds_a_stale_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check ends with 1 and names the stale file, writing ends with 0 and makes it current."""
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert f"{REFERENCE_FILE} is stale" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0
    sample = tmp_path / SAMPLE_FILE
    sample.write_text(sample.read_text(encoding="utf-8") + "x", encoding="utf-8")
    capsys.readouterr()
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"{SAMPLE_FILE} is stale\n")


def test_reference_has_every_parameter() -> None:
    """Each parameter has its heading, and each alias is named."""
    page = render_reference()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert headings == [
        parameter.name
        for group in dict.fromkeys(p.group for p in PARAMETERS)
        for parameter in PARAMETERS
        if parameter.group is group
    ]
    assert all(f"`{alias}`" in page for parameter in PARAMETERS for alias in parameter.aliases)


def test_sample_says_nothing() -> None:
    """The sample as it is delivered sets nothing."""
    assert parse_config(render_sample(), "pgkeep.conf").assignments("billing") == []


def test_sample_works_when_uncommented() -> None:
    """Without the comment signs each line is accepted, and shows the default where there is one."""
    text = re.sub(r"^#(?=\w+ =|\[)", "", render_sample(), flags=re.MULTILINE)
    config = parse_config(text, "pgkeep.conf")
    assert check_config(config) == []
    expected = {parameter.name for parameter in PARAMETERS if Place.CONFIG in parameter.places}
    assert {assignment.name for assignment in config.shared} == expected
    for assignment in config.shared:
        parameter = BY_NAME[assignment.name]
        if parameter.default not in (None, ()):
            assert parse_value(parameter, assignment.text or "") == parameter.default
