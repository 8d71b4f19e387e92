"""Names of databases in virtual paths, and filters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import SettingsError
from pgkeep.modes.dump_names import GLOBALS, decode_name, encode_name, select_names

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: len(name.encode()) <= 63
)


@given(names)
def test_round_trip(name: str) -> None:
    """Every name that PostgreSQL allows becomes one path component and comes back."""
    component = encode_name(name)
    assert decode_name(component) == name
    assert not set(component) & set('/\\ "\n\t*?')
    assert not component.startswith(".")
    assert component != GLOBALS
    assert len(f"{component}.dump.zst".encode()) <= 255


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("app", "app"),
        ('we/ird "näme"', "we%2Fird%20%22näme%22"),
        ("100%", "100%25"),
        ("..", "%2E."),
        ("globals", "%67lobals"),
        ("line\nend", "line%0Aend"),
        ("emoji 🐘", "emoji%20%F0%9F%90%98"),
    ],
)
def test_known_names(name: str, component: str) -> None:
    """These components are part of the format of a backup's paths."""
    assert encode_name(name) == component


@pytest.mark.parametrize(
    ("wanted", "excluded", "chosen"),
    [
        ([], [], ["App", "app", "app_1", "app_2", "odd[1]", "odd1"]),
        (["*"], ["app*"], ["App", "odd[1]", "odd1"]),
        (["app_?"], [], ["app_1", "app_2"]),
        (["app_[!1]"], [], ["app_2"]),
        (["odd[1]"], [], ["odd[1]"]),
        (["app_2", "app"], [], ["app", "app_2"]),
        (["a*"], ["app"], ["app_1", "app_2"]),
    ],
)
def test_filters(wanted: list[str], excluded: list[str], chosen: list[str]) -> None:
    """Filters are case-sensitive patterns; one that is a name as it stands means that name."""
    existing = ["App", "app", "app_1", "app_2", "odd[1]", "odd1"]
    assert select_names(existing, wanted=wanted, excluded=excluded, warn=pytest.fail) == chosen


def test_many_databases_are_not_all_listed() -> None:
    """An error lists ten databases at most."""
    existing = [f"db{number:02}" for number in range(25)]
    with pytest.raises(SettingsError) as failure:
        select_names(existing, wanted=["other"], excluded=[], warn=pytest.fail)
    listed = ", ".join(f'"db{number:02}"' for number in range(10))
    assert str(failure.value) == f'database "other" does not exist: the server has {listed} and 15 more'
