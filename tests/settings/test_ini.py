"""The configuration file: form, damage, protection."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import SettingsError
from pgkeep.settings import Rank, parse_config, profile_path, read_config, read_profile, resolve

SAMPLE = """\
\ufeff# a comment
; another
[connection]
host = /var/run/postgresql
  Port=5433
password = "a # b; \\"c\\" \\\\"
; trailing comment

[ options ]
role = admin # not a comment

[cluster:billing]
port = 5434
database = a b, c
[cluster:empty]
"""


def pairs(text: str, cluster: str | None = None) -> list[tuple[str, str | None, Rank]]:
    """Return name, text and rank of what *text* assigns."""
    return [(a.name, a.text, a.origin.rank) for a in parse_config(text, "x.conf").assignments(cluster)]


def test_file_is_read() -> None:
    """Sections, comments, quotes and blanks are read as the manual says."""
    shared = [
        ("host", "/var/run/postgresql", Rank.OPTIONS),
        ("Port", "5433", Rank.OPTIONS),
        ("password", 'a # b; "c" \\', Rank.OPTIONS),
        ("role", "admin # not a comment", Rank.OPTIONS),
    ]
    billing = [("port", "5434", Rank.CLUSTER), ("database", "a b, c", Rank.CLUSTER)]
    assert pairs(SAMPLE) == pairs(SAMPLE, "other") == pairs(SAMPLE, "empty") == shared
    assert pairs(SAMPLE, "billing") == shared + billing


def test_windows_line_ends_are_read() -> None:
    """A file that was edited elsewhere has the same meaning."""
    assert pairs(SAMPLE.replace("\n", "\r\n"), "billing") == pairs(SAMPLE, "billing")


def test_assignment_knows_its_line() -> None:
    """An error can name file and line."""
    wheres = [a.origin.where for a in parse_config(SAMPLE, "/etc/x.conf").assignments("billing")]
    assert wheres[0] == "in /etc/x.conf, line 4"
    assert wheres[-1] == "in /etc/x.conf, line 14"


DAMAGED = [
    ("port = 1\n", "a section must come before the first parameter in x.conf, line 1"),
    ("[connection]\n\nport\n", "line must be a section, a comment or name = value in x.conf, line 3"),
    ("[connection]\n= x\n", "line must be a section, a comment or name = value in x.conf, line 2"),
    ("[connection]\npo rt = x\n", "line must be a section, a comment or name = value in x.conf, line 2"),
    (
        "[server]\n",
        "section must be [connection], [options] or [cluster:<id>], found [server] in x.conf, line 1",
    ),
    (
        "[connection\n",
        "section must be [connection], [options] or [cluster:<id>], found [connection in x.conf, line 1",
    ),
    (
        "[cluster:../x]\n",
        "section must be [connection], [options] or [cluster:<id>], found [cluster:../x] in x.conf, line 1",
    ),
    (
        "[restore]\n",
        "section must be [connection], [options] or [cluster:<id>], found [restore] in x.conf, line 1",
    ),
    (
        "[options]\nrole = x\n[options]\n",
        "section [options] stands twice in x.conf, line 3: first at line 1",
    ),
    (
        '[connection]\npassword = "hunter2\n',
        "value of password must end with the double quote that it begins with in x.conf, line 2",
    ),
    (
        '[connection]\npassword = "hunter2" x\n',
        "value of password must end with the double quote that it begins with in x.conf, line 2",
    ),
]


@pytest.mark.parametrize(("text", "message"), DAMAGED)
def test_damaged_file_is_refused(text: str, message: str) -> None:
    """A malformed file is refused with the line, and no value in the message."""
    with pytest.raises(SettingsError) as caught:
        parse_config(text, "x.conf")
    assert str(caught.value) == message
    assert "hunter2" not in message


@given(st.text(max_size=200) | st.text('[connecti]=";\\ \n', max_size=60))
def test_any_text_is_a_file_or_refused(text: str) -> None:
    """Any text is taken apart, or refused with a SettingsError."""
    with contextlib.suppress(SettingsError):
        parse_config(text, "x.conf")


@given(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=40))
def test_quoted_value_survives(value: str) -> None:
    """Any value of one line, in double quotes, comes back."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert pairs(f'[connection]\npassword = "{quoted}"') == [("password", value, Rank.OPTIONS)]


