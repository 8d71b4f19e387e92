"""What holds between parameters: contradictions, consequences, and what has no meaning beside the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pgkeep.errors import UsageError
from pgkeep.settings.assignment import Rank
from pgkeep.settings.parameter import Group, Place
from pgkeep.settings.resolved import Setting
from pgkeep.settings.table import BY_NAME

_TARGETS = ("target_time", "target_lsn", "target_xid", "target_name", "skip_wal_replay")
_HIGHEST_LEVEL = {"gzip": 9, "lz4": 12, "zstd": 22}


@dataclass
class _Job:
    """The settings of one job while the rules work on them."""

    verb: str
    given: dict[str, Setting]
    warnings: list[str] = field(default_factory=list)

    def value(self, name: str) -> Any:
        return self.given[name].value if name in self.given else BY_NAME[name].default

    def where(self, name: str) -> str:
        return self.given[name].origin.where


def apply_rules(given: dict[str, Setting], *, verb: str) -> tuple[dict[str, Setting], list[str]]:
    """
    Return *given* with its consequences, and warnings.

    Raises:
        SettingsError, UsageError: Two parameters contradict each other.
    """
    job = _Job(verb, dict(given))
    for rule in _RULES.get(verb, ()):
        rule(job)
    return job.given, job.warnings


def _warn_of_other_modes(job: _Job) -> None:
    """
    Warn of what was given for this job and has no meaning in its mode.

    The configuration file serves many jobs, so it gives no such warning; nor does a Plugin line at a restore, which is
    the one of the backup.
    """
    mode = job.value("mode" if job.verb == "backup" else "restore_mode")
    if mode in ("auto", "files"):
        return
    for name, setting in job.given.items():
        parameter = BY_NAME[name]
        if setting.origin.rank < Rank.LINE or not parameter.modes or mode in parameter.modes:
            continue
        is_for_the_other = (parameter.group is Group.RESTORE) == (job.verb == "backup")
        if is_for_the_other and setting.origin.place is Place.PLUGIN_LINE:
            continue
        job.warnings.append(f"{name} has no meaning in mode {mode} and is ignored {setting.origin.where}")


def _settle_compression(job: _Job) -> None:
    """Hold the level against the algorithm; a level alone means gzip, or zstd for the mode that compresses with it."""
    level = job.value("compression_level")
    if not level:
        return
    if job.value("compress") == "auto":
        usual = "zstd" if job.value("mode") == "parallel_dump" else "gzip"
        job.given["compress"] = Setting(usual, job.given["compression_level"].origin)
    algorithm = job.value("compress")
    if algorithm == "none":
        job.warnings.append(f"compression_level has no meaning with compress=none {job.where('compression_level')}")
    elif level > _HIGHEST_LEVEL[algorithm]:
        raise job.given["compression_level"].origin.error(
            f"compression_level must be from 1 to {_HIGHEST_LEVEL[algorithm]} for {algorithm}, found {level} "
            f"{job.where('compression_level')}"
        )


def _settle_standby(job: _Job) -> None:
    """Naming a standby asks for a backup from it."""
    if not job.value("standby_host"):
        return
    if "backup_from_standby" not in job.given:
        job.given["backup_from_standby"] = Setting(True, job.given["standby_host"].origin)
    elif not job.value("backup_from_standby") and not job.value("track_replication_state"):
        job.warnings.append(f"standby_host has no meaning with backup_from_standby=no {job.where('standby_host')}")


def _refuse_incomplete(job: _Job) -> None:
    if job.value("exclude_tablespace") and job.value("mode") == "pitr" and not job.value("allow_incomplete"):
        raise job.given["exclude_tablespace"].origin.error(
            f"exclude_tablespace makes a backup that lacks files of the cluster {job.where('exclude_tablespace')}",
            hint="set allow_incomplete=yes to accept that replay may fail and tables will be missing",
        )


def _settle_target(job: _Job) -> None:
    """At most one recovery target: PostgreSQL refuses two. An LSN wins over a time; a standby has none."""
    targets = [name for name in _TARGETS if job.value(name)]
    if "target_lsn" in targets and "target_time" in targets:
        job.warnings.append("target_lsn wins over target_time, which is ignored")
        targets.remove("target_time")
        del job.given["target_time"]
    if len(targets) > 1:
        found = " and ".join(f"{name} {job.where(name)}" for name in targets)
        raise UsageError(f"one recovery target is possible, found {found}", hint="leave one of them")
    if targets and job.value("restore_as_standby"):
        raise UsageError(
            f"restore_as_standby has no recovery target, found {targets[0]} {job.where(targets[0])}",
            hint="leave one of them",
        )


def _settle_standby_restore(job: _Job) -> None:
    """A standby follows its primary for ever, along whatever timelines that takes."""
    if not job.value("restore_as_standby"):
        if _is_of_this_restore(job, "primary_conninfo"):
            where = job.where("primary_conninfo")
            job.warnings.append(f"primary_conninfo has no meaning without restore_as_standby {where}")
        return
    for name in ("target_timeline", "recovery_target_action"):
        if _is_of_this_restore(job, name):
            raise UsageError(f"restore_as_standby has no {name}, found one {job.where(name)}", hint="leave one of them")


def _is_of_this_restore(job: _Job, name: str) -> bool:
    """Tell whether *name* was given for this restore: the Plugin line is the backup's, the configuration serves all."""
    given = job.given.get(name)
    return given is not None and given.origin.rank >= Rank.LINE and given.origin.place is not Place.PLUGIN_LINE


def _settle_new_database(job: _Job) -> None:
    if job.value("new_database") is None:
        return
    chosen = job.value("target_database")
    if len(chosen) != 1 or set(chosen[0]) & set("*?["):
        found = ", ".join(chosen) or "none"
        raise UsageError(f"new_database needs exactly one target_database by name, found {found}")


def _settle_replication(job: _Job) -> None:
    """The master switch wins when it is off."""
    if job.value("restore_replication_state"):
        return
    for name, off in (("recreate_replication_slots", False), ("recreate_subscriptions", "no")):
        if name in job.given and job.value(name) != off:
            job.warnings.append(f"{name} has no meaning with restore_replication_state=no {job.where(name)}")
        job.given[name] = Setting(off, job.given["restore_replication_state"].origin)


def _settle_overwrite(job: _Job) -> None:
    if job.value("wipe_pgdata") and not job.value("overwrite_existing"):
        job.warnings.append(f"wipe_pgdata has no meaning without overwrite_existing=yes {job.where('wipe_pgdata')}")


def _refuse_wal_inside(job: _Job) -> None:
    wal, pgdata = job.value("wal_restore_dir"), job.value("pgdata_dir")
    if wal and pgdata and f"{wal.rstrip('/')}/".startswith(f"{pgdata.rstrip('/')}/"):
        raise job.given["wal_restore_dir"].origin.error(
            f"wal_restore_dir must lie outside pgdata_dir {pgdata}, found {wal} {job.where('wal_restore_dir')}"
        )


_RULES: dict[str, tuple[Callable[[_Job], None], ...]] = {
    "backup": (_warn_of_other_modes, _settle_compression, _settle_standby, _refuse_incomplete),
    "check": (_settle_standby,),
    "restore": (
        _warn_of_other_modes,
        _settle_target,
        _settle_standby_restore,
        _settle_new_database,
        _settle_replication,
        _settle_overwrite,
        _refuse_wal_inside,
    ),
    "finish": (_settle_replication,),
    "drill": (_settle_target,),
}
