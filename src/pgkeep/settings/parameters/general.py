"""Parameters of every job: which mode, which cluster, where pgkeep keeps its own files."""

from __future__ import annotations

from pgkeep.settings.parameter import MODES, VERBS, Group, Kind, Parameter, Place

_ANY = Place.PLUGIN_LINE | Place.CONFIG | Place.CLI
_JOBS = ("init", "check", "backup", "restore", "finish", "drill")

PARAMETERS = (
    Parameter(
        name="mode",
        kind=Kind.CHOICE,
        group=Group.GENERAL,
        default="dump",
        choices=MODES,
        places=_ANY,
        verbs=("backup", "check", "grants"),
        example="pitr",
        help="How the backup is made. `dump` and `parallel_dump` are logical, one dump per database; `pitr` copies "
        "the data directory and its WAL; `pitr_block` (PostgreSQL 17 or newer) sends changed blocks only; `cdp` ships "
        "WAL continuously.",
    ),
    Parameter(
        name="level",
        kind=Kind.CHOICE,
        group=Group.GENERAL,
        default="full",
        choices=("full", "differential", "incremental"),
        synonyms={"f": "full", "d": "differential", "i": "incremental", "diff": "differential", "incr": "incremental"},
        places=Place.CLI,
        verbs=("backup",),
        example="incremental",
        help="The level of this backup. Inside Bacula the job's own level decides; the logical modes always make a "
        "Full and say so.",
    ),
    Parameter(
        name="cluster_id",
        kind=Kind.TEXT,
        group=Group.GENERAL,
        default_text="empty: paths begin with `@postgresql/<mode>`",
        pattern=r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}",
        pattern_text="1 to 63 letters, digits, underscores, dots or hyphens, not starting with a dot or hyphen",
        places=_ANY,
        verbs=("backup",),
        example="billing",
        help="A name for the cluster that gives its backups their own directory, `@postgresql/cluster_<id>/`. "
        "It also selects the section `[cluster:<id>]` of the configuration file.",
    ),
    Parameter(
        name="config",
        kind=Kind.PATH,
        group=Group.GENERAL,
        default="/etc/pgkeep/pgkeep.conf",
        places=Place.PLUGIN_LINE | Place.CLI,
        verbs=VERBS,
        example="/opt/bacula/etc/pgkeep/pgkeep.conf",
        help="The configuration file. Without this parameter the file may be absent; a named one must exist. "
        "It is refused when group or others may write it, or when it holds a password that others may read.",
    ),
    Parameter(
        name="abort_on_error",
        kind=Kind.BOOL,
        group=Group.GENERAL,
        default=False,
        places=_ANY,
        verbs=("backup", "restore"),
        example="yes",
        help="End the job at the first error. Otherwise a database that cannot be dumped is reported, the others "
        "are dumped, and the job ends with an error. A physical backup always ends at the first error.",
    ),
    Parameter(
        name="debug",
        kind=Kind.INTEGER,
        group=Group.GENERAL,
        default=0,
        minimum=0,
        maximum=9,
        places=_ANY,
        verbs=VERBS,
        example="2",
        help="How much to tell for fault finding; 0 is nothing. Secrets are left out at every value.",
    ),
    Parameter(
        name="timeout",
        kind=Kind.DURATION,
        group=Group.GENERAL,
        default=3600,
        minimum=0,
        maximum=7 * 86400,
        places=_ANY,
        verbs=("backup", "restore"),
        example="30min",
        help="How long the server, a child or the other end may stay silent before the job fails; 0 waits for ever.",
    ),
    Parameter(
        name="tmpdir",
        kind=Kind.PATH,
        group=Group.GENERAL,
        default="/var/tmp/pgkeep",  # noqa: S108  checked and created with mode 0700 by who uses it
        places=_ANY | Place.RESTORE,
        verbs=("backup", "restore"),
        example="/srv/scratch/pgkeep",
        help="Directory for what cannot be streamed. Only dumps in directory format are staged there; free space is "
        "checked first.",
    ),
    Parameter(
        name="bin_dir",
        kind=Kind.PATH,
        group=Group.GENERAL,
        default_text="searched for: `pg_config` on the PATH, `/usr/lib/postgresql/N/bin`, `/usr/pgsql-N/bin`",
        places=_ANY | Place.RESTORE,
        verbs=_JOBS,
        example="/usr/lib/postgresql/17/bin",
        help="Directory of PostgreSQL's own programs (`pg_dump`, `pg_ctl`, ...). A dump uses those of the server's "
        "major and not older than the server; a newer major is used only when its directory is named here.",
    ),
    Parameter(
        name="unix_user",
        kind=Kind.TEXT,
        group=Group.GENERAL,
        default_text="the owner of the data directory for programs that need it, else the user that runs pgkeep",
        aliases=("pg_os_user",),
        pattern=r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?",
        pattern_text="the name of a Unix user",
        places=_ANY | Place.RESTORE,
        verbs=_JOBS,
        example="postgres",
        help="The Unix user under which PostgreSQL's programs run when pgkeep runs as root.",
    ),
    Parameter(
        name="state_dir",
        kind=Kind.PATH,
        group=Group.GENERAL,
        default="/var/lib/pgkeep",
        places=_ANY,
        verbs=VERBS,
        example="/var/lib/pgkeep",
        help="Directory for what pgkeep remembers between jobs: copies of records, the state of restores under way.",
    ),
    Parameter(
        name="log_dir",
        kind=Kind.PATH,
        group=Group.GENERAL,
        default="/var/log/pgkeep",
        places=_ANY,
        verbs=("restore", "finish", "rollback"),
        example="/var/log/pgkeep",
        help="Directory for the audit file of each restore.",
    ),
    Parameter(
        name="local_timezone",
        kind=Kind.TIMEZONE,
        group=Group.GENERAL,
        default_text="the time zone of this host",
        places=_ANY | Place.RESTORE,
        verbs=("restore", "drill", "info"),
        example="America/Sao_Paulo",
        help="The zone of times that are given without one. A local time that is ambiguous or does not exist, "
        "because clocks change, is refused with both candidates.",
    ),
    Parameter(
        name="parallel_jobs",
        kind=Kind.INTEGER,
        group=Group.GENERAL,
        default=4,
        minimum=1,
        maximum=64,
        unit="workers",
        aliases=("jobs", "workers"),
        places=_ANY | Place.RESTORE,
        verbs=("backup", "restore", "finish", "drill", "verify", "merge", "archive-push", "archive-get"),
        flags=("--jobs", "--parallel-jobs"),
        menu=33,
        menu_name="jobs",
        example="2",
        help="How much work is done at once. Databases that are dumped or loaded, `-j` of `pg_dump` and `pg_restore`, "
        "files that are read, compressed and laid down.",
    ),
)
