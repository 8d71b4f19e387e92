"""Parameters of the vault."""

from __future__ import annotations

from pgkeep.settings.parameter import Group, Kind, Parameter, Place

_SHELL = Place.CONFIG | Place.CLI

PARAMETERS = (
    Parameter(
        name="vault",
        kind=Kind.PATH,
        group=Group.VAULT,
        default_text="none: outside Bacula it must be set",
        places=_SHELL,
        verbs=(
            "init",
            "check",
            "backup",
            "restore",
            "finish",
            "info",
            "verify",
            "expire",
            "merge",
            "drill",
            "receive",
            "archive-push",
            "archive-get",
        ),
        example="/srv/pgkeep",
        help="Directory of the vault. Best on another file system, and another machine, than the data.",
    ),
    Parameter(
        name="zstd_level",
        kind=Kind.INTEGER,
        group=Group.VAULT,
        default=1,
        minimum=1,
        maximum=19,
        places=_SHELL,
        verbs=("backup", "merge", "archive-push", "receive"),
        example="3",
        help="How hard the vault compresses. Level 3 costs 1.7 times the processor time of level 1 and saves nothing "
        "on table data.",
    ),
    Parameter(
        name="retention_count",
        kind=Kind.INTEGER,
        group=Group.VAULT,
        default=0,
        minimum=0,
        maximum=100_000,
        unit="Full backups",
        places=_SHELL,
        verbs=("expire",),
        flags=("--keep", "--retention-count"),
        example="4",
        help="How many Full backups of each mode `expire` keeps, with all that builds on them; 0 sets no such rule. "
        "Only clean ones count: whole, and without damaged pages. Without any rule nothing is removed.",
    ),
    Parameter(
        name="retention_window",
        kind=Kind.DURATION,
        group=Group.VAULT,
        default=0,
        minimum=0,
        maximum=36500 * 86400,
        unit="d",
        places=_SHELL,
        verbs=("expire",),
        flags=("--window", "--retention-window"),
        example="30d",
        help="How far back every moment stays reachable; 0 sets no such rule. The newest Full before the window is "
        "kept with its WAL. What either rule keeps is kept. A number without a unit counts days.",
    ),
)
