"""A fault of pgkeep itself ends one cluster's receiving: it is said, and the other clusters go on."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from pgkeep.cli import receive
from pgkeep.errors import ArchiveError, PgkeepError
from tests.receive.test_ending import Service


class Failing(Service):
    """Has ended when it begins, and says why only when it is seen off."""

    has_ended = True
    why: Exception = ArchiveError("gone astray", hint="look")

    def finish(self) -> None:
        """Raise why."""
        super().finish()
        raise self.why


def run(monkeypatch: pytest.MonkeyPatch, *services: Service) -> PgkeepError:
    """Run the *services*, all of which end; return what is raised in the end."""
    left = iter(services)
    monkeypatch.setattr(receive, "ReceiveService", lambda *_, **__: next(left))
    monkeypatch.setattr(receive, "_request", lambda *_: None)
    calls: Any = [SimpleNamespace(cluster_name=f"c{number}") for number in range(len(services))]
    reception = receive._Reception(calls, ExitStack())
    with pytest.raises(PgkeepError) as raised:
        reception.run()
    assert all(service.is_finished for service in services)
    return raised.value


def test_a_fault_of_one_cluster_does_not_take_the_others_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What no service should raise is told by kind and place, not in its own words; the next one is seen off, too."""
    first, second = Failing(), Failing()
    first.why = ValueError("a secret")
    raised = run(monkeypatch, first, second)
    assert raised.message.startswith("c0: internal error: ValueError in test_faults.py:")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"pgkeep: error: {raised.message}"
    assert "a secret" not in "".join(said)


def test_an_error_keeps_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberate error keeps its class and advice, and gets the name of its cluster."""
    raised = run(monkeypatch, Failing())
    assert (type(raised), raised.message, raised.hint) == (ArchiveError, "c0: gone astray", "look")
