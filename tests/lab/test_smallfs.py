"""A file system that fills up."""

from __future__ import annotations

import errno
import os

import pytest

from tests.lab.smallfs import small_filesystem


def test_fills_up_and_has_room_again() -> None:
    """Writing more than its size ends with ENOSPC; what was freed can be used again; it goes away at the end."""
    with small_filesystem(4) as path:
        assert os.statvfs(path).f_blocks * os.statvfs(path).f_frsize == 4 << 20
        with pytest.raises(OSError, match="No space left on device") as error, (path / "big").open("wb") as file:
            file.write(b"x" * (5 << 20))
        assert error.value.errno == errno.ENOSPC
        (path / "big").unlink()
        (path / "small").write_bytes(b"x" * (1 << 20))
        assert (path / "small").stat().st_size == 1 << 20
    assert not path.exists()
