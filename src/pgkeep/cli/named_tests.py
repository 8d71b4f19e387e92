"""What named tests found, as people and programs read it."""

from __future__ import annotations

from collections.abc import Iterable

from pgkeep.cli.output import print_json, print_line
from pgkeep.errors import CheckFailed
from pgkeep.jobs.named_tests import CheckResult, Outcome


def report_results(found: Iterable[CheckResult], *, as_json: bool) -> None:
    """Print a line per test as it ends, or all as JSON at the end; raise CheckFailed when one failed."""
    results = []
    for result in found:
        results.append(result)
        if not as_json:
            _print(result)
    if as_json:
        print_json([{"name": r.name, "outcome": r.outcome.value, "text": r.text, "hint": r.hint} for r in results])
    failed = [result.name for result in results if result.outcome is Outcome.FAILED]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(results)} tests failed: {', '.join(failed)}")


def _print(result: CheckResult) -> None:
    print_line(f"{result.outcome.value:7} {result.name:15} {result.text}")
    if result.hint:
        print_line(f"{'':23} hint: {result.hint}")