def written(directory: Path, text: str, mode: int) -> str:
    """Return the path of a file with *text* and *mode*."""
    path = directory / "pgkeep.conf"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


PASSWORD = "[cluster:a]\ndb_password = hunter2\n"
PROTECTION = [
    ("[options]\nrole = x\n", 0o644, ""),
    ("[connection]\npassword =\n", 0o644, ""),
    ("[connection]\n#password = x\n", 0o644, ""),
    (PASSWORD, 0o640, ""),
    (PASSWORD, 0o600, ""),
    (PASSWORD, 0o644, "holds a password and must not be readable by others, found mode 0644"),
    (PASSWORD, 0o604, "holds a password and must not be readable by others, found mode 0604"),
    ("[options]\n", 0o660, "must not be writable by group or others, found mode 0660"),
    ("[options]\n", 0o602, "must not be writable by group or others, found mode 0602"),
    ("[options]\nprimary_conninfo = host=a user=b\n", 0o644, ""),
    (
        "[options]\nprimary_conninfo = host=a password=hunter2\n",
        0o644,
        "holds a password and must not be readable by others, found mode 0644",
    ),
    (
        "[options]\nprimary_conninfo = postgresql://u:hunter2@a/\n",
        0o644,
        "holds a password and must not be readable by others, found mode 0644",
    ),
]


@pytest.mark.parametrize(("text", "mode", "problem"), PROTECTION)
def test_exposed_file_is_refused(tmp_path: Path, text: str, mode: int, problem: str) -> None:
    """A file that others may change, or whose password others may read, is refused; any other is read."""
    path = written(tmp_path, text, mode)
    if not problem:
        assert read_config(path).path == path
        return
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path} {problem}"
    assert "chmod" in caught.value.hint


def test_named_file_must_exist(tmp_path: Path) -> None:
    """A named file that is absent is an error, and its name is in the message."""
    path = str(tmp_path / "none.conf")
    with pytest.raises(SettingsError) as caught:
        read_config(path)
    assert str(caught.value) == f"cannot read {path}: no such file or directory"


def test_odd_files_are_refused(tmp_path: Path) -> None:
    """A directory, a FIFO, a file that is not UTF-8 and one without end are errors, not waits."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    binary = tmp_path / "binary"
    binary.write_bytes(b"[options]\nrole = \xff\n")
    for path, problem in (
        (tmp_path, f"cannot read {tmp_path}: is a directory"),
        (fifo, f"{fifo} must be a regular file"),
        (binary, f"{binary} must be UTF-8, found another byte at offset 17"),
        (Path("/dev/zero"), "/dev/zero must be a regular file"),
        (
            Path(written(tmp_path, "#" * (1 << 20) + "\n", 0o600)),
            f"{tmp_path}/pgkeep.conf must have at most 1048576 bytes",
        ),
    ):
        with pytest.raises(SettingsError) as caught:
            read_config(str(path))
        assert str(caught.value) == problem


def test_profiles_stand_beside_the_configuration_file() -> None:
    """A profile is found by its name alone."""
    assert (
        profile_path(parse_config("", "/opt/bacula/etc/pgkeep.conf"), "drill") == "/opt/bacula/etc/restore.d/drill.conf"
    )


def test_profile_has_one_section(tmp_path: Path) -> None:
    """A restore profile gives restore options, and may hold the password that no other restore option may."""
    path = written(tmp_path, "[restore]\npgdata_dir = /srv/drill\npassword = hunter2\n", 0o640)
    resolved = resolve(read_profile(path).assignments(None), verb="restore")
    assert resolved.text("pgdata_dir") == "/srv/drill"
    assert resolved.text("password") == "hunter2"
    assert resolved.origin("pgdata_dir").rank is Rank.PROFILE
    with pytest.raises(SettingsError, match=r"^section must be \[restore\], found \[options\] in "):
        read_profile(written(tmp_path, "[options]\n", 0o640))
    with pytest.raises(SettingsError, match=r"^allow_restore is not allowed in .*, only in the configuration file$"):
        resolve(read_profile(written(tmp_path, "[restore]\nallow_restore = yes\n", 0o640)).profile, verb="restore")
