"""What drills have proved, as it is kept in the vault."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.errors import FormatError, VaultError
from pgkeep.vault.proofs import PROOFS_DIRECTORY, Proof, add_proof, newest_proved, read_proofs

PROOF = Proof(
    time="2026-11-20T22:48:00.250000+02:00",
    backup_id="20261120T030000Z-F",
    target="end of the WAL",
    reached_time="2026-11-20T20:47:59+00:00",
    reached_lsn="0/5000028",
    timeline=1,
    result="proved",
)


def changed(**fields: object) -> Proof:
    """Return the proof with other *fields*."""
    return msgspec.structs.replace(PROOF, **fields)


def test_a_proof_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A proof is one JSON file for its owner alone, named by the moment in UTC."""
    path = add_proof(tmp_path, PROOF)
    assert path == tmp_path / "proofs" / "20261120T204800.250000Z.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["result"] == "proved"
    assert read_proofs(tmp_path, warn=pytest.fail) == [PROOF]


def test_the_newest_that_proved_something_counts(tmp_path: Path) -> None:
    """A later failure and offsets change nothing of which point was proved last."""
    first = changed(time="2026-11-20T23:00:00+02:00")
    second = changed(time="2026-11-20T22:00:00+00:00")
    failed = changed(time="2026-11-21T00:00:00+00:00", result="failed", reached_time="", reached_lsn="", timeline=0)
    for proof in (failed, second, first):
        add_proof(tmp_path, proof)
    proofs = read_proofs(tmp_path, warn=pytest.fail)
    assert proofs == [first, second, failed]
    assert newest_proved(proofs) == second
    assert newest_proved([failed]) is None


def test_without_a_drill_nothing_is_proved(tmp_path: Path) -> None:
    """A cluster that no drill ever restored has no proofs."""
    assert read_proofs(tmp_path, warn=pytest.fail) == []
    assert newest_proved([]) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Input data was truncated"),
        (b'{"time": "2026', "Input data was truncated"),
        (b"\xff\xfe", "JSON is malformed: invalid character (byte 0)"),
        (b"[]", "Expected `object`, got `array`"),
        (msgspec.json.encode(PROOF).replace(b'"proved"', b'"perhaps"'), "Invalid enum value 'perhaps' - at `$.result`"),
        (msgspec.json.encode(PROOF).replace(b"22:48:00.250000+02:00", b"22:48:00"), "a time without an offset: "),
        (msgspec.json.encode(PROOF).replace(b"2026-11-20T20", b"2026-13-20T20"), 'not a time: "2026-13-20T20'),
    ],
)
def test_a_damaged_proof_is_told_and_passed_over(tmp_path: Path, content: bytes, reason: str) -> None:
    """A damaged file proves nothing, is named with its fault, and hides none of the others."""
    add_proof(tmp_path, PROOF)
    damaged = tmp_path / PROOFS_DIRECTORY / "20261121T000000.000000Z.json"
    damaged.write_bytes(content)
    warnings: list[str] = []
    assert read_proofs(tmp_path, warn=warnings.append) == [PROOF]
    [warning] = warnings
    assert warning.startswith(f"the proof {damaged} is damaged, and counts for nothing: {reason}")


def test_two_of_one_moment_do_not_hide_each_other(tmp_path: Path) -> None:
    """A proof that is there is never written over."""
    path = add_proof(tmp_path, PROOF)
    with pytest.raises(VaultError) as error:
        add_proof(tmp_path, changed(result="failed"))
    assert error.value.message == f"cannot write {path}: File exists"
    assert read_proofs(tmp_path, warn=pytest.fail) == [PROOF]


def test_a_time_without_an_offset_is_refused(tmp_path: Path) -> None:
    """What could not be read again is not written."""
    with pytest.raises(FormatError) as error:
        add_proof(tmp_path, changed(time="2026-11-20T20:48:00"))
    assert error.value.message == 'a time without an offset: "2026-11-20T20:48:00"'
    assert not (tmp_path / PROOFS_DIRECTORY).exists()


@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_proof_or_a_warning(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever a file holds, the others are read."""
    directory = tmp_path_factory.mktemp("proofs")
    (directory / PROOFS_DIRECTORY).mkdir()
    (directory / PROOFS_DIRECTORY / "x.json").write_bytes(content)
    warnings: list[str] = []
    assert len(read_proofs(directory, warn=warnings.append)) + len(warnings) == 1
