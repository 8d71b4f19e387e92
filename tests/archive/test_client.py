"""The small client and the service, as the server sees them: exit statuses and files, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from pgkeep.jobs.archive.wal_plan import WalPlan
from pgkeep.wire.archive_packets import Answer, Result
from tests.archive.client import ROOT, Client, build_client, wait_until
from tests.archive.made_wal import MIB, SYSTEM, all_files, made_archive, segment_at, stored_path, wal_of


def _write(client: Client, number: int, *, seed: int = 0, ready: bool = True) -> str:
    """Put segment *number* into pg_wal and return its name."""
    segment = segment_at(number, size=client.archive.segment_size)
    (client.data_directory / "pg_wal" / segment.name).write_bytes(wal_of(segment, seed=seed))
    if ready:
        (client.data_directory / "pg_wal" / "archive_status" / f"{segment.name}.ready").touch()
    return segment.name


def _archive(client: Client, number: int, *, seed: int = 0) -> str:
    segment = segment_at(number, size=client.archive.segment_size)
    client.archive.put(segment.name, [wal_of(segment, seed=seed)])
    return segment.name


def _delivered(client: Client) -> Path:
    return client.data_directory / "pg_wal" / "RECOVERYXLOG"


def _get(client: Client, name: str) -> subprocess.CompletedProcess[str]:
    return client.run("archive-get", name, "pg_wal/RECOVERYXLOG")


@pytest.mark.parametrize("warm", [False, True], ids=["python", "service"])
class TestBothWays:
    """What holds whether the service answers or the Python command does."""

    @pytest.fixture(autouse=True)
    def _start(self, client: Client, warm: bool) -> None:
        if warm:
            client.warm()
            assert client.python_runs() == 1
            self._runs = 1
        else:
            self._runs = 0

    def _check_way(self, client: Client, warm: bool) -> None:
        assert client.python_runs() == self._runs if warm else client.python_runs() > self._runs

    def test_push_is_durable_and_true(self, client: Client, warm: bool) -> None:
        """A pushed segment is in the archive, byte for byte."""
        name = _write(client, 3)
        run = client.run("archive-push", f"pg_wal/{name}")
        assert (run.returncode, run.stderr) == (0, "")
        assert b"".join(bytes(piece) for piece in client.archive.read(name)) == wal_of(segment_at(3))
        self._check_way(client, warm)

    def test_push_of_what_is_held_is_success(self, client: Client, warm: bool) -> None:
        """The same segment again succeeds."""
        name = _write(client, 3)
        for _ in range(2):
            assert client.run("archive-push", f"pg_wal/{name}").returncode == 0
        self._check_way(client, warm)

    def test_push_of_other_content_fails_so_that_the_server_tries_again(self, client: Client, warm: bool) -> None:
        """Other content under a held name is status 5, between 1 and 125."""
        name = _archive(client, 3)
        _write(client, 3, seed=1)
        run = client.run("archive-push", f"pg_wal/{name}")
        assert run.returncode == 5
        assert f"the archive already holds {name} with other content" in run.stderr
        self._check_way(client, warm)

    def test_push_of_a_missing_file_fails(self, client: Client, warm: bool) -> None:
        """A file that is not there is an error below 126."""
        run = client.run("archive-push", "pg_wal/000000010000000000000003")
        assert run.returncode == 5
        assert "No such file or directory" in run.stderr
        self._check_way(client, warm)

    def test_push_from_another_cluster_fails(self, client: Client, warm: bool) -> None:
        """A history file, which does not say whose it is, is refused by the data directory's pg_control."""
        (client.data_directory / "global" / "pg_control").write_bytes((42).to_bytes(8, "little"))
        (client.data_directory / "pg_wal" / "00000002.history").write_bytes(b"1\t0/3000000\tx\n")
        run = client.run("archive-push", "pg_wal/00000002.history")
        assert run.returncode == 5
        assert f"the data directory has system identifier 42, the archive is for {SYSTEM}" in run.stderr

    def test_files_that_wait_are_pushed_ahead(self, client: Client, warm: bool) -> None:
        """One call archives what the server will ask for next, too: the service goes on, Python does one more."""
        names = [_write(client, number) for number in range(3, 9)]
        assert client.run("archive-push", f"pg_wal/{names[0]}").returncode == 0
        wait_until(lambda: all(client.archive.has(name) for name in names[: None if warm else 2]), "pushing ahead")
        for name in names:
            assert client.run("archive-push", f"pg_wal/{name}").returncode == 0
        self._check_way(client, warm)

    def test_file_that_changed_after_it_was_pushed_ahead_is_not_confirmed(self, client: Client, warm: bool) -> None:
        """An answer found ahead of time is not given for another file of that name."""
        names = [_write(client, 3), _write(client, 4)]
        assert client.run("archive-push", f"pg_wal/{names[0]}").returncode == 0
        wait_until(lambda: client.archive.has(names[1]), "pushing ahead")
        (client.data_directory / "pg_wal" / names[1]).unlink()
        _write(client, 4, seed=7)
        assert client.run("archive-push", f"pg_wal/{names[1]}").returncode == 5

    def test_file_removed_from_the_archive_is_pushed_again(self, client: Client, warm: bool) -> None:
        """An answer found ahead of time is not given when the archive no longer holds the file."""
        names = [_write(client, 3), _write(client, 4)]
        assert client.run("archive-push", f"pg_wal/{names[0]}").returncode == 0
        wait_until(lambda: client.archive.has(names[1]), "pushing ahead")
        client.archive.remove(names[1])
        assert client.run("archive-push", f"pg_wal/{names[1]}").returncode == 0
        client.archive.verify(names[1])

    def test_get_delivers(self, client: Client, warm: bool) -> None:
        """A held segment is delivered, in place of what was there."""
        _delivered(client).write_bytes(b"old")
        name = _archive(client, 3)
        run = _get(client, name)
        assert (run.returncode, run.stderr) == (0, "")
        assert _delivered(client).read_bytes() == wal_of(segment_at(3))
        assert _delivered(client).stat().st_mode & 0o777 == (0o640 if _group_access(client) else 0o600)
        self._check_way(client, warm)

    def test_sequence_is_delivered_in_order(self, client: Client, warm: bool) -> None:
        """Each of many segments is the right one, fetched ahead or not."""
        for number in range(3, 12):
            _archive(client, number)
        for number in (*range(3, 12), 5, 4, 11):
            assert _get(client, segment_at(number).name).returncode == 0
            assert _delivered(client).read_bytes() == wal_of(segment_at(number))
        self._check_way(client, warm)
        assert [path.name for path in (client.data_directory / "pg_wal").iterdir() if path.is_file()] == [
            "RECOVERYXLOG"
        ]

    def test_segment_replaced_after_it_was_fetched_ahead_is_read_again(self, client: Client, warm: bool) -> None:
        """What was fetched ahead is not delivered when the archive holds another file by then."""
        for number in range(3, 6):
            _archive(client, number)
        assert _get(client, segment_at(3).name).returncode == 0
        client.archive.remove(segment_at(4).name)
        _archive(client, 4, seed=9)
        assert _get(client, segment_at(4).name).returncode == 0
        assert _delivered(client).read_bytes() == wal_of(segment_at(4), seed=9)
        client.archive.remove(segment_at(5).name)
        assert _get(client, segment_at(5).name).returncode == 1

    def test_segment_archived_later_is_found(self, client: Client, warm: bool) -> None:
        """Absent now is not absent for ever: a standby asks again and again."""
        _archive(client, 3)
        assert _get(client, segment_at(3).name).returncode == 0
        assert _get(client, segment_at(4).name).returncode == 1
        _archive(client, 4)
        assert _get(client, segment_at(4).name).returncode == 0
        assert _delivered(client).read_bytes() == wal_of(segment_at(4))

    @pytest.mark.parametrize("name", ["00000001000000000000000A", "00000002.history"])
    def test_absent_file_is_status_1(self, client: Client, warm: bool, name: str) -> None:
        """A file that is proved absent is status 1, without a word, and leaves the target alone."""
        _delivered(client).write_bytes(b"old")
        run = _get(client, name)
        assert (run.returncode, run.stderr) == (1, "")
        assert _delivered(client).read_bytes() == b"old"
        self._check_way(client, warm)

    def test_damaged_segment_is_above_125(self, client: Client, warm: bool) -> None:
        """A damaged segment stops the recovery."""
        name = _archive(client, 3)
        path = stored_path(client.archive, name)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        run = _get(client, name)
        assert run.returncode == 205
        assert f"the archive's copy of {name} cannot be used" in run.stderr
        assert not _delivered(client).exists()
        self._check_way(client, warm)

    def test_vault_that_is_gone_is_above_125(self, client: Client, warm: bool) -> None:
        """A vault that is not mounted stops the recovery, and fails a push with a status that is tried again."""
        name = _write(client, 3)
        root = client.archive.root.parent
        root.rename(root.with_name("away"))
        for missing in (name, "00000002.history"):
            run = _get(client, missing)
            assert run.returncode == 206
            assert "no WAL archive at" in run.stderr
        assert client.run("archive-push", f"pg_wal/{name}").returncode == 6

    def test_archive_of_another_cluster_is_above_125(self, client: Client, warm: bool) -> None:
        """A data directory of another cluster gets no answer, not even that the file is absent."""
        (client.data_directory / "global" / "pg_control").write_bytes((42).to_bytes(8, "little"))
        assert _get(client, segment_at(3).name).returncode == 205


