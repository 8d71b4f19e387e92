"""Precedence, and what is refused on the way to it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import PgkeepError, SettingsError, UsageError
from pgkeep.settings import (
    BY_NAME,
    COMMAND_LINE,
    PARAMETERS,
    PLUGIN_LINE,
    RESTORE_MENU,
    WHERE,
    Assignment,
    Origin,
    Place,
    Rank,
    Resolved,
    assignments,
    check_config,
    parse_config,
    parse_plugin_line,
    resolve,
)

CONFIG = parse_config(
    """\
[connection]
port = 5431
user = shared
[options]
cluster_id = billing
parallel_jobs = 2
[cluster:billing]
port = 5432
[cluster:sales]
port = 5433
user = sales
[cluster:typo]
prot = 1
port = 99999
""",
    "pgkeep.conf",
)


def from_line(line: str, verb: str = "backup", **arguments: object) -> Resolved:
    """Return the settings of a job with this Plugin line."""
    return resolve(parse_plugin_line(line).assignments(), verb=verb, **arguments)  # type: ignore[arg-type]


RANKS = [
    Origin(Rank.OPTIONS, Place.CONFIG, "in [options]"),
    Origin(Rank.CLUSTER, Place.CONFIG, "in [cluster:x]"),
    Origin(Rank.PROFILE, Place.RESTORE | Place.PROFILE, "in a profile"),
    COMMAND_LINE,
    RESTORE_MENU,
    WHERE,
]


@given(st.permutations(RANKS), st.integers(1, len(RANKS)))
def test_the_higher_place_wins_in_any_order(order: list[Origin], count: int) -> None:
    """Law: the value of the highest place holds, whatever the order in which they were collected."""
    written = [Assignment("port", str(1000 + origin.rank), origin) for origin in order[:count]]
    resolved = resolve(written, verb="restore")
    highest = max(order[:count], key=lambda origin: origin.rank)
    assert resolved.number("port") == 1000 + highest.rank
    assert resolved.origin("port") == highest


@given(
    st.lists(
        st.builds(
            Assignment,
            name=st.sampled_from([name for parameter in PARAMETERS for name in parameter.names]) | st.text(max_size=20),
            text=st.none() | st.text(max_size=20) | st.sampled_from(["yes", "no", "1", "/a", "pitr", "a,b", "10G"]),
            origin=st.sampled_from([*RANKS, PLUGIN_LINE]),
        ),
        max_size=6,
    ),
    st.sampled_from(["backup", "restore", "check", "finish"]),
)
def test_anything_is_resolved_or_refused(written: list[Assignment], verb: str) -> None:
    """Any assignments end in settings or in one of the two errors."""
    with contextlib.suppress(SettingsError, UsageError):
        assert len(list(resolve(written, verb=verb).explain())) == len(PARAMETERS)


def test_default_holds_where_nobody_gives_a_value() -> None:
    """A parameter that nobody gave has the table's default, and says so."""
    resolved = resolve([], verb="backup")
    assert resolved.text("mode") == "dump"
    assert not resolved.is_given("mode")
    assert resolved.origin("mode").where == "by default"


def test_cluster_section_is_chosen_by_cluster_id() -> None:
    """The job's cluster_id chooses the section: from the line, else from the file, unless the door names it."""
    assert from_line("pgkeep: cluster_id=sales", config=CONFIG).number("port") == 5433
    assert from_line("pgkeep:", config=CONFIG).number("port") == 5432
    assert from_line("pgkeep: cluster_id=unknown", config=CONFIG).number("port") == 5431
    assert from_line("pgkeep: cluster_id=sales", config=CONFIG, cluster="billing").number("port") == 5432
    resolved = from_line("pgkeep: cluster_id=sales user=me", config=CONFIG)
    assert (resolved.text("user"), resolved.number("parallel_jobs")) == ("me", 2)


