"""A publisher that went back in time while its subscriber did not, and the way out that the manual shows."""

from __future__ import annotations

from tests.lab.cluster import MakeCluster, wait_for
from tests.restore.conftest import MakeKeeper
from tests.restore.test_replication_record import TRACKED


def test_a_subscriber_is_made_equal_to_its_restored_publisher(
    make_keeper: MakeKeeper, make_cluster: MakeCluster
) -> None:
    """The subscriber reconnects to the slot that was made again, and by the manual's statements has the same rows."""
    keeper = make_keeper(settings={"wal_level": "logical"})
    publisher, subscriber = keeper.cluster, make_cluster("subscriber")
    rows = "SELECT array_agg(id ORDER BY id) FROM item"
    for cluster in (publisher, subscriber):
        cluster.sql("CREATE TABLE item (id int PRIMARY KEY)")
    publisher.sql("CREATE PUBLICATION items FOR TABLE item")
    connection = f"CONNECTION '{publisher.conninfo()}' PUBLICATION items"
    subscriber.sql(f"CREATE SUBSCRIPTION items {connection}")
    publisher.sql("INSERT INTO item VALUES (1)")
    wait_for(lambda: subscriber.value(rows) == [1], "the first row has arrived")
    keeper.backup("full", "local", *TRACKED)
    publisher.sql("INSERT INTO item VALUES (2), (3)")
    wait_for(lambda: subscriber.value(rows) == [1, 2, 3], "the later rows have arrived")
    publisher.stop()

    place = publisher.data_directory.name
    restored = keeper.restore("--overwrite-existing", "--target-immediate", f"--port={publisher.port}", to=place)
    assert (
        "consumers of logical slots must resynchronise, or miss changes without a word: items; "
        "their tables must be copied anew"
    ) in restored.outcome.warnings
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'items'"
    wait_for(lambda: restored.value(active) is True, "the subscriber is back by itself")
    assert restored.value(rows) == [1]

    subscriber.sql("ALTER SUBSCRIPTION items DISABLE")
    subscriber.sql("ALTER SUBSCRIPTION items SET (slot_name = NONE)")
    subscriber.sql("DROP SUBSCRIPTION items")
    wait_for(lambda: restored.value(active) is False, "nobody uses the slot")
    with restored.connect() as session:
        session.execute("SELECT pg_drop_replication_slot('items')")
        session.execute("INSERT INTO item VALUES (4)")
    subscriber.sql("TRUNCATE item")
    subscriber.sql(f"CREATE SUBSCRIPTION items {connection}")
    wait_for(lambda: subscriber.value(rows) == [1, 4], "the tables are copied anew")
    with restored.connect() as session:
        session.execute("INSERT INTO item VALUES (5)")
    wait_for(lambda: subscriber.value(rows) == [1, 4, 5], "what comes now arrives")
