"""Records as lines: round trip, any cut, any missing end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.streams.record import FileEntry, Level, RecordHead, RecordTail, StoredAt, WalRange
from pgkeep.streams.record_io import RecordReader, RecordWriter, parse_head

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
STORED = st.builds(
    StoredAt,
    backup_id=TEXT,
    volume=st.integers(0, 99),
    offset=st.integers(0, 2**60),
    header_length=st.integers(0, 9999),
    frames=st.lists(st.integers(0, 2**23), max_size=4),
    padding_length=st.integers(0, 20),
    stored_digest=TEXT,
)
ENTRIES = st.builds(
    FileEntry,
    path=TEXT,
    kind=st.sampled_from(["file", "directory", "symlink"]),
    size=st.integers(0, 2**60),
    mtime_ns=st.integers(-(2**62), 2**62),
    digest=TEXT,
    link=TEXT,
    at=st.none() | STORED,
)
HEADS = st.builds(
    RecordHead,
    backup_id=TEXT,
    cluster=TEXT,
    mode=TEXT,
    level=st.sampled_from(Level),
    backup_label=TEXT,
    settings=st.dictionaries(TEXT, TEXT, max_size=3),
    wal=st.none() | st.builds(WalRange, timeline=st.integers(1, 9), start=TEXT, stop=TEXT, segment_size=st.just(1)),
)


def rendered(head: RecordHead, entries: list[FileEntry]) -> bytes:
    """Return a whole record."""
    pieces: list[bytes] = []
    writer = RecordWriter(pieces.append, head)
    for entry in entries:
        writer.add(entry)
    writer.finish(RecordTail(files=len(entries)))
    return b"".join(pieces)


def cut(content: bytes, size: int) -> Iterator[bytes]:
    """Yield *content* in pieces of *size* bytes."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


@given(head=HEADS, entries=st.lists(ENTRIES, max_size=5), size=st.integers(1, 200))
def test_what_is_written_is_read_however_it_is_cut(head: RecordHead, entries: list[FileEntry], size: int) -> None:
    """Reading gives back head, files and tail, and any JSON parser reads the document as a whole."""
    content = rendered(head, entries)
    reader = RecordReader(cut(content, size), name="record")
    assert reader.head == head
    assert list(reader.files()) == entries
    assert reader.tail == RecordTail(files=len(entries))
    document = json.loads(content)
    assert [entry["path"] for entry in document["files"]] == [entry.path for entry in entries]
    assert parse_head(content) == head


HEAD = RecordHead(backup_id="20261120T204800Z-F", cluster="main", mode="pitr", level=Level.FULL)
TWO = [FileEntry(path="a", size=1), FileEntry(path="b", size=2)]


def test_a_record_cut_anywhere_is_refused() -> None:
    """No prefix of a record passes for a record."""
    content = rendered(HEAD, TWO)
    for length in range(len(content) - 1):
        with pytest.raises(FormatError):
            list(RecordReader([content[:length]], name="record").files())


def test_unknown_fields_are_passed_over() -> None:
    """A later version may add fields."""
    content = rendered(HEAD, TWO).replace(b'{"path":"a"', b'{"colour":"red","path":"a"')
    assert list(RecordReader([content], name="record").files()) == TWO


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("miscounted", b'"files":2', b'"files":3', "record is damaged: its tail counts 3 files, its list has 2"),
        ("later format", b'"format":1', b'"format":2', "record: the record has format 2, this version reads 1"),
        ("no head", b'{"head"', b'{"haed"', "record: not a record: it does not begin with a head"),
        ("no list", b'"files": [', b'"fules": [', "record is truncated or damaged: no file list follows its head"),
        ("no tail", b'"tail"', b'"tial"', "record is truncated: it has no tail"),
        ("more after the tail", b"}}\n", b"}}\n{}", "record is damaged: something follows its tail"),
        (
            "not an entry",
            b'{"path":"b"',
            b'{"path":7',
            "record: a line of the record's file list is not a file entry: Expected `str`, got `int` - at `$.path`",
        ),
    ],
)
def test_damage_is_named(name: str, old: bytes, new: bytes, message: str) -> None:
    """Each way to damage a record has its message; undamaged it passes."""
    content = rendered(HEAD, TWO)
    assert list(RecordReader([content], name="record").files()) == TWO
    assert content.count(old) == 1
    with pytest.raises(FormatError) as caught:
        list(RecordReader([content.replace(old, new)], name="record").files())
    assert str(caught.value) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_record_or_a_format_error(content: bytes) -> None:
    """Garbage is refused by the format's own error."""
    with pytest.raises(FormatError):
        list(RecordReader([content], name="record").files())


def test_a_name_that_is_not_utf8_is_refused() -> None:
    """JSON cannot carry it, so the backup ends with a message and not with a wrong name."""
    with pytest.raises(FormatError, match="a name in the record is not UTF-8"):
        rendered(HEAD, [FileEntry(path="a\udcff")])