def test_cluster_section_has_no_other_name() -> None:
    """A section must not rename the cluster that it is for."""
    config = parse_config("[cluster:a]\ncluster_id = b\n", "x.conf")
    with pytest.raises(SettingsError) as caught:
        resolve([], verb="backup", config=config, cluster="a")
    assert str(caught.value) == (
        'cluster_id must be a in the section of that cluster, found cluster_id="b" in x.conf, line 2'
    )


def test_other_clusters_mistakes_do_not_stop_a_job_but_check_tells() -> None:
    """A typing error in the section of another cluster is for `check`, not for this job."""
    assert from_line("pgkeep: cluster_id=sales", config=CONFIG).number("port") == 5433
    assert check_config(CONFIG) == [
        'unknown parameter "prot" in pgkeep.conf, line 13',
        'port must be from 1 to 65535, found "99999" in pgkeep.conf, line 14',
    ]


def test_overridden_values_are_checked_too() -> None:
    """A value that loses is still refused when it is wrong."""
    config = parse_config("[connection]\nport = x\n", "x.conf")
    with pytest.raises(SettingsError, match=r"^port must be a whole number from 1 to 65535, found"):
        from_line("pgkeep: port=1", config=config)


def test_empty_text_unsets() -> None:
    """An empty value in a higher place takes back what a lower one set."""
    config = parse_config("[connection]\nrole = admin\n", "x.conf")
    resolved = from_line("pgkeep: role=", config=config)
    assert resolved.text("role") is None
    assert resolved.is_given("role")


REFUSED = [
    (
        "pgkeep: databse=x",
        SettingsError,
        'unknown parameter "databse" in the Plugin line',
        'did you mean "database"?',
    ),
    ("pgkeep: qqqqqq=x", SettingsError, 'unknown parameter "qqqqqq" in the Plugin line', ""),
    (
        "pgkeep: password=my hunter2",
        SettingsError,
        "unknown word without a value in the Plugin line",
        "put a value with blanks into double quotes",
    ),
    (
        "pgkeep: abort_on_eror",
        SettingsError,
        'unknown parameter "abort_on_eror" in the Plugin line',
        'did you mean "abort_on_error"?',
    ),
    ("pgkeep: host", SettingsError, "host needs a value in the Plugin line", ""),
    ("pgkeep: jobs=99", SettingsError, 'jobs must be from 1 to 64, found "99" in the Plugin line', ""),
    (
        "pgkeep: start_fast=perhaps",
        SettingsError,
        'start_fast must be yes or no, found "perhaps" in the Plugin line',
        "",
    ),
    (
        "pgkeep: jobs=2 parallel_jobs=4",
        SettingsError,
        'parallel_jobs has two values: jobs="2" in the Plugin line, and parallel_jobs="4" in the Plugin line',
        "leave one of them",
    ),
    (
        "pgkeep: password=hunter2 db_password=hunter3",
        SettingsError,
        "password has two values: password=*** in the Plugin line, and db_password=*** in the Plugin line",
        "leave one of them",
    ),
    (
        "pgkeep: allow_restore=yes",
        SettingsError,
        "allow_restore is not allowed in the Plugin line, only in the configuration file",
        "",
    ),
    (
        "pgkeep: overwrite_existing",
        SettingsError,
        "overwrite_existing is not allowed in the Plugin line, only in the command line or the restore options",
        "",
    ),
    (
        "pgkeep: password=hunter2\x01",
        SettingsError,
        "password must be one line without control characters, found *** in the Plugin line",
        "",
    ),
]


@pytest.mark.parametrize(("line", "error", "message", "hint"), REFUSED)
def test_what_is_refused(line: str, error: type[PgkeepError], message: str, hint: str) -> None:
    """Each mistake has its message, with expected and found, and never a secret."""
    with pytest.raises(error) as caught:
        from_line(line)
    assert (str(caught.value), caught.value.hint) == (message, hint)
    assert "hunter" not in message + hint


