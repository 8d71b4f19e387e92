"""The parts of a database from a supply that can be asked: looked over first, then loaded in the best order."""

from __future__ import annotations

import threading

from pgkeep.modes.dump_items import Supply
from pgkeep.modes.parallel_dump_plan import (
    COMPLETE_FILE,
    DATA_DIRECTORY,
    SCHEMA_FILE,
    TABLES_DIRECTORY,
    TABLES_FILE,
    PartsComplete,
    PartsTables,
)
from pgkeep.modes.parallel_restore import PartsLoader, decoded, number_of
from pgkeep.modes.parallel_restore_proof import LoadingTable, check_chunks


def load_parts(loader: PartsLoader, root: str, supply: Supply) -> None:
    """
    Load a database whose parts can be asked for by name, several times.

    Raises:
        BackupUnusable: A part is missing, which is found out before the first is loaded; or it is damaged.
        ServerError: A part could not be loaded.
    """
    _check_names(root, supply)
    for name in (SCHEMA_FILE, TABLES_FILE, COMPLETE_FILE):
        for item in supply(f"{root}/{name}".__eq__):
            loader.take(item)
    # The order of a record is that in which its files were complete; several were written at once.
    data = sorted(supply(lambda path: path.startswith(f"{root}/{DATA_DIRECTORY}/")), key=lambda item: item.header.path)
    error: list[BaseException] = []

    def feed() -> None:
        try:
            for item in data:
                loader.take(item)
        except BaseException as met:  # noqa: BLE001 - raised again below
            error.append(met)
            # Hours of loading what is given up anyway would hide it.
            loader.fail(met)

    feeder = threading.Thread(target=feed, name="feed", daemon=True)
    feeder.start()
    try:
        for item in supply(lambda path: path.startswith(f"{root}/{TABLES_DIRECTORY}/")):
            loader.take(item)
    except BaseException:
        loader.close()
        raise
    finally:
        feeder.join()
    if error:
        raise error[0]
    loader.finish()


def _check_names(root: str, supply: Supply) -> None:
    """Raise BackupUnusable when the names of the parts alone say that one is missing or one too many."""
    described = [decoded(item, PartsTables) for item in supply(f"{root}/{TABLES_FILE}".__eq__)]
    complete = [decoded(item, PartsComplete) for item in supply(f"{root}/{COMPLETE_FILE}".__eq__)]
    if not described or not complete:
        # The loader says which of them is missing.
        return
    tables = {table.directory: LoadingTable(table) for table in described[0].tables}
    pieces = 0
    for item in supply(lambda path: path.startswith(f"{root}/")):
        directory, _, file = item.header.path.removeprefix(f"{root}/").rpartition("/")
        stem = file.partition(".")[0]
        if directory == DATA_DIRECTORY:
            pieces += 1
        elif (table := tables.get(directory.removeprefix(f"{TABLES_DIRECTORY}/"))) is not None:
            table.chunks.add(number_of(stem, ""))
    check_chunks(root, complete[0], pieces=pieces, tables=tables)
