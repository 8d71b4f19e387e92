"""Rolling forward in place equals pg_combinebackup byte by byte, whatever happened between the backups."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.cluster import Cluster, MakeCluster, wait_for
from tests.lab.server_user import server_user
from tests.roll_forward.chains import SETTINGS, Chain, assert_same, tablespace_numbers

PROMOTED = 5
"""The increment before which the server goes to another timeline."""


class World:
    """A cluster in which things happen that an increment must bring across."""

    def __init__(self, cluster: Cluster, directory: Path, seed: int) -> None:
        self.cluster = cluster
        self.directory = directory
        self.chance = random.Random(seed)
        self.made = 0
        for _ in range(4):
            self.make_table()
        cluster.sql("CREATE UNLOGGED TABLE u AS SELECT n FROM generate_series(1, 5000) AS n")
        cluster.sql("CREATE INDEX ON u (n)")

    def tables(self) -> list[str]:
        rows = self.cluster.sql("SELECT relname FROM pg_class WHERE relname LIKE 't%%' AND relkind = 'r' ORDER BY 1")
        return [name for (name,) in rows if name[1:].isdigit()]

    def any_table(self) -> str:
        return self.chance.choice(self.tables())

    def make_table(self) -> None:
        self.made += 1
        name, rows = f"t{self.made}", self.chance.randrange(1, 40_000)
        self.cluster.sql(
            f"CREATE TABLE {name} AS SELECT n, repeat('x', n %% 90) AS text FROM generate_series(1, {rows}) AS n", []
        )
        self.cluster.sql(f"CREATE INDEX ON {name} (n)")

    def update_some(self) -> None:
        step = self.chance.randrange(200, 3000)
        self.cluster.sql(f"UPDATE {self.any_table()} SET text = 'changed' WHERE n % {step} = 0")

    def append(self) -> None:
        self.cluster.sql(f"INSERT INTO {self.any_table()} SELECT n, 'more' FROM generate_series(1, 9000) AS n")

    def truncate(self) -> None:
        self.cluster.sql(f"TRUNCATE {self.any_table()}")

    def drop(self) -> None:
        self.cluster.sql(f"DROP TABLE {self.any_table()}")
        self.make_table()

    def rewrite(self) -> None:
        self.cluster.sql(f"VACUUM FULL {self.any_table()}")

    def shrink(self) -> None:
        """Cut a table's end off in place, and let part of it grow again."""
        name = self.any_table()
        self.cluster.sql(f"DELETE FROM {name} WHERE n > {self.chance.randrange(1, 9000)}")
        self.cluster.sql(f"VACUUM (TRUNCATE) {name}")
        if self.chance.random() < 0.5:
            self.cluster.sql(f"INSERT INTO {name} SELECT n, 'again' FROM generate_series(1, 3000) AS n")

    def new_tablespace(self) -> None:
        self.made += 1
        place = self.directory / f"space{self.made}"
        place.mkdir()
        server_user().own(place)
        self.cluster.sql(f"CREATE TABLESPACE s{self.made} LOCATION '{place}'")
        self.cluster.sql(f"ALTER TABLE {self.any_table()} SET TABLESPACE s{self.made}")

    def new_database(self) -> None:
        self.made += 1
        self.cluster.sql(f"CREATE DATABASE d{self.made} STRATEGY {self.chance.choice(['wal_log', 'file_copy'])}")

    def drop_database(self) -> None:
        rows = self.cluster.sql("SELECT datname FROM pg_database WHERE datname ~ '^d[0-9]' LIMIT 1")
        for (name,) in rows:
            self.cluster.sql(f"DROP DATABASE {name}")

    def unlogged(self) -> None:
        self.cluster.sql("INSERT INTO u SELECT n FROM generate_series(1, 500) AS n")

    def nothing(self) -> None:
        """Leave everything as it is: there are increments without a block."""

    def promote(self) -> None:
        """Let the server end an archive recovery that finds nothing, on a timeline of its own, with changes there."""
        self.cluster.stop()
        signal_file = self.cluster.data_directory / "recovery.signal"
        signal_file.touch()
        server_user().own(signal_file)
        self.cluster.configure({"restore_command": "/bin/false"})
        self.cluster.start()
        wait_for(lambda: not self.cluster.value("SELECT pg_is_in_recovery()"), "recovery is over")
        self.update_some()

    def happen(self, count: int) -> None:
        """Let *count* things happen, each of them sooner or later."""
        events: list[Callable[[], None]] = [
            self.update_some, self.append, self.truncate, self.drop, self.rewrite, self.shrink,
            self.new_tablespace, self.new_database, self.drop_database, self.unlogged, self.nothing,
        ]  # fmt: skip
        for event in self.chance.sample(events, count):
            event()


# Which of the majors has checksums does not matter to the files: each is there once.
@pytest.mark.pg(">=17")
def test_each_increment_gives_what_pg_combinebackup_gives(
    major: int, make_cluster: MakeCluster, lab_directory: Path
) -> None:
    """Ten increments of a generated life with a promotion give the same files, in several runs or all at once."""
    cluster = make_cluster(data_checksums=major != 17, settings=SETTINGS)
    cluster.sql("UPDATE pg_database SET datistemplate = false WHERE datname = 'template0'")
    # Its three hundred files would be in every backup.
    cluster.sql("DROP DATABASE template0")
    world, chain = World(cluster, lab_directory, seed=major), Chain(cluster, lab_directory)
    chain.take()
    for number in range(1, 11):
        world.happen(3)
        if number == PROMOTED:
            world.promote()
        chain.take()
    spaces, target = tablespace_numbers(cluster), chain.target("rolled")
    done = 0
    for count in (1, PROMOTED + 1, 11):
        chain.roll(target, chain.ids[:count], done=done)
        if done:
            combined = chain.combine(chain.ids[:count], f"combined{count}")
            present = [oid for oid in spaces if combined.with_name(f"{combined.name}-{oid}").exists()]
            assert_same(target.data_directory, combined, present)
        done = count

    at_once = chain.target("at-once")
    chain.roll(at_once, chain.ids, is_streamed=True, workers=3)
    assert_same(at_once.data_directory, combined, spaces)
