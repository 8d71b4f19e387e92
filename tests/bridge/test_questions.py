# ruff: noqa: E501 - a row of a table, a line of a script of the backend: one line each
"""Estimates, listings and questions from a console."""

from __future__ import annotations

import pytest

from tests.bridge.fake_daemon import COMMAND, ERROR, FakeDaemon

FILES = """
say('CONFIGOBJ:RestoreOptions'); send('D', 'x'); send('F')
attributes('/@postgresql/d/', kind='D')
attributes('/@postgresql/a', size=10)
say('PLUGINOBJ:/@postgresql/a'); send('F')
say('RESTOREOBJ:x'); say('RESTOREOBJ_LEN:1'); send('D', 'x'); send('F')
attributes('/@postgresql/b', size=-1)
send('F')
end()
"""


def test_estimate(daemon: FakeDaemon) -> None:
    """An estimate has files without data, and no objects: the daemon would look them up without a name."""
    daemon.order("number", 4, 73)
    daemon.order("value-event", 12, ord("F"))
    daemon.say(f"begin('EstimateStart')\n[note(key) for key in JOB]\n{FILES}")
    daemon.order("event", 20, COMMAND)
    daemon.order("estimate", COMMAND)
    assert [(words[2], words[4]) for words in daemon.files] == [
        ("/@postgresql/d/", "0"),
        ("/@postgresql/a", "10"),
        ("/@postgresql/b", "-1"),
    ]
    assert daemon.seen[2:4] == ["Type=E", "Level=F"]
    assert daemon.messages == []


@pytest.mark.parametrize(
    ("line", "parameters"),
    [
        ("pgkeep: listing=/", ["listing=/"]),
        ('pgkeep: mode=dump listing=/a b "c', ["mode=dump", 'listing=/a b "c']),
        ("pgkeep: mode=dump listing=/ listing=/x\\y", ["mode=dump", "listing=/", "listing=/x\\y"]),
        ("pgkeep: listing=", ["listing="]),
    ],
)
def test_listing(daemon: FakeDaemon, line: str, parameters: list[str]) -> None:
    """What stands behind the last listing= is the path, blanks and quotation marks and all."""
    daemon.order("number", 4, 73)
    daemon.say(
        f"begin('ListingStart')\n[note(key) for key in PARAMETERS]\nassert not any(k.startswith('Level') for k in JOB)\n{FILES}"
    )
    daemon.order("event", 20, line)
    daemon.order("estimate", line)
    assert daemon.seen == parameters
    assert len(daemon.files) == 3


def test_error_in_an_estimate(daemon: FakeDaemon) -> None:
    """An error goes to the console."""
    daemon.say("begin('EstimateStart')\nsend('E', 'no server\\n')\nreceive()\n")
    daemon.order("estimate", COMMAND)
    assert daemon.messages == [(ERROR, "no server")]


def test_query(daemon: FakeDaemon) -> None:
    """Each packet of the answer is one piece of text; the result is never NULL."""
    daemon.say(
        """
        begin('QueryStart')
        note(PARAMETERS[-1])
        say('database=postgres')
        say('a=1,b=2')
        say('path=x,y')
        send('I', 'by the way')
        send('D', 'raw 100%\\n')
        send('F')
        expect('T')
        """
    )
    daemon.order("query", "database", COMMAND)
    assert [words[1:] for words in daemon.answers if words[0] == "answer"] == [
        ["3", "text", "database=postgres%0a"],
        ["3", "text", "database: [%0aa=1%0ab=2%0a]%0a"],
        ["3", "text", "path=x,y%0a"],
        ["3", "text", "raw 100%25%0a"],
        ["0", "text", ""],
    ]
    assert daemon.seen == ["query=database"]


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        (
            "begin('QueryStart')\nsend('E', 'unknown parameter\\nsee the manual\\n')\nreceive()\n",
            "error=unknown parameter%0a",
        ),
        ("begin('QueryStart')\nsys.exit(3)\n", "error=the backend ended (exit status 3)%0a"),
        ("sys.exit(3)\n", "error=the backend ended (exit status 3)%0a"),
    ],
)
def test_query_that_fails(daemon: FakeDaemon, script: str, answer: str) -> None:
    """The error is the answer."""
    daemon.say(script)
    daemon.order("query", "x", COMMAND)
    assert [words[1:] for words in daemon.answers if words[0] == "answer"] == [["0", "text", answer]]
    assert daemon.messages == []


def test_console_that_asks_nothing(daemon: FakeDaemon) -> None:
    """A context that is made and freed, as for every console that connects, starts nothing."""
    daemon.order("event", 2)
    assert daemon.events == []


def test_callbacks_without_a_job(daemon: FakeDaemon) -> None:
    """CheckFile answers exactly: a name that no backend asked to keep is gone."""
    assert daemon.order("check-file", "/@postgresql/pitr/x") == [["checked", "0"]]
