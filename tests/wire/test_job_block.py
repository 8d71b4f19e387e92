"""The blocks that open a conversation."""

from __future__ import annotations

import pytest

from pgkeep.errors import WireError
from pgkeep.wire.job_block import Hello, JobBlock, parse_hello, parse_job_block

LEAST = ["Name=Nightly.2026-11-20_21.56.35_03", "Type=B"]


def test_hello_tells_pgkeeps_bridge_from_others() -> None:
    """Only pgkeep's own name with its own number is the extended protocol; all else is plain."""
    assert parse_hello("Hello pgkeep 1001") == Hello("pgkeep", "1001")
    assert parse_hello("Hello pgkeep 1001").is_extended
    assert not parse_hello("Hello kubernetes 3").is_extended
    assert not parse_hello("Hello pgkeep 3").is_extended
    assert not parse_hello("Hello other 1001").is_extended


def test_captured_block_of_a_plain_bridge() -> None:
    """The block that the kubernetes plugin sends is read, with keys that mean nothing to us."""
    block = parse_job_block(
        [
            "Name=Kok.2026-11-20_21.56.35_03",
            "JobID=1",
            "Type=B",
            "Level=F",
            "Namespace=@kubernetes",
            "WorkingDir=/var/lib/bacula",
            "SysconfigPath=/etc/bacula/",
            "ExePath=/usr/sbin/",
        ]
    )
    assert block == JobBlock(
        name="Kok.2026-11-20_21.56.35_03", job_id=1, type="B", level="F", working_directory="/var/lib/bacula"
    )


def test_block_of_pgkeeps_bridge() -> None:
    """Every key of the extended protocol has its place."""
    block = parse_job_block(
        [
            *LEAST,
            "JobID=7",
            "Level=I",
            "Since=1700000000",
            "PrevJobName=Nightly.2026-11-19_21.56.35_03",
            "Accurate=1",
            "FDName=db1-fd",
            "ClientName=db1",
            "FDVersion=15.0.3 (25 March 2025)",
            "Lines=3 2",
            "Run=1795304022088401031",
            "Ring=3 8 1048576",
            "Where=",
            "Replace=a",
        ]
    )
    assert (block.previous, block.has_previous, block.is_accurate) == ("Nightly.2026-11-19_21.56.35_03", True, True)
    assert (block.lines, block.line, block.ring, block.where, block.replace) == (3, 2, "3 8 1048576", "", "a")
    assert (block.fd_name, block.client, block.fd_version) == ("db1-fd", "db1", "15.0.3 (25 March 2025)")
    assert (block.since, block.run) == (1_700_000_000, 1_795_304_022_088_401_031)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Type=B"], "the Job block lacks the key Name"),
        (["Name=x.1"], "the Job block lacks the key Type"),
        ([*LEAST, "Level"], 'a line of the Job block is "key=value", found "Level"'),
        (["Name=x.1", "Type=Z"], 'the job\'s Type is B, R or E, found "Z"'),
        ([*LEAST, "Level=B"], 'the job\'s Level is F, D or I, found "B"'),
        ([*LEAST, "Level=F", "Level=I"], 'the Job block says Level twice, "F" and "I"'),
        ([*LEAST, "JobID=-1"], 'JobID is a number, found "-1"'),
        ([*LEAST, "JobID=٣"], 'JobID is a number, found "٣"'),
        ([*LEAST, "Accurate=yes"], 'Accurate is 0 or 1, found "yes"'),
        ([*LEAST, "Lines=2"], 'Lines is "<number> <index>", found "2"'),
        ([*LEAST, "Lines=2 3"], 'Lines is "<number> <index>", found "2 3"'),
        ([*LEAST, "Replace=x"], 'Replace is one of a, w, o, n, found "x"'),
        (["Name=../../etc/cron.d/x", "Type=B"], 'not the name of a job: "../../etc/cron.d/x"'),
        ([*LEAST, "PrevJobName=.."], 'not the name of a job: ".."'),
    ],
)
def test_damaged_block_is_refused(lines: list[str], message: str) -> None:
    """A block that makes no sense is refused with what was expected and found."""
    with pytest.raises(WireError) as caught:
        parse_job_block(lines)
    assert caught.value.message == message


@pytest.mark.parametrize("text", ["Hello", "Hello pgkeep", "hello pgkeep 1001", "Hello pgkeep 1001 x", ""])
def test_damaged_hello_is_refused(text: str) -> None:
    """Whoever does not greet in order is no bridge."""
    with pytest.raises(WireError) as caught:
        parse_hello(text)
    assert caught.value.message == f'the conversation opens with "Hello <plugin> <api>", found "{text}"'
