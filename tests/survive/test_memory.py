"""Memory does not grow with the number of files."""

from __future__ import annotations

import os

import pytest

from tests.lab.server_user import server_user
from tests.restore.conftest import MakeKeeper
from tests.survive.peak import peak_mib

LIMIT_MIB = 150
FILES = int(os.environ.get("PGKEEP_TEST_FILES", "20000"))
"""A million is for a night: PGKEEP_TEST_FILES=1000000."""


@pytest.mark.timeout(7200 if FILES > 100_000 else 300)
def test_many_files_take_no_more_memory(make_keeper: MakeKeeper) -> None:
    """Every job over very many files stays within 150 MiB."""
    keeper = make_keeper(settings={"wal_keep_size": "256MB"})
    bin_dir = f"--bin-dir={keeper.cluster.installation.bin_dir}"

    def run_all(target: str) -> dict[str, float]:
        return {
            "full": peak_mib(keeper, "backup", *keeper.backup_options("full", "local")),
            "differential": peak_mib(keeper, "backup", *keeper.backup_options("differential", "local")),
            "stream": peak_mib(keeper, "backup", *keeper.backup_options("full", "stream")),
            "stream again": peak_mib(keeper, "backup", *keeper.backup_options("differential", "stream")),
            "verify": peak_mib(keeper, "verify"),
            "info": peak_mib(keeper, "info"),
            "restore": peak_mib(keeper, "restore", bin_dir, f"--pgdata-dir={keeper.directory}/{target}", "--no-start"),
        }

    few = run_all("few")
    base = keeper.cluster.data_directory / "base/5"
    for number in range(FILES):
        # Longer names than a relation's, and content that no two share.
        (base / f"some_extension_file_{number:07}").write_text(f"{number}\n")
    server_user().own(base)
    many = run_all("many")
    for name, peak in many.items():
        print(f"{name}: {few[name]:.0f} MiB with 1,000 files, {peak:.0f} MiB with {FILES:,}")  # noqa: T201
        assert peak <= LIMIT_MIB, (name, few, many)
