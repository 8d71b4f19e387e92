"""Conversations: literal plain sessions, questions, bad words, secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pgkeep.settings import restore_menu
from tests.bacula_backend.bridge import BACKEND, Bridge, Ended, Job, PlainBridge
from tests.bacula_backend.conftest import Client
from tests.lab.cluster import Cluster
from tests.lab.server_user import server_user

ROOT = "/@postgresql/pitr"
NEWER = (
    "the plugin speaks version 1002 of the protocol, this pgkeep 1001\n"
    "install plugin and backend of the same version of pgkeep"
)


def replay(session: str) -> tuple[list[str], int, str]:
    """
    Send the packets of *session*, one a line, and return those that came back, the exit status and standard error.

    A line is ``type payload``, as in a capture; the newline of a payload is left out.
    """
    data = b""
    for line in filter(None, session.splitlines()):
        kind, _, text = line.strip().partition(" ")
        payload = text.encode() + b"\n" if text else b""
        data += b"%s%06d\n%s" % (kind.encode(), len(payload), payload)
    process = subprocess.Popen(
        BACKEND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        **server_user().popen_arguments(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process, process.stdin as pipe:
        # Open to the end: a closed pipe means that the daemon is gone.
        pipe.write(data)
        pipe.flush()
        rest, stderr = process.stdout.read(), process.stderr.read().decode()
    answers = []
    while rest:
        length = int(rest[1:7])
        answers.append(f"{rest[:1].decode()} {rest[8 : 8 + length].decode().rstrip()}".rstrip())
        rest = rest[8 + length :]
    return answers, process.returncode, stderr


def ended(client: Client, words: str, bridge: type[PlainBridge] = Bridge) -> Job:
    """Return what a job says that fails."""
    job = client.run(words=words, bridge=bridge, counts=False)
    assert job.status != 0
    assert not list(client.state.glob("*.zst"))
    return job


PLAIN_OPENING = """
C Hello kubernetes 3
C Job
C Name=Kok.2026-11-20_21.56.35_03
C JobID=1
C Type={type}
C Level=F
C Namespace=@kubernetes
C WorkingDir=/var/lib/bacula
C SysconfigPath=/etc/bacula/
C ExePath=/usr/sbin/
F
C Params
C host={host}
C port={port}
C user=postgres
C mode=dump
C state_dir={state}
C bin_dir={bin}
"""


def plain_opening(cluster: Cluster, directory: Path, *, kind: str) -> str:
    """Return the opening of a captured plain session, with this server's words."""
    return PLAIN_OPENING.format(
        type=kind,
        host=cluster.socket_directory,
        port=cluster.port,
        state=directory / "state",
        bin=cluster.installation.program("pg_dump").parent,
    )


def test_captured_plain_estimate(client: Client) -> None:
    """A literal estimate session of another plugin gets the literal forms of answers."""
    opening = plain_opening(client.cluster, client.directory, kind="E")
    answers, status, stderr = replay(f"{opening}\nF\nC EstimateStart\nC END\nT")
    assert (status, stderr) == (0, "")
    assert answers[:4] == ["C Hello Bacula", "F", "F", "F"]
    files = [answer for answer in answers if answer.startswith("C FNAME:")]
    assert files == [
        "C FNAME:/@postgresql/dump/globals.sql",
        "C FNAME:/@postgresql/dump/postgres.dump",
        "C FNAME:/@postgresql/dump/template1.dump",
    ]
    at = answers.index(files[1])
    assert answers[at + 1].startswith("C STAT:F ")
    assert answers[at + 2].startswith("C TSTAMP:")
    assert answers[at + 3] == "F"
    assert answers[-2:] == ["F", "F"]


