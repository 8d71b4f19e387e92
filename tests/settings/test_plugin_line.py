"""The Plugin line: Bacula's quoting, round trip, damage, masking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import SettingsError
from pgkeep.settings import PluginLine, masked, parse_plugin_line, render_for_director, render_plugin_line

READ = [
    ("pgkeep:", ()),
    ("pgkeep:   ", ()),
    ("pgkeep: mode=pitr", (("mode", "pitr"),)),
    ("pgkeep:mode=pitr", (("mode", "pitr"),)),
    ("pgkeep: mode=pitr\thost=/run", (("mode", "pitr"), ("host", "/run"))),
    ("pgkeep: start_fast port=5433", (("start_fast", None), ("port", "5433"))),
    ('pgkeep: database="a b,c"', (("database", "a b,c"),)),
    ('pgkeep: "database=a b"', (("database", "a b"),)),
    ('pgkeep: database=a" "b', (("database", "a b"),)),
    (r"pgkeep: database=a\ b", (("database", "a b"),)),
    (r'pgkeep: database="we/ird \"näme\""', (("database", 'we/ird "näme"'),)),
    (r"pgkeep: database=a\\b", (("database", "a\\b"),)),
    ("pgkeep: host=", (("host", ""),)),
    ('pgkeep: host=""', (("host", ""),)),
    ("pgkeep: dump_options=--schema=a", (("dump_options", "--schema=a"),)),
    ("pgkeep: target_time=12:30:00", (("target_time", "12:30:00"),)),
    ("pgkeep: role=a\u00a0b", (("role", "a\u00a0b"),)),
]

DAMAGED = [
    ("", "Plugin line must begin with the plugin's name and a colon"),
    (": mode=pitr", "Plugin line must begin with the plugin's name and a colon"),
    ("mode=pitr host=x", "Plugin line must begin with the plugin's name and a colon"),
    ('pgkeep: database="a b', "Plugin line has a double quote at column 18 that is never closed"),
    ("pgkeep: database=a\\", "Plugin line ends with a backslash that has nothing to quote"),
    ("pgkeep: =x", "Plugin line must hold name=value words, found another at column 9"),
    ('pgkeep: mode=pitr ""', "Plugin line must hold name=value words, found another at column 19"),
    ("pgkeep: password=my secret!", "Plugin line must hold name=value words, found another at column 21"),
]


@pytest.mark.parametrize(("line", "words"), READ)
def test_line_is_read_as_bacula_reads_it(line: str, words: tuple[tuple[str, str | None], ...]) -> None:
    """Quotes toggle anywhere, a backslash takes the next character, the first equals sign divides."""
    assert parse_plugin_line(line) == PluginLine("pgkeep", words)


@pytest.mark.parametrize(("line", "message"), DAMAGED)
def test_damaged_line_is_refused(line: str, message: str) -> None:
    """A malformed line is refused with the place, and no part of a password in the message."""
    with pytest.raises(SettingsError) as caught:
        parse_plugin_line(line)
    assert str(caught.value) == message
    assert "secret" not in message


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,20}", fullmatch=True)
LINES = st.builds(
    PluginLine,
    plugin=st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    words=st.lists(st.tuples(NAMES, st.none() | st.text(max_size=30)), max_size=8).map(tuple),
)


@given(LINES)
def test_line_survives_the_round_trip(line: PluginLine) -> None:
    """What is rendered is read back, whatever is in the values."""
    assert parse_plugin_line(render_plugin_line(line)) == line


@given(st.text(max_size=80) | st.text('pg: ="\\a b\t', max_size=40).map("pgkeep:".__add__))
def test_any_text_is_a_line_or_refused(text: str) -> None:
    """Any text becomes a line that can be rendered, or a SettingsError."""
    try:
        line = parse_plugin_line(text)
    except SettingsError:
        masked(text)
        return
    assert parse_plugin_line(render_plugin_line(line)) == line


def test_line_in_a_fileset_is_quoted_once_more() -> None:
    """The Director takes one layer of quoting off."""
    line = PluginLine("pgkeep", (("mode", "dump"), ("database", 'a "b\\c')))
    assert render_for_director(line) == r'Plugin = "pgkeep: mode=dump database=\"a \\\"b\\\\c\""'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pgkeep: user=u password=hunter2 port=1", "pgkeep: user=u password=*** port=1"),
        ('pgkeep: db_password="hunter2 x" port=1', "pgkeep: db_password=*** port=1"),
        ("pgkeep: PASSWORD=hunter2", "pgkeep: PASSWORD=***"),
        ('pgkeep: "password=hunter2 x"', "pgkeep: password=***"),
        ('pgkeep: primary_conninfo="host=a password=hunter2"', "pgkeep: primary_conninfo=***"),
        ('pgkeep: password="hunter2 open', "pgkeep: password=***"),
        (r"pgkeep: password=a\ hunter2 x\\", "pgkeep: password=*** x\\\\"),
        ("pgkeep: password=", 'pgkeep: password=""'),
    ],
)
def test_secrets_are_masked(line: str, expected: str) -> None:
    """No spelling of a line brings a secret into a log, malformed lines included."""
    shown = masked(line)
    assert "hunter2" not in shown
    assert "hunter2" not in repr(parse_or_none(line))
    if parse_or_none(line) is not None:
        assert shown == expected


def parse_or_none(line: str) -> PluginLine | None:
    """Return *line* taken apart; None when it is malformed."""
    try:
        return parse_plugin_line(line)
    except SettingsError:
        return None