def _group_access(client: Client) -> bool:
    return (client.data_directory / "pg_wal").stat().st_mode & 0o050 == 0o050


@pytest.mark.parametrize("warm", [False, True], ids=["python", "service"])
class TestPlan:
    """A restore plan tells an accident from the end of the WAL."""

    @pytest.fixture(autouse=True)
    def _plan(self, client: Client, warm: bool, tmp_path: Path) -> None:
        plan = WalPlan(
            SYSTEM,
            MIB,
            needed=((segment_at(3).name, segment_at(6).name),),
            histories=("00000002.history",),
            partials=(segment_at(7).name,),
        )
        plan.write(tmp_path / "plan")
        client.options = [f"--plan={tmp_path / 'plan'}"]
        if warm:
            client.warm()

    def test_hole_inside_the_plan_is_above_125(self, client: Client, warm: bool) -> None:
        """A segment or a history that the plan needs and the archive lacks is an error."""
        for name in (segment_at(4).name, "00000002.history", segment_at(7).name):
            run = _get(client, name)
            assert run.returncode == 205
            assert (
                f"{name} is missing from the archive {client.archive.root}, and the restore plan needs it" in run.stderr
            )

    def test_absence_beyond_the_plan_is_status_1(self, client: Client, warm: bool) -> None:
        """Before, after and beside the plan, absent is absent."""
        others = [segment_at(2), segment_at(8), segment_at(4, timeline=2)]
        for name in (*(segment.name for segment in others), "00000003.history"):
            assert _get(client, name).returncode == 1

    def test_partial_is_delivered_under_the_segments_name(self, client: Client, warm: bool) -> None:
        """Where the plan ends in a partial segment, that is what replay reads."""
        content = wal_of(segment_at(7), used=50_000)
        client.archive.put(f"{segment_at(7).name}.partial", [content])
        assert _get(client, segment_at(7).name).returncode == 0
        assert _delivered(client).read_bytes() == content

    def test_plan_of_another_cluster_is_refused(self, client: Client, warm: bool, tmp_path: Path) -> None:
        """A plan for another system identifier stops the recovery, also when it appears under a running service."""
        _archive(client, 3)
        assert _get(client, segment_at(3).name).returncode == 0
        WalPlan(type(SYSTEM)(42), MIB).write(tmp_path / "plan")
        assert _get(client, segment_at(3).name).returncode == 205
        (tmp_path / "plan").write_text("{")
        assert _get(client, segment_at(3).name).returncode == 211


