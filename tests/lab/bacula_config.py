"""The configuration files of a lab's Director, Storage Daemon, File Daemon and console."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DRIVES = 3


@dataclass(frozen=True, slots=True)
class Layout:
    """
    What the files of one lab agree on.

    Attributes:
        directory: Everything of the lab is beneath it.
        password: Of all its daemons for each other; a secret of this lab, so that a search for leaks can tell it.
        ports: Director, File Daemon, Storage Daemon; on 127.0.0.1.
        transport: Whether TLS and CommCompression are as Bacula has them by default: on.
        plugin_directory: Where the File Daemon looks for plugins.
        volume_directory: Where the Storage Daemon keeps its volumes.
        plugin_options: Lines ``name: options`` of the File Daemon.
    """

    directory: Path
    password: str
    ports: tuple[int, int, int]
    transport: bool
    plugin_directory: Path
    volume_directory: Path
    plugin_options: Sequence[str] = ()

    @property
    def configuration(self) -> Path:
        """The directory of the files."""
        return self.directory / "etc"

    def write(self) -> None:
        """Write all of them."""
        self.configuration.mkdir(exist_ok=True)
        (self.configuration / "query.sql").touch()
        for name, text in (
            ("bacula-dir", self._director()),
            ("bacula-sd", self._storage()),
            ("bacula-fd", self._file_daemon()),
            ("bconsole", self._console()),
        ):
            path = self.configuration / f"{name}.conf"
            path.write_text(text)
            path.chmod(0o640)

    @property
    def _yes(self) -> str:
        return "yes" if self.transport else "no"

    def _director(self) -> str:
        home, psk = self.directory, f"TLS PSK Enable = {self._yes}"
        return f"""\
Director {{
  Name = lab-dir
  DirAddress = 127.0.0.1
  DirPort = {self.ports[0]}
  QueryFile = "{self.configuration}/query.sql"
  WorkingDirectory = "{home}/work-dir"
  PidDirectory = "{home}/work-dir"
  Maximum Concurrent Jobs = 20
  Password = "{self.password}"
  Messages = Standard
  {psk}
  CommCompression = {self._yes}
}}
Catalog {{ Name = Catalog; dbname = "bacula"; dbuser = ""; dbpassword = "" }}
Messages {{
  Name = Standard
  append = "{home}/log/bacula.log" = all, !skipped, !saved
  catalog = all, !skipped, !saved
  console = all, !skipped, !saved
}}
Client {{
  Name = lab-fd
  Address = 127.0.0.1
  FDPort = {self.ports[1]}
  Catalog = Catalog
  Password = "{self.password}"
  Maximum Concurrent Jobs = 20
  AutoPrune = no
  {psk}
}}
{self._storages()}
Pool {{ Name = Default; Pool Type = Backup; AutoPrune = no; Recycle = no; Label Format = "vol-"; Next Pool = Second }}
Pool {{ Name = Second; Pool Type = Backup; AutoPrune = no; Recycle = no; Label Format = "second-"
  Storage = second-sd
}}
Pool {{ Name = Small; Pool Type = Backup; AutoPrune = no; Recycle = no; Label Format = "small-"
  Maximum Volume Bytes = 4 M
}}
Pool {{ Name = Single; Pool Type = Backup; AutoPrune = no; Recycle = no; Label Format = "single-"
  Maximum Volume Jobs = 1
}}
FileSet {{ Name = Nothing; Include {{ Options {{ signature = XXHASH64 }} File = "{self.configuration}/query.sql" }} }}
Job {{
  Name = Restore
  Type = Restore
  Client = lab-fd
  Storage = lab-sd
  FileSet = Nothing
  Pool = Default
  Messages = Standard
  Where = "{home}/restore"
  Maximum Concurrent Jobs = 10
}}
JobDefs {{
  Name = Backup
  Type = Backup
  Level = Incremental
  Client = lab-fd
  Storage = lab-sd
  Pool = Default
  Messages = Standard
  Maximum Concurrent Jobs = 10
  Allow Duplicate Jobs = yes
  Reschedule Incomplete Jobs = no
}}
@|"sh -c 'cat {self.configuration}/jobs.d/*.conf 2>/dev/null || true'"
"""

    def _storages(self) -> str:
        storages = (
            ("lab-sd", "Changer", "File1", "Autochanger = lab-sd"),
            ("second-sd", "SecondChanger", "File2", "Autochanger = second-sd"),
            ("shared-sd", "Shared", "File3", "# one device, no changer: jobs at the same time share its volume"),
        )
        return "\n".join(
            f"""\
