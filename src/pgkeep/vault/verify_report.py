"""What a verification looked at and found; filled by several threads."""

from __future__ import annotations

import threading
from dataclasses import dataclass

MAX_FINDINGS = 1_000
"""How many findings are kept one by one; more are counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    One thing that is wrong.

    Attributes:
        backup_id: The backup whose file it is in; empty for WAL.
        file: The file of the vault: a volume, the record, a WAL file.
        path: Virtual path of the item; empty when it is none's.
        what: What is wrong, as one line.
        blocks: Numbers of bad pages, at most 1,000.
    """

    backup_id: str
    file: str
    path: str
    what: str
    blocks: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = f"{self.backup_id}/{self.file}" if self.backup_id else self.file
        return f"{where}: {self.path}: {self.what}" if self.path else f"{where}: {self.what}"


class VerifyReport:
    """
    What was looked at and what was found; every method may be called from any thread.

    Attributes:
        backups: Ids of the backups looked at, oldest first.
        files: Members read.
        bytes: Content read, bytes.
        pages_checked: Pages whose checksum was computed.
        pages_after_start: Pages that fail but that replay writes anew.
        pages_known: Bad pages that the records name already: they were bad on the server.
        wal_files: Files of WAL read.
        findings: What is wrong; at most ``MAX_FINDINGS``.
        findings_count: How many there are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.backups: list[str] = []
        self.files = 0
        self.bytes = 0
        self.pages_checked = 0
        self.pages_after_start = 0
        self.pages_known = 0
        self.wal_files = 0
        self.findings: list[Finding] = []
        self.findings_count = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings_count

    def find(self, finding: Finding) -> None:
        """Take note of *finding*."""
        with self._lock:
            self.findings_count += 1
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(finding)

    def count_pages(self, checked: int, *, after_start: int, known: int) -> None:
        """Count pages."""
        with self._lock:
            self.pages_checked += checked
            self.pages_after_start += after_start
            self.pages_known += known
