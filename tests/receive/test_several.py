"""One process receives from several servers."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

from tests.lab.cluster import MakeCluster
from tests.lab.ledger import Ledger
from tests.lab.receiving import SETTINGS, wait_until_received
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper
from tests.survive.job import Job


def configuration(*keepers: Keeper) -> str:
    """Return what a configuration file says of the servers."""
    return "\n".join(
        f"[cluster:{keeper.name}]\n" + "\n".join(option.removeprefix("--") for option in keeper.server_options()) + "\n"
        for keeper in keepers
    )


def test_several_servers(make_keeper: MakeKeeper, make_cluster: MakeCluster, lab_directory: Path) -> None:
    """Each comes back to its last commit; that one server dies does not hold up what comes from the other."""
    first = make_keeper(settings=SETTINGS)
    other = make_cluster("other", settings={"unix_socket_directories": str(lab_directory), **SETTINGS})
    second = Keeper(lab_directory, other, name="second")
    second.init()
    config = lab_directory / "pgkeep.conf"
    config.write_text(configuration(first, second))
    config.chmod(0o644)
    ledgers = {keeper.name: Ledger(keeper.cluster) for keeper in (first, second)}
    for keeper in (first, second):
        keeper.backup("full", "local")
    with ExitStack() as stack:
        stack.callback(second.stop_restored)
        options = [f"--config={config}", f"--spool-dir={lab_directory}/spool"]
        receiver = stack.enter_context(Job(first, "receive", "second", *options))
        marks = {}
        for keeper in (second, first):
            receiver.wait_for_line(f"{keeper.name}: streaming from ")
            ledgers[keeper.name].transfer(20)
            marks[keeper.name] = ledgers[keeper.name].mark("last")
            wait_until_received(keeper.cluster, slot=f"pgkeep_{keeper.name}")
            if keeper is second:
                other.kill()
                receiver.wait_for_line("warning: second: ")
        receiver.send(signal.SIGTERM)
        outcome = receiver.end()
        assert outcome.status == 0, "\n".join(outcome.lines)
        for keeper in (first, second):
            keeper.restore(to=f"{keeper.name}-restored").assert_is_at(marks[keeper.name])