Storage {{
  Name = {name}
  Address = 127.0.0.1
  SDPort = {self.ports[2]}
  Password = "{self.password}"
  Device = {device}
  Media Type = {media}
  {more}
  Maximum Concurrent Jobs = 20
  TLS PSK Enable = {self._yes}
}}"""
            for name, device, media, more in storages
        )

    def _storage(self) -> str:
        home, psk = self.directory, f"TLS PSK Enable = {self._yes}"
        changers = (
            ("Changer", "Drive", "File1", self.volume_directory),
            ("SecondChanger", "Second", "File2", home / "second"),
        )
        text = f"""\
Storage {{
  Name = lab-sd
  SDAddress = 127.0.0.1
  SDPort = {self.ports[2]}
  WorkingDirectory = "{home}/work-sd"
  PidDirectory = "{home}/work-sd"
  Maximum Concurrent Jobs = 20
  CommCompression = {self._yes}
  {psk}
}}
Director {{ Name = lab-dir; Password = "{self.password}"; {psk} }}
Messages {{ Name = Standard; director = lab-dir = all }}
"""
        for changer, drive, media, directory in changers:
            names = ", ".join(f"{drive}{number}" for number in range(DRIVES))
            text += f"""\
Autochanger {{
  Name = {changer}
  Device = {names}
  Changer Command = ""
  Changer Device = /dev/null
}}
"""
            for number in range(DRIVES):
                text += _device(f"{drive}{number}", media, directory, f"Autochanger = yes; Drive Index = {number}")
        return text + _device("Shared", "File3", home / "shared", "Autochanger = no")

    def _file_daemon(self) -> str:
        home, psk = self.directory, f"TLS PSK Enable = {self._yes}"
        options = "".join(f"  Plugin Options = {quoted(line)}\n" for line in self.plugin_options)
        return f"""\
FileDaemon {{
  Name = lab-fd
  FDAddress = 127.0.0.1
  FDPort = {self.ports[1]}
  WorkingDirectory = "{home}/work-fd"
  PidDirectory = "{home}/work-fd"
  Plugin Directory = "{self.plugin_directory}"
  Maximum Concurrent Jobs = 20
  CommCompression = {self._yes}
  {psk}
{options}}}
Director {{ Name = lab-dir; Password = "{self.password}"; {psk} }}
Messages {{ Name = Standard; director = lab-dir = all, !skipped, !restored, !saved }}
"""

    def _console(self) -> str:
        return f"""\
Director {{
  Name = lab-dir
  Address = 127.0.0.1
  DIRport = {self.ports[0]}
  Password = "{self.password}"
  TLS PSK Enable = {self._yes}
}}
"""


@dataclass(frozen=True, slots=True)
class JobDefinition:
    """
    A Job and the FileSet of the same name.

    Attributes:
        name: Of the Job; the FileSet is ``FS-<name>``.
        plugins: Plugin lines, in the order of the FileSet.
        files: Plain files and directories of the same FileSet, before the plugins.
        options: Of the FileSet's Include, a directive each.
        accurate: Accurate.
        more: Directives of the Job, a line each.
        excluded: Plain files and directories to leave out.
    """

    name: str
    plugins: Sequence[str] = ()
    files: Sequence[str] = ()
    options: Sequence[str] = ("signature = XXHASH64",)
    accurate: bool = True
    more: Sequence[str] = ()
    excluded: Sequence[str] = ()

    @property
    def fileset(self) -> str:
        """Name of the FileSet."""
        return f"FS-{self.name}"

    def text(self) -> str:
        """Return both resources."""
        lines = [f"    File = {quoted(path)}" for path in self.files]
        lines += [f"    Plugin = {quoted(line)}" for line in self.plugins]
        excluded = "".join(f"    File = {quoted(path)}\n" for path in self.excluded)
        return "\n".join(
            [
                f"FileSet {{\n  Name = {self.fileset}\n  Ignore FileSet Changes = yes\n  Include {{\n    Options {{",
                *(f"      {option}" for option in self.options),
                "    }",
                *lines,
                f"  }}\n  Exclude {{\n{excluded}  }}\n}}",
                f"Job {{\n  Name = {self.name}\n  JobDefs = Backup\n  FileSet = {self.fileset}",
                f"  Accurate = {'yes' if self.accurate else 'no'}",
                *(f"  {line}" for line in self.more),
                "}\n",
            ]
        )


def quoted(text: str) -> str:
    """Return *text* as a string of Bacula's configuration files."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _device(name: str, media: str, directory: Path, more: str) -> str:
    return f"""\
Device {{
  Name = {name}
  Media Type = {media}
  Archive Device = "{directory}"
  LabelMedia = yes
  Random Access = yes
  AutomaticMount = yes
  RemovableMedia = no
  AlwaysOpen = no
  Maximum Concurrent Jobs = 5
  {more}
}}
"""
