"""What a fenced server preloads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgkeep.pg.preloaded import FencedLibraries, fence_libraries, parse_library_list, render_library_list
from tests.lab.cluster import Cluster


def test_libraries_that_act_by_themselves_are_left_out() -> None:
    """Wherever they are; what is not known stays, since WAL may need it; nothing is set when nothing changes."""
    assert fence_libraries("") == FencedLibraries((), {})
    assert fence_libraries("pg_stat_statements, auto_explain") == FencedLibraries((), {})
    assert fence_libraries('pg_stat_statements, "$libdir/pg_cron.so",own_wal') == FencedLibraries(
        ("$libdir/pg_cron.so",), {"shared_preload_libraries": '"pg_stat_statements", "own_wal"'}
    )
    assert fence_libraries("/opt/pg/pglogical") == FencedLibraries(
        ("/opt/pg/pglogical",), {"shared_preload_libraries": ""}
    )


def test_a_library_that_sql_needs_is_loaded_with_its_brakes_on() -> None:
    """Nobody could read a hypertable without it."""
    libraries = fence_libraries("timescaledb, pg_cron")
    assert libraries.left_out == ("pg_cron",)
    assert libraries.settings == {
        "shared_preload_libraries": '"timescaledb"',
        "timescaledb.max_background_workers": "0",
        "timescaledb.telemetry_level": "off",
    }


@given(st.lists(st.text(min_size=1)))
def test_a_list_is_read_as_it_is_written(elements: list[str]) -> None:
    """Whatever the names hold."""
    assert parse_library_list(render_library_list(elements)) == elements


@given(st.text())
def test_any_text_is_a_list(text: str) -> None:
    """One that the server would refuse stays what it is, so that the server refuses it."""
    assert isinstance(fence_libraries(text), FencedLibraries)


def test_a_list_that_the_server_wrote(shared_cluster: Cluster) -> None:
    """Names with commas, quotes and blanks, quoted by the server itself."""
    shared_cluster.sql("CREATE DATABASE preloaded")
    shared_cluster.sql("""ALTER DATABASE preloaded SET session_preload_libraries = 'a', 'b, c', 'quo"te', 'd e'""")
    [text] = shared_cluster.value(
        "SELECT setconfig FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase WHERE datname = 'preloaded'"
    )
    shared_cluster.sql("DROP DATABASE preloaded")
    assert parse_library_list(text.partition("=")[2]) == ["a", "b, c", 'quo"te', "d e"]
