"""Configuration files outside the data directory: they are in the backup, and a restore puts them back."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.lab.cluster import SUPERUSER, wait_for
from tests.lab.ledger import Ledger, Mark, digest
from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.restore.etc import Etc
from tests.restore.keeper import PGKEEP, Keeper, Outcome, Restored, environment
from tests.restore.test_files import make_directory, oid_of, rows
from tests.restore.unfinished import call

IN_BACKUP = {
    "postgresql.conf",
    "pg_hba.conf",
    "pg_ident.conf",
    "start.conf",
    "pg_ctl.conf",
    "environment",
    "people",
    "conf.d/tuning.conf",
}


def let_in(restored: Restored) -> None:
    """Let the test in, where pgkeep wrote a pg_hba.conf that lets only the server's own account in."""
    (restored.data_directory / "pg_hba.conf").write_text("local all all trust\n")
    os.kill(int(restored.postmaster()[0]), signal.SIGHUP)
    wait_for(lambda: _answers(restored), "the server lets the test in")


def _answers(restored: Restored) -> bool:
    try:
        restored.connect().close()
    except psycopg.OperationalError:
        return False
    return True


@dataclass
class Debian:
    """A stopped cluster as Debian has it, a Full of it, and the moment that the Full holds."""

    keeper: Keeper
    etc: Etc
    mark: Mark
    content: dict[str, str]

    def restore(self, *arguments: str, start: bool = True, status: int = 0) -> Outcome:
        """Restore the cluster to where it was."""
        bin_dir = self.keeper.cluster.installation.bin_dir
        how = "--start" if start else "--no-start"
        outcome = self.keeper.run("restore", f"--bin-dir={bin_dir}", "--json", how, *arguments)
        self.keeper.restored.append(self.restored)
        self.restored.guard()
        assert outcome.status == status, "\n".join(outcome.lines)
        return outcome

    @functools.cached_property
    def restored(self) -> Restored:
        """What was restored."""
        cluster = self.keeper.cluster
        nothing = Outcome(0, "", [])
        return Restored(cluster.installation, cluster.data_directory, cluster.port, nothing)

    @property
    def data_directory(self) -> Path:
        """Where the cluster was, and is again."""
        return self.keeper.cluster.data_directory


@pytest.fixture
def debian(make_keeper: MakeKeeper, lab_directory: Path) -> Debian:
    """A cluster whose configuration is elsewhere, backed up and stopped."""
    keeper = make_keeper()
    keeper.cluster.stop()
    etc = Etc(keeper.cluster, lab_directory / "etc" / "main")
    etc.start()
    mark = Ledger(keeper.cluster).mark("there")
    keeper.backup("full", "local")
    content = etc.content()
    keeper.cluster.stop()
    return Debian(keeper, etc, mark, content)


def lose(path: Path) -> None:
    """Remove a directory, as a broken disk does."""
    shutil.rmtree(path)


def test_lost_host(debian: Debian) -> None:
    """Data and configuration are lost: a restore in place brings both back, and the server runs with its own."""
    lose(debian.data_directory)
    lose(debian.etc.directory)
    outcome = debian.restore()
    restored = debian.restored
    restored.assert_is_at(debian.mark)
    assert restored.value("SHOW work_mem") == "7MB"
    assert restored.value("SHOW config_file") == str(debian.etc.config_file)
    assert restored.value("SHOW hba_file") == str(debian.etc.directory / "pg_hba.conf")
    assert debian.etc.content() == {name: text for name, text in debian.content.items() if name in IN_BACKUP}
    assert not (debian.data_directory / "pgkeep.configuration").exists()
    assert not (debian.data_directory / "postgresql.conf").exists()
    directory = debian.etc.directory
    names = ("environment", "people", "pg_ctl.conf", "pg_hba.conf", "pg_ident.conf", "postgresql.conf")
    said = ", ".join(f"{directory}/{name}" for name in names)
    assert f"configuration put back: {said} and 2 more" in outcome.lines
    assert outcome.warnings == []


def test_what_is_there_stays(debian: Debian) -> None:
    """A file that was changed since the backup is left as it is; the backup's lies in the data directory."""
    lose(debian.data_directory)
    tuning = debian.etc.directory / "conf.d" / "tuning.conf"
    tuning.write_text("work_mem = '9MB'\n")
    outcome = debian.restore()
    assert debian.restored.value("SHOW work_mem") == "9MB"
    laid = debian.data_directory / "pgkeep.configuration"
    assert outcome.warnings == [
        f"configuration file {tuning} is not put back, the file there is newer: the backup's is in {laid}"
    ]
    assert [path.read_text() for path in laid.rglob("*") if path.is_file()] == ["work_mem = '7MB'\n"]
    debian.restored.assert_is_at(debian.mark)


