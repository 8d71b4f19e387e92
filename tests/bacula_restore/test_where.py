"""What where= and the restore menu say."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.bacula.restore_options import parse_options_text
from pgkeep.bacula.where import parse_where
from pgkeep.errors import UsageError


def encoded(content: object) -> str:
    """Return where= as consoles write it."""
    return "#" + base64.b64encode(json.dumps(content).encode()).decode()


@pytest.mark.parametrize(
    ("where", "place", "options"),
    [
        (None, None, ()),
        ("", None, ()),
        ("/", None, ()),
        ("/srv/out", Path("/srv/out"), ()),
        ("/srv/out/", Path("/srv/out"), ()),
        ("/@pgkeep/drill", None, (("profile", "drill"),)),
        ("/@pgkeep/drill/", None, (("profile", "drill"),)),
        (
            "/@pgkeep/?target_time=2026-04-23T14:30:00-03:00&start=yes",
            None,
            (("target_time", "2026-04-23T14:30:00-03:00"), ("start", "yes")),
        ),
        ("/@pgkeep/?where=/srv/a%20b&overwrite_existing", Path("/srv/a b"), (("overwrite_existing", "yes"),)),
        ("/@pgkeep/?tablespace_map=1:/a%2C2:/b%26c", None, (("tablespace_map", "1:/a,2:/b&c"),)),
        (encoded({"target_lsn": "0/1"}), None, (("target_lsn", "0/1"),)),
        ("/" + encoded({"jobs": 4, "overwrite_existing": True}), None, (("jobs", "4"), ("overwrite_existing", "yes"))),
        (encoded({"target_database": ["a", "b"], "x": None}) + "/", None, (("target_database", "a,b"),)),
    ],
)
def test_where_is_a_place_or_options(
    where: str | None, place: Path | None, options: tuple[tuple[str, str], ...]
) -> None:
    """Every form gives its place and its options, and is taken off the names again."""
    found = parse_where(where)
    assert (found.place, found.options) == (place, options)
    name = "/@postgresql/pitr/wal/000000010000000000000001"
    before = "" if where in (None, "/") else where
    assert found.strip(f"{before}{name}") == name
    assert found.strip(f"{before}/{name}".replace("//", "/") if before else name) == name


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("srv/out", "where must be an absolute directory"),
        ("/@pgkeep/a b", "must be followed by the name of a profile"),
        ("/@pgkeep/../../etc/passwd", "must be followed by the name of a profile"),
        ("/@pgkeep/?", "holds no options"),
        ("/@pgkeep/?a=%ff", "not UTF-8"),
        ("/@pgkeep/?where=srv", "where must be an absolute directory"),
        ("#***", "must be followed by the base64 of a JSON object"),
        (encoded([1]), "must hold a JSON object"),
        (encoded({"a": {"b": 1}}), "a in where=# must be a text"),
    ],
)
def test_where_is_refused(where: str, message: str) -> None:
    """What is neither a place nor options is refused."""
    with pytest.raises(UsageError) as caught:
        parse_where(where)
    assert message in caught.value.message


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name.lower() not in ("where", "output_dir")), st.text()))
def test_base64_brings_every_option(options: dict[str, str]) -> None:
    """Whatever a console puts into the object arrives."""
    assert dict(parse_where(encoded(options)).options) == options


@given(st.text())
def test_any_where_is_understood_or_refused(text: str) -> None:
    """No text breaks the parser."""
    with contextlib.suppress(UsageError):
        parse_where(text)


def test_the_menu_is_read_as_the_console_writes_it() -> None:
    """Comments and empty values are left out; quotes and backslashes are taken off."""
    text = (
        '# Plugin configuration file\n# Version 1\n# Where to restore\ntarget="/new \\"target\\" d\\\\ir"\n\n'
        '# count\ncnt=42\n\nflag=yes\n\nempty=""\n'
    )
    assert parse_options_text(text) == [("target", '/new "target" d\\ir'), ("cnt", "42"), ("flag", "yes")]


@pytest.mark.parametrize(
    "text", ["novalue\n", 'a="open\n', 'a="b"c\n', 'a=b"c"\n', "a b=c\n", "=c\n", 'a="b\\"\n'], ids=repr
)
def test_the_menu_is_read_strictly(text: str) -> None:
    """A line that the console would not write is refused."""
    with pytest.raises(UsageError):
        parse_options_text(text)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]*", fullmatch=True), st.text().filter(lambda t: "\n" not in t)
    )
)
def test_what_the_menu_quotes_comes_back(options: dict[str, str]) -> None:
    """Reading undoes the console's quoting."""
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in options.items()}
    text = "".join(f'{name}="{value}"\n' for name, value in quoted.items())
    assert dict(parse_options_text(text)) == {name: value for name, value in options.items() if value}
