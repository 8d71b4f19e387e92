"""
The WAL archive of one cluster in the vault: every segment once, sealed, durable before it counts.

::

    <cluster>/wal/00000001/0000000100000002/0000000100000002000000A4.zst              a complete segment
                                           /0000000100000002000000A5.partial.zst      the newest one, not yet complete
                                           /0000000100000002000000A4.00000028.backup.zst
    <cluster>/wal/00000002/00000002.history.zst

A file appears under its name only when all its bytes are on disk, and is never changed afterwards. The one exception is
a partial segment, which may be replaced by one that continues it, and goes when the complete segment is there.

A file is *absent* only where that is proved: the cluster's directory was opened, ``cluster.json`` is in it, and from
that very directory the name was looked up and not found. A file system that is not mounted is an error, never absence.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard
from blake3 import blake3

from pgkeep.errors import ArchiveError, FormatError, VaultError
from pgkeep.pg.lsn import SystemIdentifier, Timeline
from pgkeep.pg.wal import (
    PARTIAL_SUFFIX,
    check_segment_size,
    is_backup_label_name,
    is_history_name,
    is_partial_name,
    is_segment_name,
)
from pgkeep.vault.sealed import SEAL_BYTES, SEAL_START
from pgkeep.vault.unnamed_file import UnnamedFile, inherit_owner, write_all
from pgkeep.vault.wal_content import Buffer, ContentCheck, content_digest, extents, is_continued_by, sealed_content

CLUSTER_FILE = "cluster.json"
STORED_SUFFIX = ".zst"


class Put(enum.Enum):
    """What became of a file that was put into the archive; it is durable in every case."""

    STORED = "stored"
    ALREADY_HELD = "already held"
    REPLACED_DAMAGED = "replaced a damaged copy"


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """Tells one stored file from another under the same name; as long as it is equal, so are the bytes."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> StoredIdentity:
        """Return the identity in *status*."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class WalArchive:
    """
    The WAL archive of one cluster; safe to use from several threads and processes at once.

    Args:
        root: The directory ``<cluster>/wal``; ``cluster.json`` stands beside it.
        system_identifier: Of the cluster; WAL of another one is refused, in and out.
        segment_size: Bytes.
    """

    def __init__(self, root: Path, *, system_identifier: SystemIdentifier, segment_size: int) -> None:
        self.root = root.absolute()
        self.system_identifier = system_identifier
        self.segment_size = check_segment_size(segment_size)
        self._durable_directories: set[tuple[str, ...]] = set()

    def put(
        self,
        name: str,
        content: Iterable[Buffer],
        *,
        compression_level: int = 1,
        written_ns: int | None = None,
        named_after: Callable[[], object] | None = None,
    ) -> Put:
        """
        Hold *content* under *name*; when this returns, it is durable.

        The same content under a name that is held already is success; so is a partial segment that the archive holds
        more of.

        Args:
            name: As the server calls the file: a segment, its partial form, a history or backup history file.
            content: The file's bytes in buffers of any size; what it raises passes through.
            compression_level: Of zstd.
            written_ns: When the server wrote the last of it, in nanoseconds of the epoch: the time of the file in the
                archive. What was committed later is not in it, however late it was archived. None is now.
            named_after: Called before the file gets its name, when all of it is on disk; what it raises passes through.

        Raises:
            ArchiveError: The archive holds other content under *name*, or *content* is not that of such a file.
            VaultError: The vault is not there, full, or refuses.
        """
        with self._directory_of(name) as directory, contextlib.ExitStack() as stack:
            with self._vault_errors(f"archive {name}"):
                if is_partial_name(name):
                    fcntl.flock(directory, fcntl.LOCK_EX)
                file = stack.enter_context(UnnamedFile(directory))
                inherit_owner(file.fd, directory)
            self._fill(file.fd, name, content, compression_level)
            with self._vault_errors(f"archive {name}"):
                if written_ns is not None:
                    written_ns = min(written_ns, time.time_ns())
                    os.utime(file.fd, ns=(written_ns, written_ns))
                os.fsync(file.fd)
            if named_after is not None:
                named_after()
            with self._vault_errors(f"archive {name}"):
                if is_partial_name(name):
                    return self._publish_partial(file, directory, name)
                return self._publish(file, directory, name)

    def holds(self, name: str, content: Iterable[Buffer]) -> bool:
        """
        Tell whether exactly *content* is held under *name*, durably; False also for a damaged copy.

        Cheaper than ``put`` where the answer is likely to be yes; a partial segment that is superseded goes, as there.
        """
        if not self.has(name):
            return False
        with (
            self._directory_of(name) as directory,
            self._vault_errors(f"read {name}"),
            _opened(name + STORED_SUFFIX, directory) as held,
        ):
            digest = blake3()
            for piece in content:
                digest.update(piece)
            try:
                if content_digest(held.fileno(), name=name) != digest.digest():
                    return False
            except FormatError:
                return False
            # Whoever stored it may have died before it was durable, or before the next line but one.
            os.fsync(held.fileno())
            os.fsync(directory)
            if is_segment_name(name):
                self._drop_superseded_partial(held.fileno(), directory, name)
        return True

    def get(self, name: str, target: Path) -> bool:
        """
        Deliver the file *name* at *target*, whole or not at all; return False when it is proved absent.

        Raises:
            ArchiveError: It is there, but damaged or not what its name says; or *target* cannot be written.
            VaultError: Whether it is there cannot be told.
        """
        if not self.has(name):
            return False
        with target_errors(name, target):
            directory = _open_directory(str(target.parent), None)
        try:
            with contextlib.ExitStack() as stack:
                with target_errors(name, target):
                    file = stack.enter_context(UnnamedFile(directory, file_mode=delivered_file_mode(directory)))
                if self.fetch_into(name, file.fd, target) is None:
                    return False
                with target_errors(name, target):
                    file.publish_over(target.name)
        finally:
            os.close(directory)
        return True

    def fetch_into(self, name: str, fd: int, target: Path) -> StoredIdentity | None:
        """
        Write the content of *name* to the file *fd*, and return which stored file it was; None when proved absent.

        The content may be used only when this returns: until then it is not checked. *target* is for messages.
        """
        stored = self._open_stored(name)
        if stored is None:
            return None
        with stored:
            identity = StoredIdentity.of(os.fstat(stored.fileno()))
            for piece in self._checked_content(stored.fileno(), name):
                with target_errors(name, target):
                    write_all(fd, piece)
        return identity

    def read(self, name: str) -> Iterator[Buffer]:
        """
        Yield the content of *name*, each buffer valid until the next; it is checked when the last one has passed.

        Raises:
            ArchiveError: It is absent, damaged, or not what its name says.
        """
        stored = self._open_stored(name)
        if stored is None:
            raise ArchiveError(f"the archive does not hold {name}")
        with stored:
            yield from self._checked_content(stored.fileno(), name)

    def verify(self, name: str) -> None:
        """Raise ArchiveError unless *name* is held and every byte of it is what was archived."""
        for _ in self.read(name):
            pass

    def identify(self, name: str) -> StoredIdentity | None:
        """Return which stored file has *name* now; None when it is proved absent."""
        stored = self._open_stored(name)
        if stored is None:
            return None
        with stored:
            return StoredIdentity.of(os.fstat(stored.fileno()))

    def seal(self, name: str) -> bytes | None:
        """Return the seal of *name*, by which its stored bytes are known; None when it is proved absent."""
        stored = self._open_stored(name)
        if stored is None:
            return None
        with stored, self._vault_errors(f"read {name}"):
            size = os.fstat(stored.fileno()).st_size
            return os.pread(stored.fileno(), SEAL_BYTES, max(size - SEAL_BYTES, 0))

    def has(self, name: str) -> bool:
        """Tell whether *name* is held; raise VaultError when that cannot be told."""
        return self.identify(name) is not None

    def history(self, timeline: Timeline) -> bytes | None:
        """Return the history file of *timeline*; None when it is proved absent, as for timeline 1."""
        if not self.has(timeline.history_file_name):
            return None
        return b"".join(bytes(piece) for piece in self.read(timeline.history_file_name))

    def remove(self, name: str) -> None:
        """Remove *name*, which may be absent, and the directories that this leaves empty."""
        directories = _directories_of(name)
        with self.opened_root() as root, self._vault_errors(f"remove {name}"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink("/".join((*directories, name + STORED_SUFFIX)), dir_fd=root)
            for depth in range(len(directories), 0, -1):
                try:
                    os.rmdir("/".join(directories[:depth]), dir_fd=root)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                        raise
                    break

    @contextlib.contextmanager
    def opened_root(self) -> Iterator[int]:
        """Yield a descriptor of the archive's directory, found beside ``cluster.json`` in the same directory."""
        with contextlib.ExitStack() as stack:
            try:
                cluster = _open_directory(str(self.root.parent), None)
                stack.callback(os.close, cluster)
                os.stat(CLUSTER_FILE, dir_fd=cluster)
                root = _open_directory(self.root.name, cluster)
                stack.callback(os.close, root)
            except OSError as error:
                raise VaultError(
                    f"no WAL archive at {self.root}: {error.strerror}",
                    hint="check the path, its permission bits, and that its file system is mounted",
                ) from error
            yield root

    def _fill(self, fd: int, name: str, content: Iterable[Buffer], compression_level: int) -> None:
        compressor = zstandard.ZstdCompressor(level=compression_level, write_checksum=True)
        digest = blake3()
        check = self._check(name)
        for extent in extents(content):
            check.feed(extent)
            frame = compressor.compress(extent)
            digest.update(frame)
            with self._vault_errors(f"archive {name}"):
                write_all(fd, frame)
        check.finish()
        with self._vault_errors(f"archive {name}"):
            write_all(fd, SEAL_START + digest.digest())

    def _publish(self, file: UnnamedFile, directory: int, name: str) -> Put:
        result = Put.STORED
        try:
            file.publish(name + STORED_SUFFIX)
        except FileExistsError:
            result = self._settle(file, directory, name)
        os.fsync(directory)
        if is_segment_name(name):
            self._drop_superseded_partial(file.fd, directory, name)
        return result

    def _settle(self, file: UnnamedFile, directory: int, name: str) -> Put:
        """Compare with what has the name already."""
        with _opened(name + STORED_SUFFIX, directory) as held:
            try:
                held_digest = content_digest(held.fileno(), name=name)
            except FormatError:
                file.publish_over(name + STORED_SUFFIX)
                return Put.REPLACED_DAMAGED
            if held_digest != content_digest(file.fd, name=name):
                raise ArchiveError(
                    f"the archive already holds {name} with other content",
                    hint="two clusters archive to one place, or the server was put back to an earlier state (let it "
                    "go on under another name: pgkeep init), or the file changed after it was archived",
                )
            # Whoever stored it may have died before it was durable.
            os.fsync(held.fileno())
        return Put.ALREADY_HELD

    def _publish_partial(self, file: UnnamedFile, directory: int, name: str) -> Put:
        for held_name in (name.removesuffix(PARTIAL_SUFFIX), name):
            held = _opened_if_there(held_name + STORED_SUFFIX, directory)
            if held is None:
                continue
            with held:
                if self._continues(held.fileno(), file.fd, name):
                    os.fsync(held.fileno())
                    os.fsync(directory)
                    return Put.ALREADY_HELD
                if held_name == name and not self._continues(file.fd, held.fileno(), name):
                    raise ArchiveError(
                        f"the archive already holds {name} with WAL that the new one does not continue",
                        hint="the server may have been restored or promoted without a new timeline",
                    )
        file.publish_over(name + STORED_SUFFIX)
        os.fsync(directory)
        return Put.STORED

    def _drop_superseded_partial(self, complete: int, directory: int, name: str) -> None:
        partial = _opened_if_there(name + PARTIAL_SUFFIX + STORED_SUFFIX, directory)
        if partial is None:
            return
        with partial:
            if self._continues(complete, partial.fileno(), name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name + PARTIAL_SUFFIX + STORED_SUFFIX, dir_fd=directory)

    def _continues(self, longer: int, shorter: int, name: str) -> bool:
        """Tell whether *longer* has all the WAL of *shorter*; a damaged *shorter* has none, a damaged *longer* too."""
        longer_content = sealed_content(longer, name=name)
        shorter_content = sealed_content(shorter, name=name)
        try:
            if not is_continued_by(shorter_content, longer_content):
                return False
        except FormatError:
            try:
                content_digest(longer, name=name)
            except FormatError:
                return False
        return True

    def _checked_content(self, fd: int, name: str) -> Iterator[memoryview]:
        check = self._check(name)
        try:
            for piece in sealed_content(fd, name=name):
                check.feed(piece)
                yield piece
            check.finish()
        except FormatError as error:
            raise ArchiveError(f"the archive's copy of {name} cannot be used: {error.message}") from error

    def _check(self, name: str) -> ContentCheck:
        return ContentCheck(name, system_identifier=self.system_identifier, segment_size=self.segment_size)

    @contextlib.contextmanager
    def _directory_of(self, name: str) -> Iterator[int]:
        """Yield a descriptor of the directory for *name*, made if need be; each level is made durable once."""
        names = _directories_of(name)
        is_new = names not in self._durable_directories
        with self.opened_root() as root, contextlib.ExitStack() as stack:
            with self._vault_errors(f"archive {name}"):
                fd = root
                for level in names:
                    parent = fd
                    try:
                        fd = _open_directory(level, parent)
                    except FileNotFoundError:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(level, 0o700, dir_fd=parent)
                        is_new = True
                        fd = _open_directory(level, parent)
                    stack.callback(os.close, fd)
                    if is_new:
                        inherit_owner(fd, parent)
                        # Whoever made the directory may not have synced it yet, so each process does it once.
                        os.fsync(parent)
            self._durable_directories.add(names)
            yield fd

    def _open_stored(self, name: str) -> io.FileIO | None:
        path = "/".join((*_directories_of(name), name + STORED_SUFFIX))
        with self.opened_root() as root, self._vault_errors(f"read {name}"):
            stored = _opened_if_there(path, root)
            if stored is None and os.fstat(root).st_nlink == 0:
                raise VaultError(f"the WAL archive {self.root} was removed meanwhile")
            return stored

    @contextlib.contextmanager
    def _vault_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "free space in the vault's file system; nothing of the file was kept"
            raise VaultError(f"cannot {doing} in {self.root}: {error.strerror}", hint=hint) from error


def delivered_file_mode(directory: int) -> int:
    """Return the permission bits for a file delivered into *directory*: as the server gives them there."""
    return 0o640 if os.fstat(directory).st_mode & 0o050 == 0o050 else 0o600


@contextlib.contextmanager
def target_errors(name: str, target: Path) -> Iterator[None]:
    """Turn an OSError into the ArchiveError that *name* cannot be delivered at *target*."""
    try:
        yield
    except OSError as error:
        raise ArchiveError(f"cannot deliver {name} at {target}: {error.strerror}") from error


def _directories_of(name: str) -> tuple[str, ...]:
    if is_history_name(name):
        return (name[:8],)
    if is_segment_name(name) or is_partial_name(name) or is_backup_label_name(name):
        return (name[:8], name[:16])
    raise ArchiveError(f'not a file of a WAL archive: "{name}"')


def _open_directory(name: str, parent: int | None) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)


def _opened(name: str, directory: int) -> io.FileIO:
    return io.FileIO(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory))


def _opened_if_there(name: str, directory: int) -> io.FileIO | None:
    try:
        return _opened(name, directory)
    except FileNotFoundError:
        return None
