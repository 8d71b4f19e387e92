"""What the service manager hears."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pgkeep.jobs.receiving.readiness import notify


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_service_manager_hears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_abstract: bool) -> None:
    """Lines go to the socket that NOTIFY_SOCKET names, a file or an abstract one."""
    address = f"@pgkeep-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0") if is_abstract else address)
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1", "STATUS=receiving main")
        assert manager.recv(1000) == b"READY=1\nSTATUS=receiving main"


def test_nobody_need_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager that is not there, or is gone, is no trouble."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
    assert list(tmp_path.iterdir()) == []
