"""
Named tests, run one after the other: what ``pgkeep check`` and ``pgkeep bacula check`` have in common.

Each test is a function that returns a line about what it found, warns, or raises what is wrong; the error's hint is
the advice. A test that fails does not keep the others from running, unless they need what it could not get.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pgkeep.errors import PgkeepError

NamedTest = tuple[str, Callable[[], str], tuple[str, ...]]
"""Name, test, and the names of the tests that must not have failed before."""


class Outcome(enum.Enum):
    """How a test ended; the value is what the report says."""

    OK = "OK"
    WARNING = "WARN"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of the report."""

    name: str
    outcome: Outcome
    text: str
    hint: str = ""


class Warned(PgkeepError):
    """A test found something that works but should be looked at."""


def run_tests(tests: Iterable[NamedTest]) -> Iterator[CheckResult]:
    """Run every test, one after the other, and yield its result as soon as it is known."""
    failed: set[str] = set()
    for name, test, needs in tests:
        missing = sorted(failed.intersection(needs))
        if missing:
            failed.add(name)
            yield CheckResult(name, Outcome.SKIPPED, f"needs {', '.join(missing)}")
            continue
        result = _run(name, test)
        if result.outcome is Outcome.FAILED:
            failed.add(name)
        yield result


def _run(name: str, test: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, Outcome.OK, test())
    except Warned as warned:
        return CheckResult(name, Outcome.WARNING, warned.message, warned.hint)
    except PgkeepError as error:
        return CheckResult(name, Outcome.FAILED, error.message, error.hint)
