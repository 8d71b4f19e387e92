"""RESTORE.md: how to rebuild one backup with tar, zstd and PostgreSQL's own programs, without pgkeep."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from pgkeep.pg.replication_sql import SLOTS_FILE, SUBSCRIPTIONS_FILE
from pgkeep.streams.record import RecordHead, Tablespace, VolumeEntry

_DATA_DIRECTORY = "/path/to/new/data"
_CHAIN = "/path/to/chain"


def render_recipe(head: RecordHead, volumes: Sequence[VolumeEntry]) -> str:
    """Return the text of RESTORE.md for the backup with *head*."""
    sections = [_title(head)]
    if head.mode == "pitr_block":
        sections += [_unpack_chain(head), *_tablespaces(head), _to_the_end(head), _further(head)]
    elif head.mode != "pitr":
        sections.append(_unpack_only(head))
    elif head.has_files and not head.references:
        sections += [_unpack_full(), *_tablespaces(head), *_configuration(head), _to_the_end(head), _further(head)]
    elif head.has_files:
        sections += [
            _unpack_differential(head),
            *_tablespaces(head),
            *_configuration(head),
            _to_the_end(head),
            _further(head),
        ]
    else:
        sections += [_wal_only(head), _further(head)]
    sections += _replication(head)
    sections.append(_integrity(volumes))
    return "\n".join(sections)


def _title(head: RecordHead) -> str:
    facts = [
        ("backup", head.backup_id),
        ("cluster", head.cluster),
        ("mode and level", f"{head.mode}, {head.level.word}"),
        ("builds on", head.base),
        ("merged from", ", ".join(head.details.get("merged_from", ()))),
        ("files in", head.files_from if head.files_from != head.backup_id else ""),
        ("content also in", ", ".join(head.references)),
        ("PostgreSQL", head.server_version_text or (str(head.server_version) if head.server_version else "")),
        ("system identifier", head.system_identifier),
        ("timeline", str(head.timeline) if head.timeline else ""),
        ("start LSN", head.start_lsn),
        ("stop LSN", head.stop_lsn),
        ("begun", head.begin_time or head.start_time),
        ("ended", head.end_time or head.stop_time),
        ("first WAL segment", head.wal.first_segment if head.wal else ""),
        ("last WAL segment", head.wal.last_segment if head.wal else ""),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in facts if value)
    return f"""\
# Restoring {head.backup_id} without pgkeep

`pgkeep restore` does all of this, and checks every byte. This page is for the day when there is no pgkeep: it needs
`tar` (GNU), `zstd`, `sed`, and PostgreSQL of the same major version. Run the commands in this directory.

| | |
|---|---|
{table}
"""


def _unpack_only(head: RecordHead) -> str:
    is_parallel = head.mode == "parallel_dump"
    how = "the script `restore.sh` in its directory" if is_parallel else "`pg_restore` (or `psql`, for `.sql`)"
    return f"""\
## Unpack

    zstdcat volume-*.tar.zst | tar -xi -C /path/to/somewhere

The files are then in `{head.mode}/`. Names of databases are percent-encoded where they need it. Restore `globals.sql`
with `psql` first, then each database with {how}.
"""


def _unpack_full() -> str:
    return f"""\
## Unpack

As the user that will run PostgreSQL:

    mkdir -m 700 {_DATA_DIRECTORY}
    zstdcat volume-*.tar.zst | tar -xi -C {_DATA_DIRECTORY}
"""


def _unpack_differential(head: RecordHead) -> str:
    unpack = "\n".join(
        f"    zstdcat ../{backup_id}/volume-*.tar.zst | tar -xi -C {_DATA_DIRECTORY}" for backup_id in head.references
    )
    return f"""\
## Unpack

