"""Values: text to type and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.settings import BY_NAME, PARAMETERS, Kind, Parameter, parse_value, render_value
from pgkeep.settings.values import Unacceptable

READ = [
    ("start_fast", "yes", True),
    ("start_fast", "On", True),
    ("start_fast", "TRUE", True),
    ("start_fast", "1", True),
    ("start_fast", "no", False),
    ("start_fast", "off", False),
    ("start_fast", "false", False),
    ("start_fast", " 0 ", False),
    ("port", "5433", 5433),
    ("port", "+5433", 5433),
    ("large_table_threshold", "0", 0),
    ("large_table_threshold", "10G", 10 << 30),
    ("large_table_threshold", "500m", 500 << 20),
    ("large_table_threshold", "64 kB", 64 << 10),
    ("large_table_threshold", "3GiB", 3 << 30),
    ("large_table_threshold", "1.5T", 3 << 39),
    ("large_table_threshold", "123", 123),
    ("restore_timeout", "90", 90),
    ("restore_timeout", "30s", 30),
    ("restore_timeout", "5min", 300),
    ("restore_timeout", "5 minutes", 300),
    ("restore_timeout", "2H", 7200),
    ("restore_timeout", "1h 30min", 5400),
    ("restore_timeout", "7d", 604800),
    ("restore_timeout", "1 week", 604800),
    ("restore_timeout", "10secs", 10),
    ("retention_window", "30", 30 * 86400),
    ("retention_window", "12h", 12 * 3600),
    ("cdp_window_seconds", "300", 300),
    ("mode", "PITR", "pitr"),
    ("dump_format", "c", "custom"),
    ("recreate_subscriptions", "yes", "stage"),
    ("recreate_subscriptions", "0", "no"),
    ("recreate_subscriptions", "run", "run"),
    ("host", "", None),
    ("role", "  ", None),
    ("archive_dir", "auto", "auto"),
    ("archive_dir", "/srv/wal archive", "/srv/wal archive"),
    ("sslrootcert", "system", "system"),
    ("database", "a, b ,c d", ("a", "b", "c d")),
    ("database", r"a\,b,c\\d,e\f", ("a,b", r"c\d", r"e\f")),
    ("database", r"\ a\ ", (" a ",)),
    ("database", 'we/ird "näme"', ('we/ird "näme"',)),
    ("exclude_database", "", ()),
    ("dump_options", "--schema='a b' -x", ("--schema=a b", "-x")),
    ("tablespace_map", "16405:/new, slow:/a b", (("16405", "/new"), ("slow", "/a b"))),
    ("tablespace_map", "16405:/a:b", (("16405", "/a:b"),)),
    ("target_time", "2026-04-23T14:30:00Z", "2026-04-23T14:30:00Z"),
    ("target_timeline", "latest", "latest"),
    ("target_timeline", "3", "3"),
    ("target_lsn", "2/4000028", "2/4000028"),
    ("target_xid", "4294967295", 4294967295),
    ("local_timezone", "UTC", "UTC"),
    ("backup_id", "20261120T204800Z-F", "20261120T204800Z-F"),
    ("password", ' a"b\\ ', ' a"b\\ '),
]

REFUSED = [
    ("start_fast", "maybe", "yes or no"),
    ("start_fast", "", "yes or no"),
    ("start_fast", "2", "yes or no"),
    ("port", "0", "from 1 to 65535"),
    ("port", "65536", "from 1 to 65535"),
    ("port", "54_32", "a whole number from 1 to 65535"),
    ("port", "٥٤٣٢", "a whole number from 1 to 65535"),
    ("port", "9" * 5000, "a whole number from 1 to 65535"),
    ("port", "", "a whole number from 1 to 65535"),
    ("parallel_jobs", "65", "from 1 to 64"),
    ("connection_timeout", "601", "from 1s to 10min"),
    ("connection_timeout", "1h", "from 1s to 10min"),
    ("cdp_window_seconds", "9", "from 10s to 1d"),
    ("restore_timeout", "5m", "a duration such as 30s, 5min, 2h or 7d"),
    ("restore_timeout", "30 5s", "a duration such as 30s, 5min, 2h or 7d"),
    ("restore_timeout", "-5s", "a duration such as 30s, 5min, 2h or 7d"),
    ("restore_timeout", "1.5h", "a duration such as 30s, 5min, 2h or 7d"),
    ("large_table_threshold", "ten", "a size such as 512k, 500M or 10G"),
    ("large_table_threshold", "-1", "a size such as 512k, 500M or 10G"),
    ("large_table_threshold", "9999P", "from 0 to 1024P"),
    ("mode", "", "one of dump, parallel_dump, pitr, pitr_block, cdp"),
    ("mode", "full", "one of dump, parallel_dump, pitr, pitr_block, cdp"),
    ("tmpdir", "var/tmp", "an absolute path"),
    ("archive_dir", "none", "an absolute path or auto"),
    ("database", "", "at least one name"),
    ("database", "a,,b", "a list without empty elements"),
    ("database", "a,", "a list without empty elements"),
    ("dump_options", "--schema='a", "words with closed quotes"),
    ("tablespace_map", "/new", "a list such as 16405:/srv/fast,slow:/srv/slow that names each tablespace once"),
    ("tablespace_map", "1:new", "a list such as 16405:/srv/fast,slow:/srv/slow that names each tablespace once"),
    ("tablespace_map", "1:/a,1:/b", "a list such as 16405:/srv/fast,slow:/srv/slow that names each tablespace once"),
    ("slot_name", "Slot", "1 to 63 lower-case letters, digits or underscores"),
    ("target_lsn", "2-4000028", "an LSN such as 2/04000028"),
    ("target_timeline", "newest", "latest, current or the number of a timeline"),
    ("target_xid", "2", "from 3 to 4294967295"),
    ("target_name", "é" * 32, "at most 63 bytes"),
    ("local_timezone", "Mars/Olympus", "the name of a time zone such as America/Sao_Paulo"),
    ("local_timezone", "../../etc/passwd", "the name of a time zone such as America/Sao_Paulo"),
    ("backup_id", "latest", "a backup id such as 20261120T204800Z-F"),
    ("cluster_id", "../x", BY_NAME["cluster_id"].pattern_text),
    ("cluster_id", "..", BY_NAME["cluster_id"].pattern_text),
    ("pitr_label", "a\nb", "one line without control characters"),
    ("host", "db\0", "one line without control characters"),
]


@pytest.mark.parametrize(("name", "text", "value"), READ)
def test_text_is_read(name: str, text: str, value: Any) -> None:
    """Each kind takes the spellings that the manual lists."""
    assert parse_value(BY_NAME[name], text) == value


@pytest.mark.parametrize(("name", "text", "expected"), REFUSED)
def test_text_is_refused(name: str, text: str, expected: str) -> None:
    """What is not acceptable is refused with what would be."""
    with pytest.raises(Unacceptable) as caught:
        parse_value(BY_NAME[name], text)
    assert str(caught.value) == expected


@given(st.sampled_from(PARAMETERS), st.text(max_size=60))
def test_any_text_is_read_or_refused(parameter: Parameter, text: str) -> None:
    """Any text is a value or Unacceptable, and a value written down is read back."""
    try:
        value = parse_value(parameter, text)
    except Unacceptable:
        return
    assert parse_value(parameter, render_value(parameter, value)) == value


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
NAMES = st.lists(
    st.text(st.characters(max_codepoint=126, exclude_categories=["Cc"]), min_size=1, max_size=30),
    min_size=1,
    max_size=5,
).map(tuple)
WORDS = st.lists(LINE, max_size=5).map(tuple)


@given(NAMES)
def test_lists_survive_the_round_trip(names: tuple[str, ...]) -> None:
    """Names with commas, blanks and backslashes come back."""
    parameter = BY_NAME["database"]
    assert parse_value(parameter, render_value(parameter, names)) == names


@given(WORDS)
def test_words_survive_the_round_trip(words: tuple[str, ...]) -> None:
    """Options with blanks and quotes come back."""
    parameter = BY_NAME["dump_options"]
    assert parse_value(parameter, render_value(parameter, words)) == words


@given(st.sampled_from([p for p in PARAMETERS if p.kind in (Kind.SIZE, Kind.DURATION, Kind.INTEGER)]), st.data())
def test_numbers_survive_the_round_trip(parameter: Parameter, data: st.DataObject) -> None:
    """Every number in range is written in the largest unit that fits, and comes back."""
    number = data.draw(st.integers(parameter.minimum, parameter.maximum))
    assert parse_value(parameter, render_value(parameter, number)) == number