class TestService:
    def test_killed_service_is_replaced(self, client: Client) -> None:
        """After kill -9 the stale socket does no harm, and the next call starts another service."""
        client.warm()
        client.kill_services()
        assert list(client.runtime.glob("*.socket"))
        name = _archive(client, 3)
        assert _get(client, name).returncode == 0
        wait_until(lambda: bool(client.service_pids()), "the start of another service")
        runs = client.python_runs()

        def is_warm() -> bool:
            nonlocal runs
            before, _ = runs, _get(client, name)
            runs = client.python_runs()
            return runs == before

        wait_until(is_warm, "an answer of the new service")

    def test_hung_service_is_passed_by(self, client: Client) -> None:
        """A service that is stopped does not stop the server: the client does the work by itself."""
        client.warm()
        name = _archive(client, 3)
        (pid,) = client.service_pids()
        os.kill(pid, signal.SIGSTOP)
        assert _get(client, name).returncode == 0
        assert _delivered(client).read_bytes() == wal_of(segment_at(3))
        _delivered(client).write_bytes(b"the server moved on")
        os.kill(pid, signal.SIGCONT)
        client.warm()
        assert _delivered(client).read_bytes() == b"the server moved on"

    def test_service_of_an_older_program_steps_aside(self, client: Client) -> None:
        """When the cluster's file changed under it, the service declines and ends."""
        client.warm()
        runs = client.python_runs()
        os.utime(client.archive.root.parent / "cluster.json", (5, 5))
        name = _archive(client, 3)
        (pid,) = client.service_pids()
        assert _get(client, name).returncode == 0
        assert client.python_runs() == runs + 1
        wait_until(lambda: pid not in client.service_pids(), "the end of the outdated service")

    def test_service_ends_when_idle(self, client: Client) -> None:
        """A service that nobody asks ends by itself and takes its socket with it."""
        client.options = ["--idle=0.1"]
        client.warm()
        wait_until(lambda: not client.service_pids(), "the end of the idle service")
        assert not list(client.runtime.glob("*.socket"))

    def test_service_ends_with_its_vault(self, client: Client) -> None:
        """A service whose vault was removed does not stay behind."""
        client.warm()
        client.archive.root.parent.rename(client.archive.root.parent.with_name("away"))
        wait_until(lambda: not client.service_pids(), "the end of the service without a vault")

    def test_only_one_service_runs(self, client: Client) -> None:
        """Many first calls at once leave one service."""
        clients = [client.begin("archive-get", "00000009.history", f"pg_wal/t{n}") for n in range(6)]
        assert [process.communicate() and process.returncode for process in clients] == [1] * 6
        wait_until(lambda: len(client.service_pids()) == 1, "the end of surplus services")
        client.warm()
        assert len(client.service_pids()) == 1

    def test_directory_of_somebody_else_is_not_used(self, client: Client) -> None:
        """In a directory that others can write to no service listens; calls work without."""
        client.runtime.mkdir()
        client.runtime.chmod(0o777)
        name = _archive(client, 3)
        assert _get(client, name).returncode == 0
        wait_until(lambda: not client.service_pids(), "the end of the refused service")
        assert not list(client.runtime.glob("*.socket"))

    def test_service_holds_nothing_of_its_caller_open(self, client: Client) -> None:
        """The server's log pipe ends with the server: the service does not inherit it."""
        client.warm()
        (pid,) = client.service_pids()
        links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in ("0", "1", "2")}
        assert links == {"/dev/null"}
        assert not [link for link in _open_files(pid) if link.startswith("pipe:")]
        assert os.readlink(f"/proc/{pid}/cwd") == "/"

    @pytest.mark.parametrize("operation", ["archive-push", "archive-get"])
    def test_service_killed_at_any_moment_does_no_harm(self, client: Client, operation: str) -> None:
        """Whenever the service dies, the call succeeds and what it wrote is whole."""
        chance = random.Random(1)
        numbers = range(3, 11)
        for number in numbers:
            client.warm()
            name = _write(client, number) if operation == "archive-push" else _archive(client, number)
            process = client.begin(
                operation, *([f"pg_wal/{name}"] if operation == "archive-push" else [name, "pg_wal/RECOVERYXLOG"])
            )
            timer = threading.Timer(chance.uniform(0, 0.03), client.kill_services)
            timer.start()
            _, stderr = process.communicate()
            timer.join()
            assert (process.returncode, stderr) == (0, "")
            if operation == "archive-get":
                assert _delivered(client).read_bytes() == wal_of(segment_at(number))
        for number in numbers:
            client.archive.verify(segment_at(number).name)
        assert len(all_files(client.archive)) == len(numbers)

    @pytest.mark.parametrize("warm", [False, True], ids=["python", "service"])
    def test_get_killed_at_any_moment_leaves_a_whole_file_or_none(self, client: Client, warm: bool) -> None:
        """Kill -9 of the client and of what it runs never leaves part of a segment, nor litter."""
        chance = random.Random(2)
        name = _archive(client, 3)
        for _ in range(15):
            if warm:
                client.warm()
            process = subprocess.Popen(
                client.arguments("archive-get", name, "pg_wal/RECOVERYXLOG"),
                cwd=client.data_directory,
                env=client.environment,
                start_new_session=True,
            )
            try:
                process.wait(chance.uniform(0, 0.02 if warm else 0.25))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if _delivered(client).exists():
                assert _delivered(client).read_bytes() == wal_of(segment_at(3))
                _delivered(client).unlink()
            left = [path.name for path in (client.data_directory / "pg_wal").iterdir() if path.is_file()]
            assert left == []

    def test_push_killed_at_any_moment_leaves_a_whole_segment_or_none(self, client: Client) -> None:
        """Kill -9 of the client and of the Python command leaves nothing half-written in the archive."""
        chance = random.Random(3)
        for number in range(3, 13):
            name = _write(client, number)
            process = subprocess.Popen(
                client.arguments("archive-push", f"pg_wal/{name}"),
                cwd=client.data_directory,
                env=client.environment,
                start_new_session=True,
            )
            try:
                process.wait(chance.uniform(0.1, 0.4))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            client.kill_services()
            for path in all_files(client.archive):
                client.archive.verify(Path(path).stem)

    def test_concurrent_pushes_of_equal_content_all_succeed(self, client: Client) -> None:
        """Several pushes of one file at once are all successful, and there is one copy."""
        client.warm()
        name = _write(client, 3)
        processes = [client.begin("archive-push", f"pg_wal/{name}") for _ in range(8)]
        assert [process.communicate()[1] for process in processes] == [""] * 8
        assert [process.returncode for process in processes] == [0] * 8
        assert all_files(client.archive) == [str(stored_path(client.archive, name).relative_to(client.archive.root))]

    def test_concurrent_pushes_of_other_content_have_one_winner(self, client: Client, tmp_path: Path) -> None:
        """Of several servers that push other content under one name, one succeeds and keeps its content."""
        name = segment_at(3).name
        processes = []
        for seed in range(6):
            directory = tmp_path / f"server{seed}" / "pg_wal"
            directory.mkdir(parents=True)
            (directory / name).write_bytes(wal_of(segment_at(3), seed=seed))
            other = Client(client.program, directory.parent, client.runtime, client.archive)
            processes.append(other.begin("archive-push", f"pg_wal/{name}"))
        for process in processes:
            process.communicate()
        statuses = [process.returncode for process in processes]
        assert sorted(statuses) == [0, 5, 5, 5, 5, 5]
        held = b"".join(bytes(piece) for piece in client.archive.read(name))
        assert held == wal_of(segment_at(3), seed=statuses.index(0))

    def test_large_segments_pass_within_bounded_memory(self, client: Client, tmp_path: Path) -> None:
        """Segments of 64 MiB go in and out, and the service stays below 150 MiB."""
        client.archive = made_archive(tmp_path / "large", size=64 * MIB)
        name = _write(client, 3)
        client.warm()
        assert client.run("archive-push", f"pg_wal/{name}").returncode == 0
        assert _get(client, name).returncode == 0
        assert _delivered(client).read_bytes() == wal_of(segment_at(3, size=64 * MIB))
        (pid,) = client.service_pids()
        status = Path(f"/proc/{pid}/status").read_text()
        peak_kib = int(status.split("VmHWM:")[1].split()[0])
        assert peak_kib < 150 * 1024


