"""A ``pgkeep receive`` whose spool is for Bacula's jobs, and what tells how far it has come."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.lab.cluster import SUPERUSER, Cluster, wait_for
from tests.lab.server_user import server_user

SETTINGS = {"max_slot_wal_keep_size": "1GB", "wal_sender_timeout": "10s"}
SLOT = "pgkeep_default"

_PGKEEP = Path(sys.executable).with_name("pgkeep")
_END_SECONDS = 60.0
_FLUSHED = "SELECT count(*) FROM pg_stat_replication WHERE application_name = %s AND flush_lsn >= %s::pg_lsn"


@contextmanager
def receiving(cluster: Cluster, spool_dir: Path, *more: str) -> Iterator[list[str]]:
    """Receive the WAL of *cluster* into *spool_dir* while the block runs, with *more* options; give what is said."""
    command = [
        *(_PGKEEP, "receive", "default", "--spool-for=bacula", f"--spool-dir={spool_dir}"),
        *more,
        *(f"--host={cluster.socket_directory}", f"--port={cluster.port}", f"--user={SUPERUSER}"),
    ]
    lines: list[str] = []
    process = subprocess.Popen(
        [str(word) for word in command],
        env={"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C.UTF-8"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **server_user().popen_arguments(),
    )
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(process.stderr or []), daemon=True)
    reader.start()
    try:
        wait_for(lambda: any("streaming from" in line for line in lines), "the receiver streams")
        yield lines
    finally:
        process.terminate()
        try:
            status = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            # It must not live on beside the tests that follow; what it was told is in the message.
            process.kill()
            status = process.wait()
        reader.join(_END_SECONDS)
        process.stderr.close()
    assert status == 0, lines


def wait_until_received(cluster: Cluster, *, slot: str = SLOT, lsn: str = "", lines: Sequence[str] = ()) -> str:
    """Wait until the server knows that all of its WAL so far, or up to *lsn*, is durable in the spool; return that."""
    lsn = lsn or str(cluster.value("SELECT pg_current_wal_flush_lsn()"))
    wait_for(lambda: bool(cluster.value(_FLUSHED, [slot, lsn])), "\n".join([f"{lsn} is received", *lines]))
    return lsn
