"""A File Daemon of root, as packages have it: the backend runs as the account that owns the server's files."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.bacula.scene import PGKEEP, Scene, plugin
from tests.lab.server_user import server_user

pytestmark = [
    pytest.mark.bacula,
    pytest.mark.skipif(os.geteuid() != 0 or server_user().is_self, reason="only root can run a daemon as root"),
]


@pytest.fixture
def rooted(scene: Scene) -> Scene:
    """A scene whose File Daemon runs as root, with the plugin that root has installed for it."""
    director = scene.director
    director.stop_daemon("fd")
    written = director.layout.plugin_directory / "pgkeep-fd.conf"
    written.unlink()
    command = [
        *(PGKEEP, "bacula", "install", f"--fd-config={director.layout.configuration / 'bacula-fd.conf'}"),
        *(f"--plugin={plugin()}", f"--user={server_user().name}", f"--config={director.directory / 'pgkeep.conf'}"),
        f"--state-dir={director.directory / 'state'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"user = {server_user().name}\n" in written.read_text()
    director.start_daemon("fd", as_root=True)
    assert os.stat(f"/proc/{director.pid('fd')}").st_uid == 0
    return scene


def test_everything_is_done_as_the_account_of_the_server(rooted: Scene) -> None:
    """Backups and a restore work, no backend ever runs as root, and what was restored belongs to the server."""
    job = rooted.job("pitr", rooted.line("pitr"))
    seen: set[int] = set()
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(rooted, seen, ended))
    watcher.start()
    try:
        rooted.transfer()
        rooted.backup(job, "Full")
        rooted.transfer()
        rooted.backup(job, "Incremental")
        mark = rooted.ledger.mark("saved")
        rooted.backup(job, "Incremental")
        where = rooted.directory / "out"
        rooted.director.restore(job, where).must()
    finally:
        ended.set()
        watcher.join()
    assert seen == {server_user().uid}
    restored = rooted.assert_restored(where, mark)
    owners = {os.lstat(path).st_uid for path in restored.data_directory.rglob("*")}
    assert owners == {server_user().uid}
    assert {path.stat().st_uid for path in (rooted.director.directory / "state").rglob("*")} == {server_user().uid}
    rooted.assert_nothing_is_left()


def test_a_place_that_only_root_may_write_is_refused(rooted: Scene) -> None:
    """The restore fails before the first byte, and says who may not write where."""
    job = rooted.job("pitr", rooted.line("pitr"))
    rooted.backup(job, "Full")
    closed = rooted.directory / "closed"
    closed.mkdir(mode=0o755)
    result = rooted.director.restore(job, closed / "out")
    assert result.status in ("E", "f"), result.text
    assert any("no right to write in" in line and str(closed) in line for line in result.told), result.text
    assert list(closed.iterdir()) == []


def _watch(scene: Scene, seen: set[int], ended: threading.Event) -> None:
    """Collect the accounts of the processes that run pgkeep's backend."""
    while not ended.is_set():
        for pid in scene.director.children():
            try:
                if "pgkeep-backend" in Path(f"/proc/{pid}/cmdline").read_text():
                    seen.add(os.stat(f"/proc/{pid}").st_uid)
            except OSError:
                continue
        ended.wait(0.02)