def test_older_file_gives_way_and_comes_back(debian: Debian) -> None:
    """With overwrite_existing an older file is renamed; a rollback gives it its name again, and all else that was."""
    tuning = debian.etc.directory / "conf.d" / "tuning.conf"
    tuning.write_text("work_mem = '5MB'\n")
    os.utime(tuning, (0, 0))
    (debian.etc.directory / "start.conf").unlink()
    before = debian.etc.content()
    debian.restore("--overwrite-existing", start=False)
    assert tuning.read_text() == "work_mem = '7MB'\n"
    assert (debian.etc.directory / "start.conf").read_text() == "auto\n"
    [aside] = debian.etc.directory.glob("conf.d/tuning.conf.old.*")
    assert aside.read_text() == "work_mem = '5MB'\n"
    outcome = call("rollback", debian.data_directory)
    assert outcome.status == 0, outcome.lines
    after = debian.etc.content()
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"conf.d/{aside.name}.rolled-back", f"start.conf{aside.name[11:]}.rolled-back"}
    debian.etc.start()
    with debian.keeper.cluster.connect() as connection:
        assert digest(connection) == debian.mark.digests


def test_directory_that_is_missing(debian: Debian, lab_directory: Path) -> None:
    """What the configuration names and the backup does not hold is warned of; the backup itself is whole."""
    sockets = make_directory(lab_directory / "run")
    with debian.etc.config_file.open("a") as file:
        file.write(f"unix_socket_directories = '{lab_directory}, {sockets}'\n")
    debian.keeper.cluster.start(options=["-c", f"config_file={debian.etc.config_file}", "-k", str(sockets)])
    with psycopg.connect(host=str(sockets), port=debian.keeper.cluster.port, user=SUPERUSER) as connection:
        assert connection.execute("SHOW unix_socket_directories").fetchone() == (str(sockets),)
    options = [*debian.keeper.backup_options("full", "local"), f"--host={sockets}"]
    debian.keeper.must("backup", *options)
    debian.keeper.cluster.stop()
    assert debian.keeper.must("verify").status == 0
    lose(debian.data_directory)
    lose(sockets)
    outcome = debian.restore(start=False)
    assert outcome.warnings == [
        f"unix_socket_directories is {sockets}, which is not on this host: the server may not start as it is configured"
    ]


def test_other_place(debian: Debian) -> None:
    """Restored into another directory, the cluster touches nothing of the original's configuration."""
    before = debian.etc.content()
    tuning = debian.etc.directory / "conf.d" / "tuning.conf"
    tuning.unlink()
    restored = debian.keeper.restore(to="elsewhere")
    laid = restored.data_directory / "pgkeep.configuration"
    said = [line for line in restored.outcome.lines if line.startswith("configuration from outside")]
    assert len(said) == 1
    assert said[0].endswith(f", in {laid}")
    assert not tuning.exists()
    assert debian.etc.content() == {name: text for name, text in before.items() if not name.endswith("tuning.conf")}


@pytest.mark.parametrize("transport", ["local", "stream"])
def test_copy_gets_it_beside(make_keeper: MakeKeeper, lab_directory: Path, transport: str) -> None:
    """Files come with both transports; a copy does not use them: they lie in its data directory, and this is said."""
    keeper = make_keeper()
    keeper.cluster.stop()
    etc = Etc(keeper.cluster, lab_directory / "etc" / "main")
    etc.start()
    mark = Ledger(keeper.cluster).mark("there")
    outcome = keeper.backup("full", transport)
    assert outcome.warnings == []
    restored = keeper.restore(f"--backup-id={outcome.report['backup_id']}")
    let_in(restored)
    restored.assert_is_at(mark)
    laid = restored.data_directory / "pgkeep.configuration" / etc.directory.relative_to("/")
    found = {str(path.relative_to(laid)): path.read_text() for path in laid.rglob("*") if path.is_file()}
    assert found == {name: text for name, text in etc.content().items() if name in IN_BACKUP}
    assert (laid / "conf.d").is_dir()


