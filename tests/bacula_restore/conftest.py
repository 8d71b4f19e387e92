"""Fixtures of the tests of restores through Bacula's door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.bacula_backend.bridge import Bridge, Job
from tests.bacula_restore.bridge import Answer, PlainRestoreBridge, RestoreBridge, Restoring, merge
from tests.lab.cluster import SUPERUSER, Cluster, MakeCluster
from tests.lab.server_user import server_directory
from tests.lab.servers import MAJORS, installation
from tests.restore.keeper import Restored, environment


@dataclass
class Daemon:
    """A File Daemon with one Plugin line: jobs that were backed up, and the restores of them."""

    cluster: Cluster
    directory: Path
    words: str
    jobs: list[Job] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    restored: list[Restored] = field(default_factory=list)

    def backup(self, level: str = "F", *more: str, base: int | None = None) -> Job:
        """Make a backup of *level* upon the job of number *base*; the one before by default."""
        name = f"Job.2026-11-20_21.56.{len(self.jobs):02}_03"
        job = {"Name": name, "Level": level, "JobID": str(len(self.jobs) + 1)}
        if level != "F":
            job["PrevJobName"] = self.names[0 if level == "D" else -1] if base is None else self.names[base]
        with Bridge(keep=lambda name: True, environment=self.environment()) as bridge:
            done = bridge.backup(job, " ".join([self.words, *more]))
        assert done.status == 0, done.messages
        self.jobs.append(done)
        self.names.append(name)
        return done

    def restoring(self, *numbers: int) -> Restoring:
        """Return what Bacula restores of the jobs of these numbers; of all by default."""
        return merge([self.jobs[number] for number in numbers] if numbers else self.jobs)

    def restore(
        self,
        restoring: Restoring | None = None,
        *,
        where: str = "/",
        options: Mapping[str, str] | None = None,
        plain: bool = False,
        words: str = "",
        ring: bool = True,
        expects: bool = True,
        **more: Any,
    ) -> Answer:
        """Restore and return what the backend said."""
        text = "# Plugin configuration file\n# Version 1\n" if options else ""
        text += "".join(f'{name}="{value}"\n' for name, value in (options or {}).items())
        bridge = (
            PlainRestoreBridge(environment=self.environment())
            if plain
            else RestoreBridge(environment=self.environment(), ring=ring)
        )
        with bridge:
            if isinstance(bridge, RestoreBridge):
                bridge.expects = expects
            return bridge.restore(restoring or self.restoring(), words or self.words, where=where, options=text, **more)

    def server(self, data_directory: Path, answer: Answer) -> Restored:
        """Return what was restored; it is stopped when the test ends."""
        restored = Restored(self.cluster.installation, data_directory, 0, answer)  # type: ignore[arg-type]
        self.restored.append(restored)
        restored.guard()
        return restored

    def environment(self) -> dict[str, str]:
        """Nothing of the person who runs the tests."""
        return environment()

    def stop(self) -> None:
        """Stop what was restored."""
        for restored in self.restored:
            restored.stop()


MakeDaemon = Callable[..., Daemon]

NOWHERE = " "
"""Addresses of a server without TCP, so that restored ones do not meet at the default port; empty is the default."""


@contextmanager
def daemons(directory: Path, make_cluster: MakeCluster) -> Iterator[MakeDaemon]:
    """Give a function that makes a running cluster in *directory* and a daemon that backs it up."""
    with ExitStack() as stack:

        def make(mode: str = "pitr", *more: str, settings: dict[str, str] | None = None, **cluster: Any) -> Daemon:
            own = {"unix_socket_directories": str(directory), "listen_addresses": NOWHERE} | (settings or {})
            made: Cluster = make_cluster("data", settings=own, **cluster)
            words = [
                *(f"mode={mode}", f"host={made.socket_directory}", f"port={made.port}", f"user={SUPERUSER}"),
                *(f"state_dir={directory}/state", f"bin_dir={made.installation.bin_dir}", *more),
            ]
            if mode == "pitr":
                words += ["start_fast=yes"]
            daemon = Daemon(made, directory, " ".join(words))
            stack.callback(daemon.stop)
            return daemon

        yield make


@pytest.fixture
def make_daemon(lab_directory: Path, make_cluster: MakeCluster) -> Iterator[MakeDaemon]:
    """Return a function that makes a running cluster and a daemon that backs it up."""
    with daemons(lab_directory, make_cluster) as make:
        yield make


@pytest.fixture(scope="module")
def make_module_daemon() -> Iterator[MakeDaemon]:
    """The same for all tests of a module, on the newest major."""
    with ExitStack() as stack:
        directory = stack.enter_context(server_directory())

        def make_cluster(name: str, **arguments: Any) -> Cluster:
            return stack.enter_context(Cluster.create(installation(MAJORS[-1]), directory / name, **arguments)).start()

        yield stack.enter_context(daemons(directory, make_cluster))
