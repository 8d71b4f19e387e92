"""
Bacula 15.0.3 from Debian's backports, unpacked into the tests' cache beside the system: nothing is installed.

No root is needed. The packages stay in the cache too, because backports keep no superseded version.
``python -m tests.lab.bacula_packages`` fills the cache.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.lab.packages import Unavailable, _apt, _debian_archive, _run
from tests.lab.servers import cache_directory, cached

VERSION = "15.0.3"
_SUITE = "bookworm"
_BACKPORTS = f"{_SUITE}-backports"
_PACKAGES = (
    *("bacula-common", "bacula-common-sqlite3", "bacula-director", "bacula-director-sqlite3"),
    *("bacula-sd", "bacula-fd", "bacula-console"),
)
# Few machines have these two; more comes where the loader misses something.
_LIBRARIES = ("liblzo2-2", "libwrap0")
_LIBRARY_PACKAGE = {
    "libsqlite3.so.0": "libsqlite3-0",
    "libreadline.so.8": "libreadline8",
    "libtinfo.so.6": "libtinfo6",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "libacl.so.1": "libacl1",
    "libcap.so.2": "libcap2",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libgcc-s1",
    "libz.so.1": "zlib1g",
    "libnsl.so.2": "libnsl2",
    "libtirpc.so.3": "libtirpc3",
    "libgssapi_krb5.so.2": "libgssapi-krb5-2",
    "libkrb5.so.3": "libkrb5-3",
    "libk5crypto.so.3": "libk5crypto3",
    "libcom_err.so.2": "libcom-err2",
    "libkrb5support.so.0": "libkrb5support0",
    "libkeyutils.so.1": "libkeyutils1",
}
_PROGRAMS = ("bacula-dir", "bacula-sd", "bacula-fd", "bconsole")
_NOSLEEP = Path(__file__).with_name("bacula_nosleep.c")


@dataclass(frozen=True, slots=True)
class BaculaInstallation:
    """
    The programs of Bacula, not yet configured.

    Attributes:
        root: What would be ``/`` of the machine that they were made for.
        nosleep: A library for the Director alone, which spares it its pauses.
    """

    root: Path
    nosleep: Path

    def program(self, name: str) -> Path:
        """Return the path of a program: bacula-dir, bacula-sd, bacula-fd, bconsole, bls, bextract."""
        return self.root / "usr/sbin" / name

    @property
    def library_path(self) -> str:
        """What LD_LIBRARY_PATH must be: the programs look for their libraries in /usr/lib/bacula."""
        triplet = f"{platform.machine()}-linux-gnu"
        return ":".join(str(self.root / part) for part in ("usr/lib/bacula", f"lib/{triplet}", f"usr/lib/{triplet}"))

    @property
    def catalog_schema(self) -> Path:
        """The SQL that makes an empty catalog in SQLite."""
        return self.root / "usr/share/dbconfig-common/data/bacula-director-sqlite3/install/sqlite3"


@cache
def bacula_installation() -> BaculaInstallation:
    """Return Bacula from the cache; fetch and unpack it first where it is missing."""
    root = cached(f"bacula-{VERSION}", _unpack)
    return BaculaInstallation(root, _nosleep(root.parent))


def _unpack(directory: Path) -> Path:
    packages = cache_directory() / f"bacula-{VERSION}-debs"
    packages.mkdir(exist_ok=True)
    work = directory / "apt"
    apt = _Apt(work, packages)
    root = directory / "root"
    for package in apt.bring(*(f"{name}/{_BACKPORTS}" for name in _PACKAGES), *_LIBRARIES):
        _run(["dpkg-deb", "-x", str(package), str(root)])
    installation = BaculaInstallation(root, directory)
    while missing := _missing_libraries(installation):
        for package in apt.bring(*missing):
            _run(["dpkg-deb", "-x", str(package), str(root)])
    shutil.rmtree(work, ignore_errors=True)
    found = _run_with(installation, [str(installation.program("bacula-fd")), "-?"])
    version = re.search(r"Version: (\S+)", found)
    if version is None or version[1] != VERSION:
        raise Unavailable(f"expected Bacula {VERSION}, found {version[1] if version else found!r}")
    return root


class _Apt:
    """A private apt over this machine's own Debian archive, with the release that the packages were built for."""

    def __init__(self, work: Path, packages: Path) -> None:
        self._work = work
        self._packages = packages
        self._is_ready = False

    def bring(self, *names: str) -> list[Path]:
        """Return the files of the packages called *names*, such as ``zlib1g`` or ``bacula-fd/bookworm-backports``."""
        missing = [name for name in names if self._file(name) is None]
        if missing:
            self._prepare()
            _apt(self._work, "download", *missing, cwd=self._packages)
        files = [self._file(name) for name in names]
        if not all(files):
            raise Unavailable(f"apt brought not all of {', '.join(names)}")
        return [file for file in files if file is not None]

    def _file(self, name: str) -> Path | None:
        return next(iter(sorted(self._packages.glob(f"{name.partition('/')[0]}_*.deb"))), None)

    def _prepare(self) -> None:
        if self._is_ready:
            return
        archive = _debian_archive()
        for name in ("lists/partial", "cache/archives/partial", "state"):
            (self._work / name).mkdir(parents=True)
        (self._work / "status").touch()
        (self._work / "sources.list").write_text(
            "".join(f"deb [signed-by={archive.keyring}] {archive.uri} {suite} main\n" for suite in (_SUITE, _BACKPORTS))
        )
        work = self._work
        (work / "apt.conf").write_text(
            f'Dir::Etc::SourceList "{work}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State "{work}/state"; Dir::State::lists "{work}/lists";\n'
            f'Dir::State::status "{work}/status"; Dir::Cache "{work}/cache";\n'
            'Debug::NoLocking "true"; APT::Sandbox::User ""; Acquire::Languages "none"; Acquire::Retries "3";\n'
            'APT::Update::Post-Invoke-Success ""; APT::Update::Post-Invoke "";\n'
        )
        _apt(work, "update")
        self._is_ready = True


def _missing_libraries(installation: BaculaInstallation) -> list[str]:
    """Return the packages of the libraries that the loader does not find, each once."""
    names = set()
    for program in _PROGRAMS:
        listing = _run_with(installation, ["ldd", str(installation.program(program))])
        names.update(re.findall(r"^\s*(\S+) => not found", listing, re.MULTILINE))
    unknown = names - _LIBRARY_PACKAGE.keys()
    if unknown:
        raise Unavailable(f"no package is known for {', '.join(sorted(unknown))}")
    return sorted({_LIBRARY_PACKAGE[name] for name in names})


def _run_with(installation: BaculaInstallation, command: list[str]) -> str:
    done = subprocess.run(
        command,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LD_LIBRARY_PATH": installation.library_path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def _nosleep(directory: Path) -> Path:
    """Return the library made from today's source; its name changes with it, so that nobody waits for anybody."""
    stamp = f"{_NOSLEEP.stat().st_size}-{_NOSLEEP.stat().st_mtime_ns}"
    library = directory / f"nosleep-{stamp}.so"
    if not library.exists():
        unfinished = library.with_suffix(f".{os.getpid()}")
        _run(["cc", "-O2", "-std=c11", "-shared", "-fPIC", "-o", str(unfinished), str(_NOSLEEP), "-ldl"])
        unfinished.chmod(0o755)
        unfinished.rename(library)
    return library


def main() -> None:
    """Fetch Bacula and print where it is."""
    print(bacula_installation().root)  # noqa: T201 - this program's output


if __name__ == "__main__":
    main()
