"""A receiver follows its cluster through promotions, and mixes no two histories."""

from __future__ import annotations

from pathlib import Path

from tests.lab.cluster import Cluster
from tests.lab.ledger import Ledger
from tests.lab.proxy import Proxy
from tests.receive.receiver import SETTINGS, Receiver
from tests.restore.conftest import MakeKeeper
from tests.restore.keeper import Keeper


def through(proxy: Proxy) -> list[str]:
    """Return the options that lead through *proxy*."""
    return ["--host=127.0.0.1", f"--port={proxy.port}"]


def promoted(standby: Cluster, keeper: Keeper, proxy: Proxy) -> Ledger:
    """Promote *standby*, let the address lead to it, and return its ledger."""
    standby.promote()
    proxy.redirect(("127.0.0.1", standby.port))
    ledger = Ledger(standby)
    ledger.transfer(5)
    return ledger


def test_promotions_are_followed(make_keeper: MakeKeeper, lab_directory: Path) -> None:
    """
    Two promotions, the first of a standby that is behind the receiver: each timeline comes back to its own end.

    The old primary, when it returns, is refused.
    """
    keeper = make_keeper(settings=SETTINGS)
    first, ledger = keeper.cluster, Ledger(keeper.cluster)
    keeper.backup("full", "local")
    second = first.create_standby(lab_directory / "second")
    second.start()
    with Proxy(("127.0.0.1", first.port)) as proxy, second:
        with Receiver(keeper, *through(proxy)).wait_until_streaming() as receiver:
            ledger.transfer(5)
            second.wait_for_replay(first.current_lsn())
            second.stop()
            ledger.transfer(5)
            branch = ledger.mark("branch")
            held = receiver.wait_until_flushed()
            first.stop("immediate")
            second.start()
            ledger = promoted(second, keeper, proxy)
            receiver.wait_for_line("warning: main: timeline 1 was received up to ")
            receiver.wait_until_flushed(second)
            third = second.create_standby(lab_directory / "third")
            with third:
                third.start()
                ledger.transfer(5)
                third.wait_for_replay(second.current_lsn())
                second.stop("immediate")
                ledger = promoted(third, keeper, proxy)
                mark = ledger.mark("main line")
                receiver.wait_until_flushed(third)
                outcome = receiver.stop()
        first.start()
        proxy.redirect(("127.0.0.1", first.port))
        with Receiver(keeper, *through(proxy)) as refused:
            refusal = refused.end()
    assert any(line.startswith("main: the timeline ended: following timeline 3 from ") for line in outcome.lines)
    [said] = [line for line in outcome.warnings if "kept as a branch" in line]
    assert said.startswith("main: timeline 1 was received up to 0/")
    assert said.endswith(": what lies behind is kept as a branch of its own")
    assert held
    assert refusal.status == 5
    assert refusal.refusal == [
        "error: main: the server is on timeline 1, but timeline 3 was received already",
        "hint: this is the old primary: connect to the one that was promoted",
    ]
    keeper.restore().assert_is_at(mark)
    keeper.restore("--target-timeline=1").assert_is_at(branch)
