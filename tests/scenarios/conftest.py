"""The two doors, and what has happened to the cluster behind each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import pytest

from tests.lab.cluster import Cluster
from tests.lab.ledger import Mark
from tests.lab.server_user import server_directory
from tests.lab.servers import installation
from tests.scenarios.doors import BaculaDoor, Door, ShellDoor

DOORS = ("shell", "bacula")


def open_door(name: str, stack: ExitStack, *, major: int = 18) -> Door:
    """Make a cluster and the door called *name* to its backups."""
    directory = stack.enter_context(server_directory())
    kept = {"wal_keep_size": "512MB"} if major >= 13 else {"wal_keep_segments": "32"}
    settings = {"unix_socket_directories": str(directory), **kept}
    cluster = stack.enter_context(Cluster.create(installation(major), directory / "data", settings=settings))
    cluster.start()
    if name == "bacula":
        return BaculaDoor.make(directory, cluster, stack)
    door = ShellDoor(directory, cluster)
    stack.callback(door.close)
    return door


@dataclass
class Story:
    """
    A Full, three Incrementals, and an accident between the second and the third.

    Attributes:
        before: A mark before the Full.
        early: After the Full.
        last_good: Just before the accident.
        end: After it, before the last Incremental.
    """

    door: Door
    before: Mark
    early: Mark
    last_good: Mark
    end: Mark

    @classmethod
    def tell(cls, door: Door) -> Story:
        """Let it happen."""
        ledger = door.ledger
        door.cluster.sql("CREATE TABLE precious AS SELECT generate_series(1, 100) AS n")
        before = ledger.mark("before")
        door.backup("Full")
        ledger.transfer(5)
        early = ledger.mark("early")
        door.backup("Incremental")
        ledger.transfer(5)
        last_good = ledger.mark("last good")
        door.cluster.sql("DROP TABLE precious")
        door.backup("Incremental")
        ledger.transfer(5)
        end = ledger.mark("end")
        door.backup("Incremental")
        return cls(door, before, early, last_good, end)

    @cached_property
    def facts(self) -> dict[str, str]:
        """What options are made of."""
        facts = {"data": str(self.door.cluster.data_directory), "other_bin_dir": str(installation(15).bin_dir)}
        for name in ("before", "early", "last_good", "end"):
            mark: Mark = getattr(self, name)
            facts |= {f"{name}_time": mark.time.isoformat(), f"{name}_lsn": mark.lsn, f"{name}_xid": mark.xid}
        return facts


@pytest.fixture(scope="module", params=DOORS)
def story(request: pytest.FixtureRequest) -> Iterator[Story]:
    """The story behind each door; nothing that a test does here changes it."""
    with ExitStack() as stack:
        yield Story.tell(open_door(request.param, stack))


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    """Each door, with a cluster that is the test's own."""
    with ExitStack() as stack:
        yield open_door(request.param, stack)
