"""What a restore says when a file system takes no more of it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pgkeep.errors import PgkeepError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def write_errors(what: str, *, again: str = "run the restore again") -> Iterator[None]:
    """
    Turn an OSError of the block into a PgkeepError that says what cannot be done, and how to go on.

    Args:
        what: Follows "cannot".
        again: What the reader does when it is mended.
    """
    try:
        yield
    except OSError as error:
        mend = "make room" if error.errno in _FULL else "mend that"
        raise PgkeepError(f"cannot {what}: {error.strerror or error}", hint=f"{mend} and {again}") from error
