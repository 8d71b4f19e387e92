"""A password in the configuration file appears nowhere else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zstandard

from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper

SECRET = "s3cr3t-Pa55 w'ord\\"


def write_config(keeper: Keeper, password: str, *, file_mode: int = 0o600) -> Path:
    """Write a configuration file with *password* in it."""
    path = keeper.directory / f"pgkeep-{file_mode:o}.conf"
    quoted = password.replace("\\", "\\\\").replace('"', '\\"')
    path.write_text(
        f'[connection]\nhost = 127.0.0.1\nport = {keeper.cluster.port}\nuser = keeper\npassword = "{quoted}"\n'
    )
    path.chmod(file_mode)
    server_user().own(path)
    return path


@contextmanager
def watching_processes() -> Iterator[list[str]]:
    """Collect what command lines and environments of the server's account show while the block runs."""
    seen: dict[str, None] = {}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if process.stat().st_uid == server_user().uid and process.name != str(os.getpid()):
                        for name in ("cmdline", "environ"):
                            seen[(process / name).read_bytes().decode(errors="replace")] = None

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    found: list[str] = []
    try:
        yield found
    finally:
        stop.set()
        watcher.join()
        found += seen


def test_a_password_stays_where_it_is(make_keeper: MakeKeeper) -> None:
    """Neither a backup of any kind, nor a failed login, nor anything in the vault shows it."""
    keeper = make_keeper()
    cluster = keeper.cluster
    quoted = SECRET.replace("'", "''")
    cluster.sql(f"CREATE ROLE keeper LOGIN SUPERUSER REPLICATION PASSWORD '{quoted}'")
    cluster.set_hba("host all keeper 127.0.0.1/32 scram-sha-256\nhost replication keeper 127.0.0.1/32 scram-sha-256")
    # Enough for a dump that can be watched.
    cluster.sql("CREATE TABLE t AS SELECT n, repeat(md5(n::text), 30) AS text FROM generate_series(1, 30000) AS n")
    config = write_config(keeper, SECRET)
    bin_dir = f"--bin-dir={cluster.installation.bin_dir}"
    said: list[str] = []
    with watching_processes() as processes:
        for arguments in (
            ("backup", "--mode=dump", bin_dir),
            ("backup", "--mode=pitr", "--transport=stream", "--start-fast"),
            ("backup", "--mode=pitr", "--transport=local", "--start-fast"),
            ("check", "--mode=pitr"),
        ):
            outcome = keeper.run(*arguments, "--json", f"--config={config}")
            said += [outcome.stdout, *outcome.lines]
            assert outcome.status == 0 or arguments[0] == "check", outcome.lines
    said += [keeper.must("info", "--json").stdout]
    assert any("pg_dump\0" in text for text in processes), "no dump was seen"
    wrong = write_config(keeper, SECRET + "x", file_mode=0o400)
    for arguments in (("--mode=dump", bin_dir), ("--mode=pitr", "--transport=stream")):
        outcome = keeper.run("backup", *arguments, f"--config={wrong}")
        assert outcome.status == 4
        assert "password authentication failed" in outcome.refusal[0]
        said += outcome.lines
    for text in [*said, *processes]:
        assert SECRET not in text
        assert "Pa55" not in text
    records = [path for path in (keeper.vault / "main/backups").glob("*/*") if not path.name.startswith("volume-")]
    assert len(records) >= 6
    for path in records:
        content = path.read_bytes()
        if path.name.endswith(".zst"):
            content = zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True).read()
        assert b"Pa55" not in content, path
    left = [path for path in keeper.directory.glob("*") if "pgpass" in path.name or "service" in path.name]
    assert left == []


def test_an_exposed_password_is_refused(make_keeper: MakeKeeper) -> None:
    """A configuration file with a password that others may read is refused before anything is done with it."""
    keeper = make_keeper()
    config = write_config(keeper, SECRET, file_mode=0o644)
    for verb in ("backup", "info", "check"):
        outcome = keeper.run(verb, f"--config={config}")
        assert outcome.status == 3
        assert str(config) in outcome.refusal[0]
        assert "Pa55" not in "\n".join(outcome.lines)