def test_one_value_under_two_names_is_fine() -> None:
    """An alias beside the canonical name is accepted when the values are the same, however they are spelled."""
    resolved = from_line("pgkeep: connection_timeout=60 connect_timeout=1min include_blobs include_blobs=yes")
    assert resolved.number("connection_timeout") == 60


def test_contradictions_of_lower_places_count() -> None:
    """Two values in one file are an error even when the Plugin line overrides both."""
    config = parse_config("[connection]\nport = 1\n[options]\ndb_port = 2\n", "x.conf")
    with pytest.raises(SettingsError) as caught:
        from_line("pgkeep: port=3", config=config)
    assert str(caught.value) == 'port has two values: port="1" in x.conf, line 2, and db_port="2" in x.conf, line 4'


@pytest.mark.parametrize(("origin", "error"), [(COMMAND_LINE, UsageError), (RESTORE_MENU, UsageError)])
def test_mistakes_just_typed_are_usage_errors(origin: Origin, error: type[PgkeepError]) -> None:
    """What was typed for this call is a usage error, what stands in a file a settings error."""
    with pytest.raises(error):
        resolve([Assignment("port", "x", origin)], verb="restore")


def test_no_password_on_the_command_line() -> None:
    """A connection string with a password is refused where the process list would show it."""
    written = assignments({"primary_conninfo": "host=a password=hunter2"}, COMMAND_LINE)
    with pytest.raises(UsageError) as caught:
        resolve(written, verb="restore")
    assert str(caught.value) == (
        "primary_conninfo must not hold a password on the command line, where others can read it"
    )
    harmless = assignments({"primary_conninfo": "host=a passfile=/etc/p"}, COMMAND_LINE)
    assert resolve(harmless, verb="restore").text("primary_conninfo") == "host=a passfile=/etc/p"


def test_password_in_the_catalog_is_warned_of() -> None:
    """A password in the Plugin line works and gives a warning that does not contain it."""
    resolved = from_line("pgkeep: password=hunter2")
    assert resolved.text("password") == "hunter2"
    assert resolved.warnings == (
        (
            "password holds a password in the Plugin line, which Bacula's catalog keeps: "
            "use a pgpass file or the configuration file"
        ),
    )


def test_secrets_are_not_shown() -> None:
    """Neither repr nor the explained settings nor what is handed on contain a password."""
    resolved = from_line("pgkeep: password=hunter2 port=1")
    line = parse_plugin_line("pgkeep: password=hunter2")
    explained = list(resolved.explain())
    handed_on = resolved.to_assignments(COMMAND_LINE)
    assert "hunter2" not in repr(
        (resolved, line, line.assignments(), explained, handed_on, [a.text for a in handed_on])
    )
    assert ("password", "***", "in the Plugin line") in explained
    assert [a.name for a in handed_on] == ["port"]


def test_require_says_where_to_set_it() -> None:
    """A job that cannot do without a parameter says how to give it."""
    with pytest.raises(UsageError) as caught:
        resolve([], verb="backup").require("vault")
    assert str(caught.value) == "vault is not set"
    assert caught.value.hint == "give --vault, or set vault in [options] of the configuration file"


def test_accessors_hold_the_type() -> None:
    """An accessor of the wrong type is a fault of the caller and says so."""
    resolved = resolve([], verb="backup")
    assert resolved.optional_number("target_xid") is None
    assert resolved.names("database") == ("*",)
    assert resolved.mapping("tablespace_map") == {}
    for accessor in (resolved.number, resolved.flag, resolved.names):
        with pytest.raises(TypeError, match=r"^mode is not "):
            accessor("mode")
    with pytest.raises(TypeError, match=r"^debug is not a text$"):
        resolved.text("debug")
    with pytest.raises(KeyError):
        resolved.get("jobs")
    assert set(BY_NAME) >= set(resolved.given)
