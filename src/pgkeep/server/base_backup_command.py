"""The command BASE_BACKUP: what can be asked for, and how each major wants to be asked."""

from __future__ import annotations

from dataclasses import dataclass

from pgkeep.errors import UsageError
from pgkeep.pg.capabilities import Capabilities
from pgkeep.server.replication import quoted_text

MIN_RATE_KIB = 32
MAX_RATE_KIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseBackupOptions:
    """
    How a base backup is made.

    Attributes:
        label: The backup's name in ``backup_label``.
        fast: Make the checkpoint at once; otherwise it is spread over time and the first byte comes minutes later.
        manifest: Ask for a ``backup_manifest`` with CRC-32C, where the server can; others cost half the speed.
        verify_checksums: Let the server check the pages that it sends; it does so only when the cluster has checksums.
        estimate_size: Let the server add up the sizes of its files first, which takes a walk through all of them.
        max_rate_kib: At most so many KiB per second, 32 to 1,048,576; 0 for no limit.
    """

    label: str
    fast: bool
    manifest: bool = True
    verify_checksums: bool = True
    estimate_size: bool = True
    max_rate_kib: int = 0

    def __post_init__(self) -> None:
        if self.max_rate_kib and not MIN_RATE_KIB <= self.max_rate_kib <= MAX_RATE_KIB:
            raise UsageError(
                f"rate of a base backup must be {MIN_RATE_KIB} to {MAX_RATE_KIB} KiB/s, found {self.max_rate_kib}"
            )


def base_backup_command(options: BaseBackupOptions, capabilities: Capabilities, *, is_incremental: bool = False) -> str:
    """Return the command in the grammar of the server's version."""
    words = [f"LABEL {quoted_text(options.label)}"]
    if options.estimate_size:
        words.append("PROGRESS")
    with_manifest = options.manifest and capabilities.has_manifest
    if not capabilities.has_base_backup_messages:
        words += ["FAST"] if options.fast else []
        words.append("NOWAIT")
        words += [f"MAX_RATE {options.max_rate_kib}"] if options.max_rate_kib else []
        words.append("TABLESPACE_MAP")
        words += [] if options.verify_checksums else ["NOVERIFY_CHECKSUMS"]
        words += ["MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"] if with_manifest else []
        return f"BASE_BACKUP {' '.join(words)}"
    words.append(f"CHECKPOINT '{'fast' if options.fast else 'spread'}'")
    words.append("WAIT false")
    words += [f"MAX_RATE {options.max_rate_kib}"] if options.max_rate_kib else []
    words.append("TABLESPACE_MAP")
    words += [] if options.verify_checksums else ["VERIFY_CHECKSUMS false"]
    words += ["MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'"] if with_manifest else []
    words += ["INCREMENTAL"] if is_incremental else []
    return f"BASE_BACKUP ({', '.join(words)})"