Files that had not changed are in the earlier backups; unpack those first, then this one over them. As the user that
will run PostgreSQL:

    mkdir -m 700 {_DATA_DIRECTORY}
{unpack}
    rm -rf {_DATA_DIRECTORY}/pg_wal/*
    zstdcat volume-*.tar.zst | tar -xi -C {_DATA_DIRECTORY}

Then remove the files that did not exist any more when this backup was made:

    zstdcat manifest.json.zst \\
      | sed -nE -e '/"kind":"directory"/d' \\
          -e 's/^\\{{"path":"@postgresql\\/(cluster_[^"/]*\\/)?pitr\\/wal\\/([^"]*)".*/.\\/pg_wal\\/\\2/p;t' \\
          -e 's/^\\{{"path":"@postgresql\\/(cluster_[^"/]*\\/)?pitr\\/tblspc\\/([^"]*)".*/.\\/pg_tblspc\\/\\2/p;t' \\
          -e 's/^\\{{"path":"@postgresql\\/(cluster_[^"/]*\\/)?pitr\\/pgdata\\/([^"]*)".*/.\\/\\2/p;t' \\
          -e 's/^\\{{"path":"@postgresql\\/(cluster_[^"/]*\\/)?pitr\\/([^"]*)".*/.\\/\\2/p' \\
      | LC_ALL=C sort > /tmp/expected
    (cd {_DATA_DIRECTORY} && find . ! -type d) | LC_ALL=C sort > /tmp/found
    LC_ALL=C comm -13 /tmp/expected /tmp/found | (cd {_DATA_DIRECTORY} && xargs -r -d '\\n' rm --)
"""


def _unpack_chain(head: RecordHead) -> str:
    chain = [*head.details.get("chain", ()), head.backup_id]
    unpack = "\n".join(f"    zstdcat ../{one}/volume-*.tar.zst | tar -xi -C {_CHAIN}" for one in chain)
    if len(chain) == 1:
        why = "As the user that will run PostgreSQL:"
        combine = f"    mv {_CHAIN}/{head.backup_id} {_DATA_DIRECTORY}\n    chmod 700 {_DATA_DIRECTORY}"
    else:
        why = (
            "This backup holds blocks that changed since the one that it builds on. PostgreSQL's `pg_combinebackup`\n"
            "puts the whole chain together, and needs room for all of it. As the user that will run PostgreSQL:"
        )
        members = " ".join(f"{_CHAIN}/{one}" for one in chain)
        combine = f"    pg_combinebackup -o {_DATA_DIRECTORY} {members}"
    return f"""\
## Unpack

