"""
New data directories without waiting for initdb each time.

initdb runs once for each set of its options, and its result stays in the cache. A new cluster is a copy with a system
identifier of its own, which is in two places only: in ``global/pg_control``, and in the first page of each WAL segment.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgkeep.pg.crc32c import crc32c
from tests.lab.installation import Installation
from tests.lab.server_user import server_user
from tests.lab.servers import cached

_IDENTIFIER_IN_CONTROL = 0
_IDENTIFIER_IN_WAL = 24
"""Offset of ``xlp_sysid`` in ``XLogLongPageHeaderData``, the header of a segment's first page."""

_count = itertools.count()


def copy_new_cluster(
    installation: Installation, data_directory: Path, options: Sequence[str], *, env: Mapping[str, str]
) -> None:
    """Make *data_directory*, which must not exist, as initdb makes it with *options*; none of them names a place."""
    user = server_user()
    key = hashlib.sha256("\0".join([str(installation), user.name, *options]).encode()).hexdigest()[:12]

    def initdb(directory: Path) -> Path:
        user.own(directory)
        data = directory / "data"
        user.run([installation.program("initdb"), f"--pgdata={data}", *options], env=env)
        return data

    original = cached(f"cluster-{installation.major}-{key}", initdb)
    user.run(["cp", "-R", "--preserve=mode", "--reflink=auto", original, data_directory], env=env)
    _identify(data_directory)


def _identify(data_directory: Path) -> None:
    """Give the cluster an identifier, made of the time and this process as initdb does it, and of a count."""
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    number = (seconds << 32) | ((nanoseconds // 1000 + next(_count)) % 10**6 << 12) | (os.getpid() & 0xFFF)
    identifier = struct.pack("<Q", number)
    control_file = data_directory / "global/pg_control"
    control = bytearray(control_file.read_bytes())
    crc_at = _end_of_control(control)
    copied = bytes(control[_IDENTIFIER_IN_CONTROL : _IDENTIFIER_IN_CONTROL + 8])
    control[_IDENTIFIER_IN_CONTROL : _IDENTIFIER_IN_CONTROL + 8] = identifier
    struct.pack_into("<I", control, crc_at, crc32c(control[:crc_at]))
    control_file.write_bytes(control)
    for segment in (path for path in (data_directory / "pg_wal").iterdir() if path.is_file()):
        with segment.open("r+b") as file:
            file.seek(_IDENTIFIER_IN_WAL)
            # A segment that initdb made in advance has no header yet.
            if file.read(8) == copied:
                file.seek(_IDENTIFIER_IN_WAL)
                file.write(identifier)


def _end_of_control(control: bytearray) -> int:
    """Return the offset of the CRC, which ends the struct of pg_control whatever its major."""
    for offset in range(8, 512, 4):
        if struct.unpack_from("<I", control, offset) == (crc32c(control[:offset]),):
            return offset
    raise RuntimeError("pg_control has no valid checksum")