def test_captured_plain_query(client: Client) -> None:
    """A literal query session is answered in raw lines, and ends by T without END."""
    opening = plain_opening(client.cluster, client.directory, kind="E")
    answers, status, stderr = replay(f"{opening}\nC query=version\nF\nC QueryStart\nT")
    assert (status, stderr) == (0, "")
    assert answers[:4] == ["C Hello Bacula", "F", "F", "F"]
    assert answers[4:] == [
        f"D version={client.cluster.installation.version}",
        f"D version_number={client.cluster.value('SHOW server_version_num')}",
        "F",
    ]


def test_captured_plain_backup(client: Client) -> None:
    """A literal backup session of another plugin is answered in packets that plain PTCOMM has."""
    opening = plain_opening(client.cluster, client.directory, kind="B")
    answers, status, stderr = replay(f"{opening}\nF\nC BackupStart\nC END\nT")
    assert (status, stderr) == (0, "")
    assert {answer[0] for answer in answers} <= set("CDFI")
    commands = [answer.partition(":")[0] for answer in answers if answer.startswith("C ")]
    assert set(commands) == {
        "C Hello Bacula", "C FNAME", "C STAT", "C TSTAMP", "C DATA", "C PLUGINOBJ", "C PLUGINOBJ_CAT",
        "C PLUGINOBJ_TYPE", "C PLUGINOBJ_NAME", "C PLUGINOBJ_SRC", "C PLUGINOBJ_UUID", "C PLUGINOBJ_SIZE",
        "C PLUGINOBJ_COUNT", "C PLUGINOBJ_STATUS", "C RESTOREOBJ", "C RESTOREOBJ_LEN",
    }  # fmt: skip
    first = next(number for number, answer in enumerate(answers) if answer.startswith("C FNAME:"))
    assert [answer.partition(":")[0] for answer in answers[first : first + 5]] == [
        "C FNAME", "C STAT", "C TSTAMP", "F", "C DATA",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("session", "message"),
    [
        ("C Hi", 'the conversation opens with "Hello <plugin> <api>", found "Hi"'),
        ("F", "expected a command, found a F packet of 0 bytes"),
        ("C Hello x 3\nC Params", 'expected the Job block, found "Params"'),
        ("C Hello x 3\nC Job\nC Name=x.1\nF", "the Job block lacks the key Type"),
        ("C Hello x 3\nC Job\nD x", "expected a line of the Job block or its end, found a D packet of 2 bytes"),
        ("C Hello x 3\nH", "a H packet came, but the plugin did not agree to pgkeep's extensions"),
        ("C Hello x 3\nC Job\nC Name=x.1\nC Type=B\nC Ring=3 8 1\nF",
         "the Job block has a ring, but the plugin did not agree to pgkeep's extensions"),
        ("C Hello pgkeep 1001\nC Job\nC Name=x.1\nC Type=B\nC Ring=999 8 1\nF",
         "cannot map the ring at descriptor 999: Bad file descriptor"),
        ("C Hello pgkeep 1001\nC Job\nC Name=x.1\nC Type=B\nC Ring=x\nF",
         'the key Ring says "<descriptor> <slots> <slot_bytes>", found "x"'),
        ("C Hello pgkeep 1002", NEWER),
        ("C Hello x 3\nC Job\nC Name=x.1\nC Type=B\nF\nC Params\nF\nC Start",
         'expected one of BackupStart, EstimateStart, ListingStart, QueryStart, RestoreStart, found "Start"'),
    ],
)  # fmt: skip
def test_conversation_out_of_order_is_refused(session: str, message: str) -> None:
    """A bridge that says something else than it should gets an error that names both."""
    answers, status, stderr = replay(session)
    assert (status, stderr) == (10, "")
    assert answers[-1][2:] == message
    assert answers[-1][0] in "AE"