{why}

    mkdir -m 700 {_CHAIN}
{unpack}
{combine}
    mv {_CHAIN}/pg_wal/* {_DATA_DIRECTORY}/pg_wal/
    rm -rf {_CHAIN}
"""


def _tablespaces(head: RecordHead) -> list[str]:
    return [*_moves(head.tablespaces), *_left_out(head)]


def _moves(tablespaces: Sequence[Tablespace]) -> list[str]:
    outside = [tablespace for tablespace in tablespaces if tablespace.location]
    if not outside:
        return []
    moves = []
    for tablespace in outside:
        location = shlex.quote(tablespace.location)
        here = f"{_DATA_DIRECTORY}/pg_tblspc/{tablespace.oid}"
        moves.append(f"    mkdir -p -m 700 {location}\n    mv {here}/* {location}/ && rmdir {here}")
    return [
        f"""\
## Tablespaces

They were unpacked below `pg_tblspc`. Move each to its place; the server makes the links from `tablespace_map`. For
another place, change the path here and in `{_DATA_DIRECTORY}/tablespace_map`. The directories must be empty or absent:

"""
        + "\n".join(moves)
        + "\n"
    ]


def _left_out(head: RecordHead) -> list[str]:
    oids = head.details.get("left_out", ())
    if not oids:
        return []
    lines = "|".join(str(oid) for oid in oids)
    return [
        f"""\
## What is missing

Tablespace {", ".join(str(oid) for oid in oids)} is not in this backup. Its link must not come back: on the host of the
original it would lead into the original's files, and the server would change them.

    sed -Ei '/^({lines}) /d' {_DATA_DIRECTORY}/tablespace_map
    echo 'allow_in_place_tablespaces = on' >> {_DATA_DIRECTORY}/postgresql.auto.conf

The server does without a `tablespace_map` that is empty. When it runs, drop what was in the tablespace, then the
tablespace, then take the setting out again.
"""
    ]


def _configuration(head: RecordHead) -> list[str]:
    files = head.details.get("configuration", ())
    if not files:
        return []
    lines = "\n".join(f"    {path}" for path in files)
    config_file = head.settings.get("config_file", "")
    start = f" -o '-c config_file={config_file}'" if config_file in files else ""
    return [
        f"""\
## Configuration

These files were not in the data directory. They were unpacked below `{_DATA_DIRECTORY}/config`:

{lines}

Where they are missing, put them to their places, then take them out of the data directory. The server is started with
`pg_ctl -D {_DATA_DIRECTORY}{start} -l logfile start` then, or by `pg_ctlcluster` on Debian.

    cp -an {_DATA_DIRECTORY}/config/. /
    rm -r {_DATA_DIRECTORY}/config
"""
    ]


def _to_the_end(head: RecordHead) -> str:
    return f"""\
## Start

The WAL that this backup needs is in `pg_wal` already. Look at `postgresql.conf` (`archive_command`, paths,
`port`), then

    pg_ctl -D {_DATA_DIRECTORY} -l logfile start

brings the cluster to LSN {head.stop_lsn}, where this backup ended. `backup_label` must be there at the first start.
"""


def _wal_only(head: RecordHead) -> str:
    return f"""\
## Unpack

This backup holds only WAL; it belongs to the files of `{head.files_from}`. Follow `../{head.files_from}/RESTORE.md` up
to, and without, its start of the server; then go on here.
"""


def _further(head: RecordHead) -> str:
    start = head.wal.first_segment if head.wal else ""
    from_segment = f" (this backup's own begins with `{start}`)" if start else ""
    return f"""\
## Recover to a later moment

All WAL is in `../../wal`{from_segment}. Before the first start, add to `{_DATA_DIRECTORY}/postgresql.auto.conf`, with the
full path of that directory for `WAL`:

    restore_command = 'f=%f; for d in WAL/$(echo $f | cut -c1-8)/$(echo $f | cut -c1-16) WAL/$(echo $f | cut -c1-8); do if [ -e $d/$f.zst ]; then exec zstd -dqf -o %p $d/$f.zst; fi; done; exit 1'
    recovery_target_time = '2026-01-31 12:00:00+00'      # or leave it out: as far as there is WAL
    recovery_target_action = 'promote'

and `touch {_DATA_DIRECTORY}/recovery.signal`. Then start the server and watch its log.
"""  # noqa: E501 - a setting is one line


def _replication(head: RecordHead) -> list[str]:
    if head.replication is None:
        return []
    return [
        f"""\
## Slots and subscriptions

No backup brings back a replication slot, and a restored subscription that wakes takes the publisher's slot away from
the server that uses it. Where there are any, start the server with `max_logical_replication_workers = 0`, disable them
(`ALTER SUBSCRIPTION … DISABLE`) and take the setting out again. There were {head.replication.summary}:
read `{SLOTS_FILE}` and `{SUBSCRIPTIONS_FILE}`, then run them with `psql`.
"""
    ]


def _integrity(volumes: Sequence[VolumeEntry]) -> str:
    sizes = "\n".join(f"| {volume.name} | {volume.size} |" for volume in volumes)
    return f"""\
## Is it whole?

`zstd -t volume-*.tar.zst manifest.json.zst` checks what zstd can check. `manifest.json.zst` is JSON with one line for
each file, which has the size and the BLAKE3 of its content. The volumes:

| volume | bytes |
|---|---|
{sizes}
"""
