"""A copy of a server's files, put back later: what happens to virtual machines."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user


def take_snapshot(cluster: Cluster) -> None:
    """Copy the files of a server, as of a stopped virtual machine."""
    cluster.stop()
    shutil.copytree(cluster.data_directory, cluster.data_directory.with_name("earlier"), symlinks=True)
    cluster.start()


def put_snapshot_back(cluster: Cluster) -> None:
    """Let a server go on from the copy of its files."""
    cluster.stop()
    shutil.rmtree(cluster.data_directory)
    cluster.data_directory.with_name("earlier").rename(cluster.data_directory)
    for directory, names, files in os.walk(cluster.data_directory):
        for name in [".", *names, *files]:
            server_user().own(Path(directory, name))
    cluster.start()
