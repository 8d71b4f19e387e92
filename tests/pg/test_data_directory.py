from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError
from pgkeep.pg import data_directory as names
from pgkeep.pg.data_directory import Fork, RelationFile


@given(st.integers(1, 2**32 - 1), st.sampled_from(Fork), st.integers(0, 40000))
def test_a_relation_files_name_leads_back_to_it(number: int, fork: Fork, segment: int) -> None:
    """A relation file survives its name."""
    file = RelationFile(number, fork, segment)
    assert names.relation_file(file.name) == file
    assert file.first_block(blocks_per_segment=131072) == segment * 131072


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0",
        "01",
        "4294967296",
        "12345678901",
        "1247.0",
        "1247.01",
        "1247_xyz",
        "1247_init_fsm",
        "1247.1_fsm",
        "t3_1247",
        "pg_filenode.map",
        "PG_VERSION",
        "1247\n",
        "١٢٤٧",
    ],
)
def test_other_names_are_no_relations(name: str) -> None:
    """What the server would not take for a relation is none."""
    assert names.relation_file(name) is None


@given(st.text())
def test_any_name_is_judged(text: str) -> None:
    """No path makes a predicate fail."""
    names.relation_file(text)
    names.is_temporary_relation(text)
    names.is_excluded(text)
    names.page_file(text)
    names.kept_names("base/5", [text])


@pytest.mark.parametrize(
    "path",
    [
        "base/5/1247",
        "base/5/1247.3",
        "base/5/1247_fsm",
        "base/5/16384_init",
        "global/1260_vm",
        "pg_tblspc/16390/PG_18_202506291/5/16384",
        "PG_18_202506291/5/16384",
    ],
)
def test_relations_are_made_of_pages(path: str) -> None:
    """Relation files of databases, of the cluster and of tablespaces carry page checksums."""
    assert names.page_file(path) is not None


@pytest.mark.parametrize(
    "path",
    [
        "1247",
        "base/1247",
        "base/5/PG_VERSION",
        "base/5/pg_filenode.map",
        "base/5/t3_1247",
        "global/pg_control",
        "pg_xact/0000",
        "pg_multixact/offsets/0000",
        "pg_wal/000000010000000000000001",
        "base/pgsql_tmp/1247",
        "my/PG_18_202506291/1247",
    ],
)
def test_other_files_are_not(path: str) -> None:
    """What lies elsewhere carries none, whatever it is called."""
    assert names.page_file(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "postmaster.pid",
        "postmaster.opts",
        "backup_label",
        "backup_label.old",
        "tablespace_map",
        "tablespace_map.old",
        "backup_manifest",
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "recovery.signal",
        "standby.signal",
        "global/pg_internal.init",
        "base/5/pg_internal.init.4711",
        "base/pgsql_tmp",
        "base/pgsql_tmp/pgsql_tmp42.0",
        "pg_tblspc/16390/PG_18_202506291/pgsql_tmp",
        "base/5/t3_1247",
        "base/5/t3_1247_fsm.1",
        "pg_tblspc/16390/PG_18_202506291/5/t30_1247",
        "pg_notify/0000",
        "pg_replslot/mine/state",
        "pg_stat_tmp/global.stat",
        "pg_wal/000000010000000000000001",
        "pg_wal/00000002.history",
        "pg_wal/archive_status/000000010000000000000001.done",
        "pg_wal/summaries/x.summary",
        "pg_wal/other",
        ".DS_Store",
    ],
)
def test_what_a_backup_must_not_hold_is_excluded(path: str) -> None:
    """Files that belong to the running server, to another backup or to nobody are left out."""
    assert names.is_excluded(path)


@pytest.mark.parametrize(
    "path",
    [
        "PG_VERSION",
        "postgresql.conf",
        "postgresql.auto.conf",
        "global/pg_control",
        "base",
        "base/5",
        "base/5/1247",
        "base/5/16384_init",
        "t3_1247",
        "my/t3_1247",
        "pg_notify",
        "pg_wal",
        "pg_wal/archive_status",
        "pg_wal/summaries",
        "pg_xact/0000",
        "pg_stat/pgstat.stat",
        "pg_tblspc/16390",
        "log/postgresql.log",
        "mypgsql_tmp",
        "current_logfiles",
    ],
)
def test_the_rest_is_held(path: str) -> None:
    """Directories held empty are themselves held, and so is everything that no rule names."""
    assert not names.is_excluded(path)


def test_a_moved_statistics_directory_is_held_empty() -> None:
    """Up to 14 the directory of temporary statistics may have another name, which the caller knows."""
    emptied = names.EMPTIED_DIRECTORIES | {"ramdisk"}
    assert not names.is_excluded("ramdisk/db_0.stat")
    assert names.is_excluded("ramdisk/db_0.stat", emptied=emptied)
    assert not names.is_excluded("ramdisk", emptied=emptied)


def test_of_an_unlogged_relation_only_the_init_fork_is_held() -> None:
    """The server rebuilds the other forks from it, all segments of them."""
    listing = [
        "16384",
        "16384.1",
        "16384_fsm",
        "16384_init",
        "16384_vm",
        "16385",
        "16385_fsm",
        "t3_16384",
        "PG_VERSION",
    ]
    assert names.kept_names("base/5", listing) == ["16384_init", "16385", "16385_fsm", "PG_VERSION"]
    assert names.kept_names("my", listing) == sorted(listing)
    assert names.unlogged_numbers(listing) == {16384}


def test_required_directories_come_after_their_parents() -> None:
    """Making them in order never lacks a parent, and those that are emptied are among them."""
    made: set[str] = set()
    for directory in names.REQUIRED_DIRECTORIES:
        parent = directory.rpartition("/")[0]
        assert not parent or parent in made
        made.add(directory)
    assert made >= names.EMPTIED_DIRECTORIES


def test_a_tablespaces_directory_names_its_server() -> None:
    """Major and catalog version survive the directory's name."""
    assert names.tablespace_version_directory(18, 202506291) == "PG_18_202506291"
    assert names.parse_tablespace_version_directory("PG_12_201909212") == (12, 201909212)
    with pytest.raises(FormatError) as caught:
        names.parse_tablespace_version_directory("PG_12")
    assert str(caught.value) == (
        'not a tablespace version directory: expected the like of PG_18_202506291, found "PG_12"'
    )
