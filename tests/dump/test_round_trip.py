"""Every format with every compression comes back row for row."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.server.pg_dump import DumpFormat
from pgkeep.streams.compression import Compression
from tests.dump.sample import WEIRD, digests, dump_cluster, hashed_sql, restore_cluster
from tests.lab.cluster import Cluster, MakeCluster

_SAMPLE_PROPERTIES = """
    SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, shobj_description(d.oid, 'pg_database'),
           (SELECT array_agg(setconfig) FROM pg_db_role_setting WHERE setdatabase = d.oid),
           (SELECT array_agg(entry ORDER BY entry::text) FROM unnest(datacl) AS entry)
    FROM pg_database d WHERE datname = %s
"""


@pytest.mark.parametrize("compression", Compression, ids=lambda one: one.value)
@pytest.mark.parametrize("dump_format", DumpFormat, ids=lambda one: one.value)
def test_dump_comes_back(
    *,
    sampled: Cluster,
    sample_digests: dict[str, str],
    bin_dir: Path,
    tmp_path: Path,
    dump_format: DumpFormat,
    compression: Compression,
) -> None:
    """Every format with every compression restores to equal rows, large objects, sequences and settings."""
    backup = dump_cluster(
        sampled,
        bin_dir=bin_dir,
        databases=["app"],
        format=dump_format,
        compression=compression,
        tmpdir=tmp_path,
        jobs=2,
    )
    new = f"back {dump_format.value} {compression.value}"
    try:
        restore_cluster(sampled, backup, bin_dir=bin_dir, databases=("app",), new_database=new, tmpdir=tmp_path, jobs=2)
        assert digests(sampled, new) == sample_digests
        assert sampled.sql(_SAMPLE_PROPERTIES, [new]) == sampled.sql(_SAMPLE_PROPERTIES, ["app"])
    finally:
        sampled.sql(f'DROP DATABASE IF EXISTS "{new}"')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.pg(">=15")
@pytest.mark.parametrize("dump_format", DumpFormat, ids=lambda one: one.value)
def test_partitions_by_hash_of_oids(cluster: Cluster, bin_dir: Path, tmp_path: Path, dump_format: DumpFormat) -> None:
    """Rows that belong to another partition in another database, since their hash is of OIDs, find it there."""
    for dbname in ("hashed", "elsewhere"):
        cluster.sql(f"DROP DATABASE IF EXISTS {dbname}")
    cluster.sql("CREATE DATABASE hashed")
    cluster.sql(hashed_sql("letter[]", "ARRAY[{0}, {0}]"), dbname="hashed")
    backup = dump_cluster(
        cluster, bin_dir=bin_dir, databases=["hashed"], format=dump_format, tmpdir=tmp_path, include_globals=False
    )
    restore_cluster(
        cluster, backup, bin_dir=bin_dir, databases=("hashed",), new_database="elsewhere", tmpdir=tmp_path, jobs=2
    )
    for table in ("hashed", "ranged"):
        query = f"SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM {table} AS t"
        assert cluster.sql(query, dbname="elsewhere") == cluster.sql(query, dbname="hashed")


def test_name_that_needs_encoding(
    sampled: Cluster, sample_digests: dict[str, str], bin_dir: Path, make_cluster: MakeCluster
) -> None:
    """A database called we/ird "näme" stands under one path component and comes back under its own name."""
    backup = dump_cluster(sampled, bin_dir=bin_dir, databases=[WEIRD], include_globals=False)
    assert backup.files == ["@postgresql/dump/we%2Fird%20%22näme%22.dump"]
    other = make_cluster("other", major=sampled.major)
    restore_cluster(other, backup, bin_dir=bin_dir)
    assert digests(other, WEIRD) == sample_digests


def test_whole_cluster_into_a_new_one(sampled: Cluster, bin_dir: Path, make_cluster: MakeCluster) -> None:
    """All databases and the globals of a cluster come back in a new cluster, roles and their passwords included."""
    sampled.sql("CREATE ROLE \"Ow ner\" LOGIN PASSWORD 'geheim' CONNECTION LIMIT 7")
    sampled.sql('CREATE DATABASE owned OWNER "Ow ner"')
    sampled.sql('CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t OWNER TO "Ow ner"', dbname="owned")
    sampled.sql("GRANT CONNECT ON DATABASE owned TO pg_monitor; REVOKE CONNECT ON DATABASE owned FROM PUBLIC")
    sampled.sql('REVOKE TEMPORARY ON DATABASE owned FROM "Ow ner"')
    sampled.sql("ALTER ROLE \"Ow ner\" IN DATABASE owned SET work_mem TO '7MB'")
    try:
        backup = dump_cluster(sampled, bin_dir=bin_dir)
        assert [name.rpartition("/")[2] for name in backup.files] == [
            "globals.sql",
            "app.dump",
            "owned.dump",
            "postgres.dump",
            "template1.dump",
            "we%2Fird%20%22näme%22.dump",
        ]
        new = make_cluster("new", major=sampled.major)
        _, said, warned = restore_cluster(new, backup, bin_dir=bin_dir, include_globals=True)
        assert warned == []
        assert said[0] == "globals: restored, 1 roles and tablespaces existed already"
        for dbname in ("app", "owned", WEIRD):
            assert digests(new, dbname) == digests(sampled, dbname)
        password = "SELECT rolpassword, rolconnlimit FROM pg_authid WHERE rolname = 'Ow ner'"
        assert new.sql(password) == sampled.sql(password)
        assert new.sql(_SAMPLE_PROPERTIES, ["owned"]) == sampled.sql(_SAMPLE_PROPERTIES, ["owned"])
        assert new.value("SELECT tableowner FROM pg_tables WHERE tablename = 't'", dbname="owned") == "Ow ner"
        assert new.sql("SELECT datname FROM pg_database WHERE datname LIKE 'pgkeep%%'") == []
    finally:
        sampled.sql("DROP DATABASE owned")
        sampled.sql('DROP ROLE "Ow ner"')


def test_overwritten_database_is_kept_aside(sampled: Cluster, sample_digests: dict[str, str], bin_dir: Path) -> None:
    """An existing database is renamed, never dropped, when it is to be overwritten; an empty one is just replaced."""
    backup = dump_cluster(sampled, bin_dir=bin_dir, databases=["app"])
    sampled.sql("CREATE DATABASE again")
    restore_cluster(sampled, backup, bin_dir=bin_dir, new_database="again")
    assert digests(sampled, "again") == sample_digests
    sampled.sql("CREATE TABLE precious AS SELECT 42 AS answer", dbname="again")
    _, said, _ = restore_cluster(sampled, backup, bin_dir=bin_dir, new_database="again", overwrite_existing=True)
    [(aside,)] = sampled.sql("SELECT datname FROM pg_database WHERE datname LIKE 'again.before-%%'")
    try:
        assert said == [f'database "again": restored; what was there is now "{aside}": drop it when it is not needed']
        assert digests(sampled, "again") == sample_digests
        assert sampled.value("SELECT answer FROM precious", dbname=aside) == 42
    finally:
        sampled.sql(f'DROP DATABASE "{aside}"')
        sampled.sql("DROP DATABASE again")


def test_empty_target_decides_encoding_and_owner(sampled: Cluster, bin_dir: Path) -> None:
    """An empty database made beforehand keeps its encoding and its settings when a dump takes its place."""
    backup = dump_cluster(sampled, bin_dir=bin_dir, databases=["app"])
    sampled.sql("CREATE DATABASE made TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'")
    sampled.sql("ALTER DATABASE made SET work_mem TO '9MB'")
    try:
        restore_cluster(sampled, backup, bin_dir=bin_dir, new_database="made")
        assert sampled.value("SELECT datcollate FROM pg_database WHERE datname = 'made'") == "C.UTF-8"
        assert sampled.value("SELECT current_setting('work_mem')", dbname="made") == "9MB"
        assert sampled.value("SELECT count(*) FROM account", dbname="made") == 4000
    finally:
        sampled.sql("DROP DATABASE made")


def locale_comes_back(cluster: Cluster, bin_dir: Path, created_with: str) -> None:
    """Make a database with *created_with*, and check that its copy is equal in ``pg_database``."""
    cluster.sql(f"CREATE DATABASE local TEMPLATE template0 {created_with}")
    try:
        cluster.sql("CREATE TABLE t AS SELECT 'z' AS a", dbname="local")
        backup = dump_cluster(cluster, bin_dir=bin_dir, databases=["local"], include_globals=False)
        restore_cluster(cluster, backup, bin_dir=bin_dir, new_database="back")
        row = "SELECT to_jsonb(d) - ARRAY['oid', 'datname', 'datfrozenxid', 'datminmxid'] FROM pg_database d"
        assert cluster.sql(f"{row} WHERE datname = 'back'") == cluster.sql(f"{row} WHERE datname = 'local'")
        assert cluster.value("SELECT a FROM t", dbname="back") == "z"
    finally:
        cluster.sql("DROP DATABASE IF EXISTS back")
        cluster.sql("DROP DATABASE local")


def test_encoding_comes_back(sampled: Cluster, bin_dir: Path) -> None:
    """A database in another encoding comes back in it."""
    locale_comes_back(sampled, bin_dir, "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'")


@pytest.mark.pg(">=15, <18")  # 18's wheel is built without ICU
def test_icu_locale_comes_back(sampled: Cluster, bin_dir: Path) -> None:
    """A database that ICU collates comes back so."""
    locale_comes_back(sampled, bin_dir, "LOCALE_PROVIDER icu ICU_LOCALE 'de-AT' LOCALE 'C'")


@pytest.mark.pg(">=16, <18")
def test_icu_rules_come_back(sampled: Cluster, bin_dir: Path) -> None:
    """A database with collation rules of its own comes back with them."""
    locale_comes_back(sampled, bin_dir, "LOCALE_PROVIDER icu ICU_LOCALE 'und' ICU_RULES '&a < g' LOCALE 'C'")


@pytest.mark.pg(">=17")
def test_builtin_locale_comes_back(sampled: Cluster, bin_dir: Path) -> None:
    """A database with the builtin provider comes back with it."""
    locale_comes_back(sampled, bin_dir, "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'")
