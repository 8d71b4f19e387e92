"""`pgkeep bacula install`: what it puts beside a File Daemon, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgkeep.bacula.daemon import FileDaemon
from pgkeep.bacula.install import install
from pgkeep.bacula.plugin_config import read_plugin_config
from pgkeep.errors import SettingsError, UsageError


@pytest.fixture
def daemon(tmp_path: Path) -> FileDaemon:
    """A daemon of this account that was told of no plugin directory."""
    (tmp_path / "plugin.so").write_bytes(b"plugin")
    (tmp_path / "backend").write_bytes(b"backend")
    return FileDaemon(tmp_path / "bacula-fd.conf", tmp_path / "plugins", False, None, tmp_path.stat().st_uid, None)


def _install(daemon: FileDaemon, **arguments: object) -> list[str]:
    place = daemon.configuration.parent
    files = {"plugin": place / "plugin.so", "backend": place / "backend"}
    return install(daemon, **(files | {"state_dir": place / "state"} | arguments)).lines  # type: ignore[arg-type]


def test_a_first_installation(daemon: FileDaemon) -> None:
    """The plugin is a real file, its configuration names the backend, and the directory of states is made."""
    _install(daemon, user="")
    assert daemon.plugin.read_bytes() == b"plugin"
    assert not daemon.plugin.is_symlink()
    config = read_plugin_config(daemon.plugin_config, daemon_uid=daemon.uid)
    assert config.backend == daemon.configuration.parent / "backend"
    assert (daemon.configuration.parent / "state").is_dir()


def test_an_upgrade_leaves_the_configuration(daemon: FileDaemon) -> None:
    """Installed again without a word about it, what an administrator has written stays to the letter."""
    _install(daemon, user="")
    text = f"# ours\nbackend = {daemon.configuration.parent / 'backend'}\nring = no\n"
    daemon.plugin_config.write_text(text)
    lines = _install(daemon, backend=None)
    assert daemon.plugin_config.read_text() == text
    assert f"left {daemon.plugin_config} as it is" in lines


def test_one_setting_is_changed(daemon: FileDaemon) -> None:
    """What is named takes its new value; all else stays, the plugin's own settings too."""
    _install(daemon, user="")
    backend = daemon.configuration.parent / "backend"
    daemon.plugin_config.write_text(f"backend = {backend}\nring = no\ntimeout = 90\nkill_after = 0\n")
    _install(daemon, backend=None, config=Path("/etc/other/pgkeep.conf"))
    config = read_plugin_config(daemon.plugin_config, daemon_uid=daemon.uid)
    assert (config.backend, config.user, config.config) == (backend, "", Path("/etc/other/pgkeep.conf"))
    assert config.tuning == {"ring": "no", "timeout": "90", "kill_after": "0"}


def test_a_configuration_that_the_plugin_would_refuse(daemon: FileDaemon) -> None:
    """It is said before anything is copied."""
    daemon.plugin_directory.mkdir()
    daemon.plugin_config.write_text("ring = perhaps\n")
    with pytest.raises(SettingsError, match="ring: expected yes or no"):
        _install(daemon, config=Path("/etc/other/pgkeep.conf"))
    assert not daemon.plugin.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plugin": Path("/nonexistent/x.so")}, "there is no file /nonexistent/x.so"),
        ({"backend": Path("/nonexistent/backend")}, "there is no file /nonexistent/backend"),
        ({"user": "nobody-of-that-name"}, 'there is no account "nobody-of-that-name"'),
    ],
    ids=["plugin", "backend", "user"],
)
def test_what_is_not_there(daemon: FileDaemon, arguments: dict[str, object], message: str) -> None:
    """A plugin, a program or an account that does not exist is named, and nothing is copied."""
    with pytest.raises(UsageError) as raised:
        _install(daemon, **arguments)
    assert raised.value.message == message
    assert not daemon.plugin_directory.exists()
