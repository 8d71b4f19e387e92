"""Which other files a configuration file takes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.pg.configuration_file import (
    Reference,
    ReferenceKind,
    access_references_of,
    is_included_name,
    references_of,
    settings_of,
)

FILE, OPTIONAL, DIRECTORY = ReferenceKind.FILE, ReferenceKind.OPTIONAL_FILE, ReferenceKind.DIRECTORY


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("include 'a.conf'", [Reference(FILE, "a.conf")]),
        ("  INCLUDE = '/etc/pg/it''s.conf' # why", [Reference(FILE, "/etc/pg/it's.conf")]),
        ("include_if_exists 'local.conf'", [Reference(OPTIONAL, "local.conf")]),
        ("include_dir 'conf.d'", [Reference(DIRECTORY, "conf.d")]),
        ("include_dir=conf.d", [Reference(DIRECTORY, "conf.d")]),
        ("#include_dir = 'conf.d'", []),
        ("include_dir = ''", []),
        ("included = 'x'", []),
        (r"include 'a\040b\'c'", [Reference(FILE, "a b'c")]),
    ],
)
def test_includes(line: str, expected: list[Reference]) -> None:
    """A postgresql.conf takes in files and directories, in quotes or without."""
    assert list(references_of(f"port = 5432\n{line}\nssl = on\n")) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("local @admins all trust", [Reference(FILE, "admins", is_list=True)]),
        (
            'host a,@"two words",b @/etc/pg/users 10.0.0.0/8 scram-sha-256 # @none',
            [Reference(FILE, "two words", is_list=True), Reference(FILE, "/etc/pg/users", is_list=True)],
        ),
        ('host all "@role" 10.0.0.0/8 md5', []),
        ("include more.conf", [Reference(FILE, "more.conf")]),
        ('include_if_exists "x y.conf"', [Reference(OPTIONAL, "x y.conf")]),
        ("include_dir hba.d", [Reference(DIRECTORY, "hba.d")]),
        ("host all all \\\n@list md5", [Reference(FILE, "list", is_list=True)]),
        ("# include more.conf", []),
    ],
)
def test_access_lists(line: str, expected: list[Reference]) -> None:
    """A pg_hba.conf takes in lists of names, and other files from PostgreSQL 16 on."""
    assert list(access_references_of(f"{line}\n")) == expected


def test_a_list_includes_nothing_but_lists() -> None:
    """In a list of names, include is a name."""
    found = list(access_references_of("include x\n@more\n", is_list=True))
    assert found == [Reference(FILE, "more", is_list=True)]


def test_last_setting_counts() -> None:
    """Settings come in the order of the file, names in lower case."""
    text = "Port = 5432\nport 5433 # second\nlog_line_prefix = '%m [%p] '\nbroken =\n"
    assert list(settings_of(text)) == [("port", "5432"), ("port", "5433"), ("log_line_prefix", "%m [%p] ")]


@pytest.mark.parametrize(
    ("name", "expected"), [("a.conf", True), (".a.conf", False), ("a.conf.bak", False), (".conf", False)]
)
def test_names_in_a_directory(name: str, expected: bool) -> None:
    """Of a directory the server takes what ends in .conf, and nothing hidden."""
    assert is_included_name(name) is expected


@given(st.text())
def test_any_text(text: str) -> None:
    """Whatever stands in a file, reading it for references ends well."""
    list(references_of(text))
    list(access_references_of(text))