def test_bytes_that_are_no_packet_are_refused() -> None:
    """Rubbish on standard input ends the backend with an error, at once."""
    done = subprocess.run(BACKEND, input=b"GET / HTTP/1.1\r\n\r\n", capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (10, b"")
    assert done.stdout[8:] == b"unknown packet type b'G' in the header b'GET / HT'\n"


def test_backend_takes_no_arguments() -> None:
    """Run by hand, the backend tells its version or what it is for."""
    assert subprocess.run([*BACKEND, "--version"], capture_output=True, check=True).stdout.startswith(
        b"pgkeep-backend "
    )
    done = subprocess.run([*BACKEND, "--help"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("bridge", [Bridge, PlainBridge])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("databse=x", 'unknown parameter "databse" in the Plugin line\ndid you mean "database"?'),
        ("timeout=never", "timeout must be "),
        ("level=full", "level is not allowed in the Plugin line, only in the command line"),
        ("transport=local transport=stream",
         'transport has two values: transport="local" in the Plugin line, and transport="stream" in the Plugin line'),
    ],
)  # fmt: skip
def test_bad_parameter_ends_the_job(client: Client, bridge: type[PlainBridge], words: str, message: str) -> None:
    """A parameter that cannot be is a fatal message, before the server is asked."""
    [said] = ended(client, words, bridge).said("fatal")
    assert said.startswith(message)


def test_wrong_password_is_told_without_it(client: Client) -> None:
    """Neither a password of the Plugin line nor any trace of it is in what the job says."""
    cluster = client.cluster
    cluster.sql("CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'right'")
    cluster.set_hba("local all postgres trust\nhost all keeper 127.0.0.1/32 scram-sha-256\n")
    cluster.reload()
    words = f"mode=dump host=127.0.0.1 port={cluster.port} user=keeper password=hushhush state_dir={client.directory}/s"
    with Bridge() as bridge:
        with pytest.raises(Ended):
            bridge.backup({"Name": client.name()}, words)
        bridge.process.wait(30)
        bridge._reap()
    job = bridge.job
    assert job.status == 4
    [warning] = job.said("warning")
    assert warning.startswith("password holds a password in the Plugin line, which Bacula's catalog keeps: ")
    assert "password authentication failed" in job.said("error")[0]
    assert "hushhush" not in f"{job.messages}{job.stderr}"


def test_no_secret_is_anywhere(client: Client) -> None:
    """With every talkative option on, the password is in no message, file, object or record."""
    cluster = client.cluster
    cluster.sql("CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'hushhush'")
    cluster.set_hba("local all postgres trust\nhost all keeper 127.0.0.1/32 scram-sha-256\n")
    cluster.reload()
    config = client.directory / "pgkeep.conf"
    config.write_text(f"[connection]\nhost = 127.0.0.1\nport = {cluster.port}\nuser = keeper\npassword = hushhush\n")
    config.chmod(0o600)
    os.chown(config, server_user().uid, server_user().gid)
    words = f"mode=dump debug=9 state_dir={client.directory}/s bin_dir={cluster.installation.program('pg_dump').parent}"
    with Bridge(environment={"PGKEEP_CONFIG": str(config)}, keep=lambda name: True) as bridge:
        job = bridge.backup({"Name": client.name()}, words)
    assert (job.status, job.stderr) == (0, "")
    assert any(text.startswith("debug: ") for text in job.said("info"))
    told = f"{job.messages}{job.objects}{job.config}{job.plugin_objects}"
    content = b"".join(file.content or b"" for file in job.files.values())
    assert "hushhush" not in told
    assert b"hushhush" not in content


def test_estimate_has_the_names_of_the_backup(client: Client) -> None:
    """An estimate lists what the backup then sends, with sizes, and begins no backup."""
    # Only what is older than the next checkpoint counts as unchanged.
    client.cluster.sql("CHECKPOINT")
    client.cluster.sql("SELECT pg_sleep(3)")
    with Bridge() as bridge:
        estimate = bridge.estimate({"Level": "F"}, client.line)
    assert estimate.status == 0
    assert "pg_backup_start" not in client.cluster.log_text()
    backup = client.run()
    static = {name for name in backup.files if "/pgdata/base/" in name}
    assert static <= set(estimate.files)
    assert {"/@postgresql/pitr/pgdata/global/pg_control", "/@postgresql/pitr/backup_label"} <= set(estimate.files)
    for name in static:
        if backup.files[name].kind == "F" and "pg_internal" not in name:
            assert estimate.files[name].stated_size == backup.files[name].stated_size
    with Bridge() as bridge:
        changed = bridge.estimate({"Level": "D", "PrevJobName": client.jobs[-1]}, client.line)
    assert sum(file.stated_size for file in changed.files.values()) < sum(
        f.stated_size for f in estimate.files.values()
    )
    assert client.cluster.value("SELECT count(*) FROM pg_replication_slots") == 0


def test_listing_shows_the_server_as_a_tree(client: Client) -> None:
    """.ls shows four directories, and in them what there is."""
    client.cluster.sql('CREATE DATABASE "we/ird"')

    def listing(path: str) -> dict[str, int]:
        with Bridge() as bridge:
            job = bridge.estimate({}, f"{client.line} listing={path}", "ListingStart")
        assert job.status == 0
        return {name: file.stated_size for name, file in job.files.items()}

    assert list(listing("/")) == ["/databases/", "/tablespaces/", "/clusters/", "/slots/"]
    databases = listing("/databases")
    assert list(databases) == [f"/databases/{name}" for name in ("postgres", "template0", "template1", "we%2Fird")]
    assert all(size > 1_000_000 for size in databases.values())
    [cluster] = listing("/clusters/")
    assert next(iter(listing(cluster))) == f"{cluster}postgresql-{client.cluster.installation.version}"
    assert listing("/slots") == {}
    with Bridge() as bridge, pytest.raises(Ended, match="nothing to list at /nowhere"):
        bridge.estimate({}, f"{client.line} listing=/nowhere", "ListingStart")


def test_query_answers_in_lines_and_in_json(client: Client) -> None:
    """.query answers key=value lines, and one JSON document where that is asked for."""
    client.run()

    def query(name: str, kind: type[PlainBridge] = Bridge) -> list[str]:
        with kind() as bridge:
            job = bridge.query(client.line, name)
        assert job.status == 0
        return job.lines

    assert "database=postgres" in query("database")
    assert [one["name"] for one in json.loads(query("json:database")[0])] == ["postgres", "template0", "template1"]
    assert query("slot") == []
    assert [one["job"] for one in json.loads(query("json:recovery_window", PlainBridge)[0])] == [client.jobs[0]]
    with Bridge() as bridge, pytest.raises(Ended, match='unknown parameter "nonsense"'):
        bridge.query(client.line, "nonsense")


def test_options_object_has_the_menu_in_its_order(client: Client) -> None:
    """At a Full the restore menu is declared: items in the order of their numbers, all of them texts."""
    job = client.run()
    text = job.config["RestoreOptions"].decode()
    names = [line.removesuffix("=@STR@") for line in text.splitlines() if line.endswith("=@STR@")]
    assert names == [parameter.menu_name or parameter.name for parameter in restore_menu()]
    assert len(names) <= 64
    assert "password" not in names
    assert text.count("@") == 2 * len(names)
    assert text.startswith("# Plugin configuration file\n# Version 1\nOptPrompt=")
    incremental = client.run("I")
    assert incremental.config == {}


def test_memory_does_not_grow_with_the_files(client: Client) -> None:
    """Ten thousand files and a large one take no more memory than the bound says."""
    data = client.cluster.data_directory / "many"
    data.mkdir()
    for number in range(10_000):
        (data / f"{number}").write_bytes(b"x" * 100)
    with open(data / "large", "wb") as file:
        file.truncate(600 << 20)
    for path in [data, *data.iterdir()]:
        os.chown(path, server_user().uid, server_user().gid)
    for ring in (True, False):
        job = client.run(ring=ring)
        assert job.status == 0
        assert job.files[f"{ROOT}/pgdata/many/large"].size == 600 << 20
        assert 0 < job.max_rss_bytes < 150 << 20
