"""
tar: headers that every tar reads, and a reader that is fed.

Written is the GNU form of ustar: names and link targets above 100 bytes travel in ``L`` and ``K`` members before the
header, sizes above 8 GiB are base-256. Read are ustar with prefixes (which PostgreSQL sends), the GNU form, and the
``path``, ``linkpath`` and ``size`` of pax headers.

Source: POSIX.1-1988 ustar; GNU tar manual, "Basic Tar Format"; PostgreSQL ``src/port/tar.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pgkeep.errors import FormatError
from pgkeep.streams.item import Buffer, ItemKind

BLOCK_BYTES = 512
END_OF_ARCHIVE = bytes(2 * BLOCK_BYTES)
MAX_OCTAL_SIZE = 0o77777777777

# name, mode, uid, gid, size, mtime, checksum, type, link, magic and version, user, group, devices, prefix, filler
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_GNU_MAGIC = b"ustar  \0"
_LONG_NAME = b"././@LongLink"
_NAME_BYTES = 100
_TYPES = {ItemKind.FILE: b"0", ItemKind.DIRECTORY: b"5", ItemKind.SYMLINK: b"2"}
_KINDS = {b"0": ItemKind.FILE, b"\0": ItemKind.FILE, b"5": ItemKind.DIRECTORY, b"2": ItemKind.SYMLINK}
_MAX_EXTENSION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TarMember:
    """
    What a header says.

    Attributes:
        name: Path, ``/`` between components; directories without the slash at their end.
        kind: File, directory or symbolic link.
        size: Bytes of content that follow.
        mtime: Seconds since the epoch.
        file_mode: Permission bits.
        owner: Name of the owning user; may be empty.
        group: Name of the owning group; may be empty.
        link: Target of a symbolic link; empty otherwise.
        uid: Number of the owning user.
        gid: Number of the owning group.
    """

    name: str
    kind: ItemKind = ItemKind.FILE
    size: int = 0
    mtime: int = 0
    file_mode: int = 0o600
    owner: str = ""
    group: str = ""
    link: str = ""
    uid: int = 0
    gid: int = 0


def padding_of(size: int) -> int:
    """Return how many zeros follow *size* bytes of content."""
    return -size % BLOCK_BYTES


def render_member(member: TarMember) -> bytes:
    """
    Return the header blocks of *member*: 512 bytes, or more when a name is long.

    The length depends on the names only, so the header of a stream can be replaced once its size is known.
    """
    name = _encode(member.name + "/" if member.kind is ItemKind.DIRECTORY else member.name)
    link = _encode(member.link)
    blocks = b""
    if len(link) > _NAME_BYTES:
        blocks += _render_extension(b"K", link)
    if len(name) > _NAME_BYTES:
        blocks += _render_extension(b"L", name)
    return blocks + _render_block(
        name[:_NAME_BYTES],
        _TYPES[member.kind],
        size=member.size,
        link=link[:_NAME_BYTES],
        mtime=max(member.mtime, 0),
        file_mode=member.file_mode & 0o7777,
        owner=_encode(member.owner)[:31],
        group=_encode(member.group)[:31],
        uid=member.uid,
        gid=member.gid,
    )


def _render_extension(kind: bytes, text: bytes) -> bytes:
    content = text + b"\0"
    return _render_block(_LONG_NAME, kind, size=len(content)) + content + bytes(padding_of(len(content)))


def _render_block(
    name: bytes,
    kind: bytes,
    *,
    size: int,
    link: bytes = b"",
    mtime: int = 0,
    file_mode: int = 0o644,
    owner: bytes = b"",
    group: bytes = b"",
    uid: int = 0,
    gid: int = 0,
) -> bytes:
    block = bytearray(
        _HEADER.pack(
            name,
            b"%07o\0" % file_mode,
            _number(uid, 8),
            _number(gid, 8),
            _number(size, 12),
            _number(mtime, 12),
            b" " * 8,
            kind,
            link,
            _GNU_MAGIC,
            owner,
            group,
            b"",
            b"",
            b"",
        )
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(value: int, width: int) -> bytes:
    digits = b"%0*o\0" % (width - 1, value)
    if len(digits) == width:
        return digits
    return b"\x80" + value.to_bytes(width - 1, "big")


def _encode(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise FormatError(f"a tar archive cannot hold a name with a zero byte: {text!r}")
    return encoded


class UstarReader:
    """
    Take a tar archive apart while it arrives.

    ``feed`` yields a ``TarMember`` for each header, followed by its content as memoryviews of what was fed, whose
    lengths add up to its size; each view is valid until the next ``feed``. Blocks of zeros between members are passed
    over, as ``tar -i`` does: what PostgreSQL sends does not always end in them.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._left = 0
        self._padding = 0
        self._held_back = 0
        self._extension = b""
        self._content = bytearray()
        self._name: str | None = None
        self._link: str | None = None
        self._size: int | None = None

    def feed(self, data: Buffer) -> Iterator[TarMember | memoryview]:
        """Yield what *data* completes; consume the iterator before feeding again."""
        view = memoryview(data).cast("B")
        while len(view):
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                if self._extension:
                    self._content += piece
                    if not self._left:
                        self._end_extension()
                else:
                    yield piece
            elif self._padding:
                skipped = min(self._padding, len(view))
                self._padding -= skipped
                view = view[skipped:]
            else:
                taken = BLOCK_BYTES - len(self._rest)
                self._rest += view[:taken]
                view = view[taken:]
                if len(self._rest) == BLOCK_BYTES:
                    block, self._rest = bytes(self._rest), bytearray()
                    if (member := self._take_header(block)) is not None:
                        self._held_back = len(view)
                        yield member
                        self._held_back = 0

    @property
    def content_left(self) -> int:
        """Bytes of content of the member at hand that have not been fed; 0 while fed ones wait to be yielded."""
        return 0 if self._held_back or self._extension else self._left

    def take_content(self, length: int) -> bool:
        """
        Tell whether the next *length* bytes are all content of the member at hand, and count them as read if so.

        A shortcut past ``feed`` for a source whose messages are mostly content.
        """
        if length > self._left or self._extension:
            return False
        self._left -= length
        return True

    def finish(self) -> None:
        """Say that the archive is over; raise FormatError when it ends within a member."""
        if self._left or self._rest or self._padding or self._extension:
            raise FormatError(
                f"the tar archive is truncated: {self._left or self._padding or BLOCK_BYTES} bytes missing"
            )

    def _take_header(self, block: bytes) -> TarMember | None:
        if not block.strip(b"\0"):
            return None
        member, kind = _parse_block(block)
        if kind in b"LKxg":
            if not 0 < member.size <= _MAX_EXTENSION_BYTES:
                raise FormatError(f"tar header of type {kind.decode()} announces {member.size} bytes")
            self._extension = kind
            self._left, self._padding = member.size, padding_of(member.size)
            return None
        if kind not in _KINDS:
            raise FormatError(f"tar member {member.name} has the type {kind!r}, which no backup has")
        member = replace(
            member,
            name=(member.name if self._name is None else self._name).rstrip("/") or "/",
            link=member.link if self._link is None else self._link,
            size=member.size if self._size is None else self._size,
        )
        self._name = self._link = self._size = None
        if member.kind is not ItemKind.FILE and member.size:
            raise FormatError(f"tar member {member.name} is a {member.kind.value} with {member.size} bytes of content")
        self._left, self._padding = member.size, padding_of(member.size)
        return member

    def _end_extension(self) -> None:
        kind, content = self._extension, bytes(self._content)
        self._extension = b""
        self._content.clear()
        if kind == b"L":
            self._name = _decode(content)
        elif kind == b"K":
            self._link = _decode(content)
        elif kind == b"x":
            self._take_pax(content)

    def _take_pax(self, content: bytes) -> None:
        for key, value in _pax_records(content):
            if key == b"path":
                self._name = _decode(value)
            elif key == b"linkpath":
                self._link = _decode(value)
            elif key == b"size":
                if not value.isdigit():
                    raise FormatError(f"pax header announces a size of {value!r}")
                self._size = int(value)