def _open_files(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]


FOREIGN_ANSWERS = [
    ("silence and the end", b""),
    ("half an answer", Answer(Result.DONE).render()[:5]),
    ("done without a file", Answer(Result.DONE).render()),
    ("declined", Answer(Result.DECLINED).render()),
    ("unknown result", b"R\x09\0\0\0\0\0\0"),
    ("another protocol", b"HTTP/1.1 200 OK\r\n\r\n"),
    ("message that is too long", b"R\x02\x01\0\xff\xff\xff\x7f"),
    ("message cut short", Answer(Result.FAILED, 206, "no vault").render()[:-1]),
    ("dots and the end", b"....."),
]


@pytest.mark.parametrize("answer", [row[1] for row in FOREIGN_ANSWERS], ids=[row[0] for row in FOREIGN_ANSWERS])
def test_odd_service_never_decides(client: Client, answer: bytes) -> None:
    """Whatever a broken service or one of another version says, the work is done by the Python command."""
    name = _archive(client, 3)
    socket_path = client.runtime.parent / "odd"
    client.options = [f"--socket={socket_path}"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        run = _get(client, name)
        thread.join()
    assert (run.returncode, run.stderr) == (0, "")
    assert _delivered(client).read_bytes() == wal_of(segment_at(3))


@pytest.mark.parametrize(
    ("operation", "said", "status"),
    [
        ("archive-get", 1, 201),
        ("archive-get", 0, 201),
        ("archive-get", 206, 206),
        ("archive-push", 0, 101),
        ("archive-push", 200, 101),
        ("archive-push", 6, 6),
    ],
)
def test_failure_never_has_the_status_of_something_else(client: Client, operation: str, said: int, status: int) -> None:
    """A failed get is above 125 and a failed push between 1 and 125, whatever number the service gives."""
    socket_path = client.runtime.parent / "odd"
    client.options = [f"--socket={socket_path}"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b".." + Answer(Result.FAILED, said, "why").render())

        thread = threading.Thread(target=serve)
        thread.start()
        run = client.run(operation, *(["a", "b"] if operation == "archive-get" else ["b"]))
        thread.join()
    assert (run.returncode, run.stderr) == (status, "pgkeep-wal: why\n")


@pytest.mark.parametrize("breakage", ["exit 1", "exit 127", "no-such-command", "kill -9 $$"])
def test_broken_python_is_never_the_end_of_the_wal(client: Client, tmp_path: Path, breakage: str) -> None:
    """An interpreter that cannot even start says 1 or 127; the server must not take it for an absent segment."""
    program = build_client(tmp_path / "broken")
    (tmp_path / "broken" / "pgkeep").write_text(f"#!/bin/sh\n{breakage}\n")
    broken = Client(program, client.data_directory, client.runtime, client.archive)
    run = _get(broken, segment_at(3).name)
    assert run.returncode > 125 or run.returncode == -signal.SIGKILL
    run = broken.run("archive-push", "pg_wal/x")
    assert 1 <= run.returncode <= 125 or run.returncode == -signal.SIGKILL


def test_missing_pgkeep_is_an_error_in_the_right_range(client: Client, tmp_path: Path) -> None:
    """Without the Python command a get is above 125 and a push is not."""
    program = build_client(tmp_path / "alone")
    (tmp_path / "alone" / "pgkeep").unlink()
    alone = Client(program, client.data_directory, client.runtime, client.archive)
    environment = {**alone.environment, "PATH": "/nonexistent"}
    for operation, operands, status in (("archive-get", ["a", "b"], 201), ("archive-push", ["b"], 101)):
        run = subprocess.run(alone.arguments(operation, *operands), env=environment, capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (status, "pgkeep-wal: cannot run pgkeep: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 2), (["archive-push"], 2), (["archive-get"], 202), (["archive-get", "x"], 202)]
)
def test_wrong_call_says_how_it_is_used(client_program: Path, arguments: list[str], status: int) -> None:
    """A wrong call prints the usage, in the range of its operation."""
    run = subprocess.run([client_program, *arguments], capture_output=True, text=True)
    assert run.returncode == status
    assert run.stderr.startswith("usage: pgkeep-wal archive-push")


def test_termination_reaches_the_server_as_such(client: Client) -> None:
    """SIGTERM of the Python command is passed on: the server takes it for its own shutdown, not for a missing file."""
    fifo = client.data_directory / "pg_wal" / "plan"
    os.mkfifo(fifo)
    client.options = [f"--plan={fifo}"]
    process = client.begin("archive-get", segment_at(3).name, "pg_wal/RECOVERYXLOG")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: bool(children.read_text().split()) and client.python_runs() == 1, "the Python command")
    os.kill(int(children.read_text().split()[0]), signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM


def test_sanitizers_find_nothing(client: Client, tmp_path: Path) -> None:
    """The client reads and writes only its own memory, leaks none, and does nothing undefined."""
    flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = build_client(tmp_path / "debug", flags=flags)
    checked = Client(program, client.data_directory, client.runtime, client.archive)
    name = _archive(client, 3)
    _write(client, 4)
    client.warm()
    checked_calls = [["archive-get", name, "pg_wal/RECOVERYXLOG"], ["archive-get", segment_at(9).name, "pg_wal/x"]]
    for call in (*checked_calls, ["archive-push", f"pg_wal/{segment_at(4).name}"]):
        for environment in (client.environment, {**client.environment, "PGKEEP_RUNTIME_DIR": str(tmp_path / "other")}):
            run = subprocess.run(
                checked.arguments(*call), cwd=client.data_directory, env=environment, capture_output=True, text=True
            )
            assert (run.returncode, run.stderr) in ((0, ""), (1, ""))


def test_source_is_where_the_readme_says() -> None:
    """The build line in client/README.md names the file that exists."""
    assert (ROOT / "client" / "pgkeep-wal.c").exists()
    assert "client/pgkeep-wal.c" in (ROOT / "client" / "README.md").read_text()
