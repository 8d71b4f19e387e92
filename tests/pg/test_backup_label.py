from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg.backup_label import BackupLabel, parse_backup_label, without_incremental_lines
from pgkeep.pg.lsn import Lsn, Timeline

FULL = """\
START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-20 20:48:00 UTC
LABEL: pgkeep
START TIMELINE: 1
"""
INCREMENTAL = FULL + "INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n"
HISTORY_FILE = """\
START WAL LOCATION: 0/2000028 (file 000000010000000000000002)
STOP WAL LOCATION: 0/2000100 (file 000000010000000000000002)
CHECKPOINT LOCATION: 0/2000060
BACKUP METHOD: streamed
BACKUP FROM: standby
START TIME: 2026-11-20 20:48:00 UTC
LABEL: pgkeep
START TIMELINE: 1
STOP TIME: 2026-11-20 20:49:00 UTC
STOP TIMELINE: 1
"""

lsns = st.integers(0, 2**64 - 1).map(Lsn)
words = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))


@st.composite
def labels(draw: st.DrawFn) -> BackupLabel:
    """Draw a label, or what a backup history file says."""
    timeline = Timeline(draw(st.integers(1, 2**32 - 1)))
    is_history, is_incremental = draw(st.booleans()), draw(st.booleans())
    return BackupLabel(
        start_lsn=draw(lsns),
        start_wal_file=f"{timeline.hex}{draw(st.integers(0, 2**64 - 1)):016X}",
        checkpoint_lsn=draw(lsns),
        backup_method=draw(words),
        backup_from=draw(st.sampled_from(["primary", "master", "standby"])),
        start_time=draw(words),
        label=draw(st.text(st.characters(exclude_categories=["Cs"]))),
        start_timeline=timeline,
        incremental_from_lsn=draw(lsns) if is_incremental else None,
        incremental_from_timeline=Timeline(7) if is_incremental else None,
        stop_lsn=draw(lsns) if is_history else None,
        stop_wal_file=f"{timeline.hex}0000000000000000" if is_history else "",
        stop_time="2026-11-20 20:49:00 UTC" if is_history else "",
        stop_timeline=timeline if is_history else None,
    )


@given(labels())
def test_what_is_rendered_is_parsed_back(label: BackupLabel) -> None:
    """A label survives its text, whatever the user called the backup."""
    assert parse_backup_label(label.render()) == label


@pytest.mark.parametrize("text", [FULL, INCREMENTAL, HISTORY_FILE], ids=["full", "incremental", "history file"])
def test_a_servers_label_is_rendered_byte_for_byte(text: str) -> None:
    """What the server wrote is what a label parsed from it renders."""
    assert parse_backup_label(text).render() == text


def test_the_label_tells_what_a_restore_must_know() -> None:
    """Start, checkpoint, timeline and origin are found."""
    label = parse_backup_label(HISTORY_FILE)
    assert (label.start_lsn, label.checkpoint_lsn) == (Lsn.parse("0/2000028"), Lsn.parse("0/2000060"))
    assert (label.start_timeline, label.start_wal_file) == (1, "000000010000000000000002")
    assert label.is_from_standby
    assert not label.is_incremental
    assert label.stop_lsn == Lsn.parse("0/2000100")


def test_a_name_that_looks_like_the_servers_lines_is_only_a_name() -> None:
    """A backup called like lines of the label does not change what the label says."""
    name = "x\nSTART TIMELINE: 7\nLABEL: y\nINCREMENTAL FROM LSN: 0/1\nINCREMENTAL FROM TLI: 9"
    label = parse_backup_label(FULL.replace("LABEL: pgkeep", f"LABEL: {name}"))
    assert label.label == name
    assert (label.start_timeline, label.is_incremental) == (1, False)


def test_a_combined_backup_is_no_incremental_one() -> None:
    """Taking out the incremental lines leaves the label of a full backup, and a full one's label as it is."""
    assert without_incremental_lines(INCREMENTAL) == FULL
    assert without_incremental_lines(FULL) == FULL


@given(st.text())
def test_any_text_is_a_label_or_a_format_error(text: str) -> None:
    """No text makes the parser fail in another way."""
    for candidate in (text, FULL + text, text + FULL, f"{text}\nLABEL: x\n{text}\n"):
        with contextlib.suppress(FormatError):
            parse_backup_label(candidate)


DAMAGE = [
    ("empty", "", "backup label does not end with a line end"),
    ("cut off", FULL[:-1], "backup label does not end with a line end"),
    ("cut off at a line", FULL.replace("START TIMELINE: 1\n", ""), "backup label has no line START TIMELINE"),
    ("no label", FULL.replace("LABEL: pgkeep\n", ""), "backup label has no line LABEL"),
    (
        "no start",
        FULL.partition("\n")[2],
        "backup label has no line START WAL LOCATION",
    ),
    (
        "no checkpoint",
        FULL.replace("CHECKPOINT LOCATION: 0/2000060\n", ""),
        "backup label has no line CHECKPOINT LOCATION",
    ),
    (
        "garbled start",
        FULL.replace("0/2000028 (file", "0/2000028 (fill"),
        'backup label has no LSN and WAL file in START WAL LOCATION: found "0/2000028 (fill 000000010000000000000002)"',
    ),
    (
        "garbled checkpoint",
        FULL.replace("0/2000060", "0-2000060"),
        'backup label has no LSN in CHECKPOINT LOCATION: found "0-2000060"',
    ),
    (
        "garbled timeline",
        FULL.replace("TIMELINE: 1", "TIMELINE: one"),
        'backup label has no timeline in START TIMELINE: found "one"',
    ),
    (
        "another timeline's WAL file",
        FULL.replace("TIMELINE: 1", "TIMELINE: 2"),
        "backup label starts on timeline 2, but with the WAL file 000000010000000000000002",
    ),
    (
        "half incremental",
        FULL + "INCREMENTAL FROM LSN: 0/1000028\n",
        "backup label has one of INCREMENTAL FROM LSN and INCREMENTAL FROM TLI, expected both",
    ),
    ("a line too many", "HELLO: x\n" + FULL, 'backup label has the unexpected line "HELLO: x"'),
]


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_a_damaged_label_is_refused(text: str, message: str) -> None:
    """Each way to spoil a label has its own message."""
    parse_backup_label(FULL)
    with pytest.raises(FormatError) as caught:
        parse_backup_label(text)
    assert str(caught.value) == message