def _parse_block(block: bytes) -> tuple[TarMember, bytes]:
    fields = _HEADER.unpack(block)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, owner, group, _major, _minor, prefix = fields
    actual = sum(block) - sum(checksum) + 8 * ord(" ")
    if _parse_number(checksum, "checksum") != actual:
        raise FormatError(
            f"not a tar header: its checksum says {_decode(checksum).strip()}, its bytes give {actual:06o}"
        )
    full_name = _decode(name)
    # Only POSIX ustar has a prefix; GNU keeps times in those bytes.
    if magic[:6] == b"ustar\0" and prefix[0]:
        full_name = f"{_decode(prefix)}/{full_name}"
    member = TarMember(
        name=full_name,
        kind=_KINDS.get(kind, ItemKind.FILE),
        size=_parse_number(size, "size"),
        mtime=_parse_number(mtime, "time"),
        file_mode=_parse_number(mode, "mode") & 0o7777,
        owner=_decode(owner),
        group=_decode(group),
        link=_decode(link) if kind == b"2" else "",
        uid=_parse_number(uid, "uid"),
        gid=_parse_number(gid, "gid"),
    )
    return member, kind


def _parse_number(field: bytes, what: str) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise FormatError(f"not a tar header: its {what} is {field!r}")
    return int(digits, 8) if digits else 0


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    while content:
        length, blank, _rest = content.partition(b" ")
        if not blank or not length.isdigit() or not len(length) < int(length) <= len(content):
            raise FormatError("a pax header is damaged")
        key, equals, value = content[len(length) + 1 : int(length)].partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise FormatError("a pax header is damaged")
        yield key, value[:-1]
        content = content[int(length) :]


def _decode(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
