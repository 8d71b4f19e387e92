"""What is read out of a server's notices about damaged pages, whatever its language."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pgkeep.server.checksum_notices import ChecksumNotices, DamagedFile


@dataclass
class FakeNotice:
    message_primary: str | None
    source_file: str | None = "basebackup.c"


def taken(*texts: str) -> ChecksumNotices:
    """Return notices that have taken *texts*."""
    notices = ChecksumNotices()
    for text in texts:
        notices.take(FakeNotice(text))
    return notices


def test_pages_of_a_file_are_gathered() -> None:
    """The pages of one file stand together; its total counts those that the server did not name."""
    notices = taken(
        'checksum verification failed in file "./base/5/16385", block 7: calculated 1F2E but expected AB',
        'checksum verification failed in file "./base/5/16385", block 3: calculated 1234 but expected 5678',
        'further checksum verification failures in file "./base/5/16385" will not be reported',
        'file "./base/5/16385" has a total of 12 checksum verification failures',
        'checksum verification failed in file "./global/1262", block 0: calculated 0 but expected FFFF',
        "13 total checksum verification failures",
    )
    assert notices.damaged({}) == (DamagedFile("base/5/16385", (3, 7), 12), DamagedFile("global/1262", (0,), 1))
    assert notices.others() == (
        'further checksum verification failures in file "./base/5/16385" will not be reported',
        "13 total checksum verification failures",
    )


def test_path_in_a_tablespace_is_relative() -> None:
    """A path below a tablespace's location becomes one below pg_tblspc."""
    notices = taken(
        'checksum verification failed in file "/space 2/PG_15_202209061/5/16400", block 1: calculated A but expected B'
    )
    assert notices.damaged({"": 0, "/space": 1, "/space 2": 16390}) == (
        DamagedFile("pg_tblspc/16390/PG_15_202209061/5/16400", (1,), 1),
    )


@pytest.mark.parametrize(
    "text",
    [
        "Prüfsummenprüfung fehlgeschlagen in Datei »./base/5/16385«, Block 7: berechnet 1F2E, aber erwartet AB",
        "échec de la vérification dans le fichier « ./base/5/16385 », bloc 7 : calculé 1F2E, mais attendu AB",
        'ファイル"./base/5/16385"のブロック7でチェックサム検証が失敗しました: 計算値 1F2E、期待値 AB',
    ],
)
def test_language_does_not_matter(text: str) -> None:
    """Path and block are found in any language."""
    assert [(file.path, file.blocks) for file in taken(text).damaged({})] == [("base/5/16385", (7,))]


def test_cut_file_is_no_damage() -> None:
    """A file that was cut in the middle of a page while it was read is remarked, not damaged."""
    text = 'could not verify checksum in file "./base/5/16385", block 7: read buffer size 512 and page size 8192 differ'
    assert taken(text).damaged({}) == ()
    assert taken(text).others() == (text,)


def test_other_sources_are_left_alone() -> None:
    """A notice from elsewhere in the server is no damage, whatever it says."""
    notices = ChecksumNotices()
    notices.take(FakeNotice('file "a/b" has 5', source_file="xlog.c"))
    notices.take(FakeNotice(None, source_file=None))
    assert notices.damaged({}) == ()
    assert notices.others() == ('file "a/b" has 5', "")
