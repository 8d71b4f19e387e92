"""tar headers and the reader that is fed: round trip, the standard library as the oracle, damage."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.streams.item import ItemKind
from pgkeep.streams.tar import END_OF_ARCHIVE, TarMember, UstarReader, padding_of, render_member

COMPONENT = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
NAMES = st.lists(COMPONENT, min_size=1, max_size=6).map("/".join)
FILES = st.builds(
    TarMember,
    name=NAMES,
    size=st.integers(0, 2000),
    mtime=st.integers(0, 2**33),
    file_mode=st.integers(0, 0o7777),
    owner=st.sampled_from(["", "postgres"]),
    group=st.sampled_from(["", "postgres"]),
    uid=st.integers(0, 2**31),
    gid=st.integers(0, 2**31),
)
DIRECTORIES = st.builds(TarMember, name=NAMES, kind=st.just(ItemKind.DIRECTORY), file_mode=st.just(0o700))
LINKS = st.builds(TarMember, name=NAMES, kind=st.just(ItemKind.SYMLINK), link=NAMES)


def archive_of(members: list[TarMember]) -> bytes:
    """Return an archive in which each file's content is its index, repeated."""
    pieces = []
    for n, member in enumerate(members):
        pieces += [render_member(member), bytes([n]) * member.size, bytes(padding_of(member.size))]
    return b"".join(pieces) + END_OF_ARCHIVE


def read(content: bytes, size: int = 1 << 20) -> list[tuple[TarMember, bytes]]:
    """Return members and contents, fed in pieces of *size* bytes."""
    reader = UstarReader()
    found: list[tuple[TarMember, bytearray]] = []
    for start in range(0, len(content), size):
        for event in reader.feed(content[start : start + size]):
            if isinstance(event, TarMember):
                found.append((event, bytearray()))
            else:
                found[-1][1].extend(event)
    reader.finish()
    return [(member, bytes(body)) for member, body in found]


@given(members=st.lists(FILES | DIRECTORIES | LINKS, max_size=4), size=st.integers(1, 3000))
def test_what_is_rendered_is_read(members: list[TarMember], size: int) -> None:
    """Reading gives back every member and its content, however the archive is cut."""
    found = read(archive_of(members), size)
    assert [member for member, _ in found] == members
    assert [body for _, body in found] == [bytes([n]) * member.size for n, member in enumerate(members)]


@given(members=st.lists(FILES | DIRECTORIES | LINKS, max_size=3))
def test_the_standard_library_reads_the_same(members: list[TarMember]) -> None:
    """The tarfile module agrees on every field."""
    with tarfile.open(fileobj=io.BytesIO(archive_of(members)), mode="r:") as archive:
        infos = archive.getmembers()
    kinds = [ItemKind.DIRECTORY if i.isdir() else ItemKind.SYMLINK if i.issym() else ItemKind.FILE for i in infos]
    assert [
        TarMember(i.name, k, i.size, int(i.mtime), i.mode, i.uname, i.gname, i.linkname, i.uid, i.gid)
        for i, k in zip(infos, kinds, strict=True)
    ] == members


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [6, 99, 100, 101, 180])
def test_all_common_forms_are_read(form: int, length: int) -> None:
    """Names of any length come through in the ustar, GNU and pax forms."""
    info = tarfile.TarInfo("base/" + "n" * (length - 5))
    info.size = 700
    buffer = io.BytesIO()
    if form == tarfile.USTAR_FORMAT and length > 105:
        info.name = "d" * 90 + "/" + "n" * (length - 91)
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        archive.addfile(info, io.BytesIO(b"x" * 700))
    ((member, body),) = read(buffer.getvalue(), 100)
    assert (member.name, body) == (info.name, b"x" * 700)


def test_content_to_come_is_counted() -> None:
    """What may be taken past the reader is what was not fed; nothing, while some that was fed waits behind a header."""
    member = TarMember("f", size=1000)
    reader = UstarReader()
    assert reader.content_left == 0
    assert list(reader.feed(render_member(member))) == [member]
    assert reader.content_left == 1000
    assert reader.take_content(600)
    assert reader.content_left == 400
    assert [bytes(piece) for piece in reader.feed(bytes(400 + padding_of(1000)))] == [bytes(400)]
    assert reader.content_left == 0
    events = reader.feed(render_member(member) + bytes(10))
    assert next(events) == member
    assert reader.content_left == 0
    assert next(events) == bytes(10)
    assert reader.content_left == 990


def test_a_size_beyond_eight_gibibytes_fits() -> None:
    """The header of a huge file has the same length as that of a small one, and its size is read back."""
    small, huge = TarMember("dump/big.dump", size=1), TarMember("dump/big.dump", size=5 << 40)
    assert len(render_member(small)) == len(render_member(huge))
    (event,) = UstarReader().feed(render_member(huge))
    assert event == huge
    assert tarfile.TarInfo.frombuf(render_member(huge), "utf-8", "strict").size == 5 << 40


GOOD = archive_of([TarMember("PG_VERSION", size=3)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("flipped name", b"Q" + GOOD[1:], "not a tar header: its checksum says 007324, its bytes give 007325"),
        ("cut header", GOOD[:100], "the tar archive is truncated: 512 bytes missing"),
        ("cut content", GOOD[:514], "the tar archive is truncated: 1 bytes missing"),
        ("cut padding", GOOD[:600], "the tar archive is truncated: 424 bytes missing"),
    ],
)
def test_damage_is_named(name: str, content: bytes, message: str) -> None:
    """Each way to damage an archive has its message; undamaged it passes."""
    assert read(GOOD)[0][1] == b"\0\0\0"
    with pytest.raises(FormatError) as caught:
        read(content)
    assert str(caught.value) == message


@given(st.binary(max_size=1500))
def test_any_bytes_are_an_archive_or_a_format_error(content: bytes) -> None:
    """Garbage is refused by the format's own error."""
    with contextlib.suppress(FormatError):
        read(content, 333)
