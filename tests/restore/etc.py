"""A cluster as Debian lays it out: its configuration is not in the data directory."""

from __future__ import annotations

from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user

NAMES = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")


class Etc:
    """
    The configuration directory of a cluster that was moved out of its data directory.

    Attributes:
        directory: Where it is.
        config_file: Its ``postgresql.conf``.
    """

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        """Move the configuration of the stopped *cluster* to *directory*, which is made."""
        self.cluster = cluster
        self.directory = directory
        self.config_file = directory / "postgresql.conf"
        (directory / "conf.d").mkdir(parents=True)
        for name in NAMES:
            (cluster.data_directory / name).rename(directory / name)
        with self.config_file.open("a") as file:
            file.write(f"data_directory = '{cluster.data_directory}'\n")
            file.write(f"hba_file = '{directory / 'pg_hba.conf'}'\nident_file = '{directory / 'pg_ident.conf'}'\n")
            file.write(f"include_dir 'conf.d'\nport = {cluster.port}\n")
        (directory / "conf.d" / "tuning.conf").write_text("work_mem = '7MB'\n")
        (directory / "conf.d" / "README").write_text("not read by the server\n")
        (directory / "start.conf").write_text("auto\n")
        (directory / "pg_ctl.conf").write_text("pg_ctl_options = ''\n")
        (directory / "environment").write_text("")
        with (directory / "pg_hba.conf").open("a") as file:
            file.write("local all @people trust\n")
        (directory / "people").write_text("ann\nbob\n")
        for path in [directory.parent, directory, *directory.rglob("*")]:
            server_user().own(path)

    def start(self) -> None:
        """Start the server with it."""
        self.cluster.start(options=["-c", f"config_file={self.config_file}"])

    def content(self) -> dict[str, str]:
        """Return what every file says, by its path below the directory."""
        found = [path for path in self.directory.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.directory)): path.read_text() for path in found}
