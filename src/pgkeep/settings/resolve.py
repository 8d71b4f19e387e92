"""
Precedence: from what was written in several places to what holds.

The higher place wins: ``where=``, restore menu, Plugin line or flag, restore profile, [cluster:<id>], [connection] and
[options], default. Everything that was written is checked, also what a higher place overrides: a typing error must not
wait for the day on which it counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pgkeep.errors import PgkeepError, SettingsError, UsageError
from pgkeep.settings.assignment import (
    Assignment,
    Rank,
    carries_password,
    is_bare_allowed,
    shown,
)
from pgkeep.settings.ini import ConfigFile
from pgkeep.settings.parameter import Parameter, Place
from pgkeep.settings.resolved import Resolved, Setting
from pgkeep.settings.rules import apply_rules
from pgkeep.settings.table import PARAMETERS, find, nearest_name
from pgkeep.settings.values import Unacceptable, parse_value

_PLACE_NAMES = {
    Place.PLUGIN_LINE: "the Plugin line",
    Place.CONFIG: "the configuration file",
    Place.CLI: "the command line",
    Place.RESTORE: "the restore options",
    Place.PROFILE: "a restore profile",
}


@dataclass(frozen=True, slots=True)
class _Checked:
    """An assignment with a known name, in a place that it may have, and the value that it gives."""

    parameter: Parameter
    assignment: Assignment
    value: Any = field(repr=False)

    @property
    def rank(self) -> Rank:
        return self.assignment.origin.rank

    def __str__(self) -> str:
        text = shown(self.parameter, self.assignment.text or "yes")
        return f"{self.assignment.name}={text} {self.assignment.origin.where}"


def resolve(
    written: Iterable[Assignment], *, verb: str, config: ConfigFile | None = None, cluster: str | None = None
) -> Resolved:
    """
    Return the settings of one job.

    Args:
        written: What was given for this job, in any order: Plugin line or flags, restore options, a profile.
        verb: The verb that will use them: ``backup``, ``restore``, ....
        config: The configuration file.
        cluster: Whose section of the configuration file holds; None is the ``cluster_id`` that was given.

    Raises:
        SettingsError, UsageError: A name is unknown or not allowed where it stands, a value is not acceptable, one
            place gives a parameter two values, or two parameters contradict each other.
    """
    checked = [_check(assignment) for assignment in written]
    if config is not None:
        if cluster is None:
            cluster = _cluster(checked) or _cluster([_check(assignment) for assignment in config.shared])
        checked += [_check(assignment) for assignment in config.assignments(cluster)]
        _check_cluster_id(checked, cluster)
    given: dict[str, _Checked] = {}
    for one in checked:
        other = next((o for o in checked if o.parameter is one.parameter and o.rank == one.rank), one)
        if other.value != one.value:
            raise _contradiction(other, one)
        if one.parameter.name not in given or given[one.parameter.name].rank < one.rank:
            given[one.parameter.name] = one
    settings = {
        p.name: Setting(given[p.name].value, given[p.name].assignment.origin) for p in PARAMETERS if p.name in given
    }
    ruled, warnings = apply_rules(settings, verb=verb)
    return Resolved(ruled, (*_exposed(given.values()), *warnings))


def check_config(config: ConfigFile) -> list[str]:
    """Return what is wrong anywhere in *config*, one line each: also in the sections of clusters not asked for."""
    problems = []
    for written in (config.shared, config.profile, *config.by_cluster.values()):
        for assignment in written:
            try:
                _check(assignment)
            except (SettingsError, UsageError) as error:
                problems.append(str(error))
    return problems


def _check(assignment: Assignment) -> _Checked:
    """Return *assignment* with its parameter and value; raise for a bad name, place or value."""
    origin = assignment.origin
    parameter = find(assignment.name)
    if parameter is None:
        near = nearest_name(assignment.name, origin.place)
        if assignment.text is None and not near:
            # Not shown: it may be the second half of a password with a blank in it.
            raise origin.error(
                f"unknown word without a value {origin.where}", hint="put a value with blanks into double quotes"
            )
        hint = f'did you mean "{near}"?' if near else ""
        raise origin.error(f'unknown parameter "{assignment.name}" {origin.where}', hint=hint)
    if not origin.place & parameter.places:
        places = " or ".join(name for place, name in _PLACE_NAMES.items() if place in parameter.places)
        raise origin.error(f"{assignment.name} is not allowed {origin.where}, only in {places}")
    if origin.place is Place.CLI and carries_password(parameter, assignment.text):
        raise origin.error(
            f"{assignment.name} must not hold a password {origin.where}, where others can read it",
            hint="name a passfile in it",
        )
    if assignment.text is None and not is_bare_allowed(parameter):
        raise origin.error(f"{assignment.name} needs a value {origin.where}")
    text = "yes" if assignment.text is None else assignment.text
    try:
        return _Checked(parameter, assignment, parse_value(parameter, text))
    except Unacceptable as error:
        raise origin.error(
            f"{assignment.name} must be {error}, found {shown(parameter, text)} {origin.where}"
        ) from None


def _cluster(checked: Iterable[_Checked]) -> str | None:
    """Return the ``cluster_id`` of highest precedence; None when there is none."""
    named = [one for one in checked if one.parameter.name == "cluster_id"]
    return max(named, key=lambda one: one.rank).value if named else None


def _check_cluster_id(checked: Iterable[_Checked], cluster: str | None) -> None:
    """Raise SettingsError when the section of one cluster calls it by another name."""
    for one in checked:
        if one.rank is Rank.CLUSTER and one.parameter.name == "cluster_id" and one.value != cluster:
            raise SettingsError(f"cluster_id must be {cluster} in the section of that cluster, found {one}")


def _contradiction(first: _Checked, second: _Checked) -> PgkeepError:
    message = f"{first.parameter.name} has two values: {first}, and {second}"
    return second.assignment.origin.error(message, hint="leave one of them")


def _exposed(given: Iterable[_Checked]) -> list[str]:
    """Return a warning for each secret that stands where the catalog keeps it."""
    kept = Place.PLUGIN_LINE | Place.RESTORE
    return [
        f"{one.assignment.name} holds a password {one.assignment.origin.where}, which Bacula's catalog keeps: "
        "use a pgpass file or the configuration file"
        for one in given
        if one.rank >= Rank.LINE
        and one.assignment.origin.place & kept
        and carries_password(one.parameter, one.assignment.text)
    ]