def test_new_host_with_other_paths(debian: Debian, lab_directory: Path) -> None:
    """Nothing of the original is left, and all goes elsewhere; its configuration is taken over by hand, as we say."""
    cluster = debian.keeper.cluster
    debian.etc.start()
    places = {name: make_directory(lab_directory / name) for name in ("fast", "slow")}
    for name, place in places.items():
        cluster.sql(f"CREATE TABLESPACE {name} LOCATION '{place}'")
        cluster.sql(f"CREATE TABLE in_{name} TABLESPACE {name} AS SELECT generate_series(1, 3000) AS n")
    oid = oid_of(cluster, "slow")
    debian.keeper.backup("full", "stream")
    expected = rows(cluster)
    cluster.stop()
    for path in (debian.data_directory, debian.etc.directory, *places.values()):
        lose(path)
    new = make_directory(lab_directory / "srv")
    restored = debian.keeper.restore(f"--tablespace-map=fast:{new}/fast,{oid}:{new}/slow", to="srv/main")
    restored.stop()
    # As docs/restore/configuration.md has it.
    laid = restored.data_directory / "pgkeep.configuration" / debian.etc.directory.relative_to("/")
    for name in ("pg_hba.conf", "postgresql.conf"):
        shutil.copy(laid / name, restored.data_directory / name)
    own = restored.data_directory
    with (own / "postgresql.conf").open("a") as file:
        file.write(f"data_directory = '{own}'\nhba_file = '{own}/pg_hba.conf'\nident_file = '{own}/pg_ident.conf'\n")
    text = (own / "postgresql.conf").read_text().replace("include_dir 'conf.d'", "")
    (own / "postgresql.conf").write_text(text)
    (own / "people").write_text("ann\n")
    shutil.rmtree(own / "pgkeep.configuration")
    restored.start()
    assert restored.digests() == expected
    assert restored.value(f"SELECT pg_tablespace_location({oid})") == f"{new}/slow"
    assert not debian.etc.directory.exists()


def test_recipe_without_pgkeep(debian: Debian, lab_directory: Path) -> None:
    """Unpacked with tar, the files lie below config, and RESTORE.md says where they belong."""
    [directory] = (debian.keeper.vault / "main" / "backups").iterdir()
    recipe = (directory / "RESTORE.md").read_text()
    data_directory = make_directory(lab_directory / "unpacked")
    unpack = f"zstdcat {directory}/volume-*.tar.zst | tar -xi -C {data_directory}"
    subprocess.run(["sh", "-c", unpack], check=True, **server_user().popen_arguments())
    laid = data_directory / "config" / debian.etc.directory.relative_to("/")
    assert (laid / "conf.d" / "tuning.conf").read_text() == "work_mem = '7MB'\n"
    for name in IN_BACKUP:
        assert f"    {debian.etc.directory}/{name}\n" in recipe
    assert f"-o '-c config_file={debian.etc.config_file}' -l logfile start" in recipe
    assert "cp -an /path/to/new/data/config/. /" in recipe


def test_role_that_reads_no_files(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """Over the stream a role without the right to read files gets a warning for what is outside, and none otherwise."""
    keeper = make_keeper()
    cluster = keeper.cluster
    cluster.sql("CREATE ROLE backup LOGIN")
    words = [str(PGKEEP), "grants", "backup", f"--major={cluster.major}", "--mode=pitr", "--transport=stream"]
    with cluster.connect() as connection:
        connection.execute(server_user().run(words, env=environment()).stdout.encode())
    assert keeper.backup("full", "stream", user="backup").warnings == []
    cluster.stop()
    etc = Etc(cluster, lab_directory / "etc" / "main")
    etc.start()
    outcome = keeper.backup("full", "stream", user="backup")
    advice = "grant pg_read_server_files and pg_read_binary_file, or use transport=local"
    refused = (
        f"PostgreSQL at {cluster.socket_directory}:{cluster.port} as backup refused: permission denied for function"
    )
    assert outcome.warnings == [
        f"not in the backup: configuration file {etc.directory}/{name}: {refused} pg_stat_file: {advice}"
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")
    ]
    cluster.sql("GRANT pg_read_server_files TO backup")
    functions = "pg_read_binary_file(text), pg_stat_file(text, boolean), pg_ls_dir(text)"
    cluster.sql(f"GRANT EXECUTE ON FUNCTION {functions} TO backup")
    assert keeper.backup("full", "stream", user="backup").warnings == []
