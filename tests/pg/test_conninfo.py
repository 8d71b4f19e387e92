"""Connection strings: taken apart as libpq does it, and freed of what nobody may know."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from pgkeep.errors import FormatError
from pgkeep.pg.conninfo import is_secret, parse_conninfo, render_conninfo, without_secrets

STRINGS = [
    "",
    "host=db1 dbname=shop",
    "  host = db1   port=5433 ",
    r"host='a b' user=it\'s dbname='x\\y'",
    r"user='' password='it\'s  =secret' host=db1",
    "password=geheim\thost=db1\napplication_name='x'",
    "postgresql://",
    "postgres://db1",
    "postgresql://me:geheim@db1:5433/shop?sslmode=require&application_name=a%20b",
    "postgresql://me@[::1]:5433,db2:5434/shop",
    "postgresql:///shop?host=/run/postgresql&password=ge%26heim",
    "postgresql://db1/shop?sslpassword=x",
    "postgresql://me:a%3Ab%40c@db1",
]
BROKEN = [
    ("host", "a keyword without a value"),
    ("host= x =y", "a keyword without a value"),
    ("password='geheim", "a quoted value has no end"),
    ("postgresql://db1/x?password", "a parameter of the URI cannot be read"),
    ("postgresql://me:%gg@db1", "a percent sign in the URI that begins no letter"),
    ("postgresql://[::1", "a host in the URI cannot be read"),
]


@pytest.mark.parametrize("text", STRINGS)
def test_strings_mean_what_libpq_takes_them_for(text: str) -> None:
    """Keywords and values are those of libpq itself, before and after they were written anew."""
    expected = conninfo_to_dict(text)
    assert dict(parse_conninfo(text)) == expected
    assert conninfo_to_dict(render_conninfo(parse_conninfo(text))) == expected


@pytest.mark.parametrize("text", STRINGS)
def test_no_secret_stays(text: str) -> None:
    """What is left is all but the passwords, and whether there was one is told."""
    expected = conninfo_to_dict(text)
    public = {keyword: value for keyword, value in expected.items() if keyword not in ("password", "sslpassword")}
    masked, had_password = without_secrets(text)
    assert conninfo_to_dict(masked) == public
    assert had_password == (public != expected)


@pytest.mark.parametrize(("text", "problem"), BROKEN)
def test_what_libpq_refuses_is_refused_without_a_word_of_it(text: str, problem: str) -> None:
    """The message for a string that cannot be read repeats nothing of it."""
    with pytest.raises(FormatError) as caught:
        parse_conninfo(text)
    assert str(caught.value) == f"not a connection string: {problem}"


def test_keywords_of_newer_servers_are_kept() -> None:
    """A keyword that no libpq here knows stays, unless its name says that it is a secret."""
    text = "host=db1 new_thing=5 oauth_client_secret=x scram_client_key=y passfile=/etc/pgpass sslkey=/etc/key"
    assert without_secrets(text) == ("host=db1 new_thing=5 passfile=/etc/pgpass sslkey=/etc/key", True)
    assert not is_secret("passfile")


@given(
    st.lists(
        st.tuples(
            st.from_regex("[a-z_]{1,9}", fullmatch=True),
            st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])),
        )
    )
)
def test_rendered_strings_are_read_back(words: list[tuple[str, str]]) -> None:
    """parse(render(x)) == x, whatever the values hold."""
    assert parse_conninfo(render_conninfo(words)) == words


@given(st.text())
def test_any_text_is_a_value_or_an_error(text: str) -> None:
    """No text ends otherwise than in words or in the format's own error."""
    for candidate in (text, f"postgresql://{text}"):
        try:
            words = parse_conninfo(candidate)
        except FormatError:
            continue
        assert all(keyword for keyword, _ in words)
