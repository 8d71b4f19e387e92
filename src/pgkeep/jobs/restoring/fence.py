"""The fence around a restored server: the settings under which it replays, and is checked, without harm to anybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pgkeep.datadir.instance import Instance, PrivateAccess
from pgkeep.datadir.postmaster import read_control_file
from pgkeep.jobs.restoring.replay import WATCHED_LOG
from pgkeep.pg.preloaded import fence_libraries
from pgkeep.pg.recovery import fence_settings
from pgkeep.pg.replay_settings import REPLAY_MINIMUMS


class Fence:
    """
    Starts one server behind its fence, as often as that is needed.

    The five settings that a replaying server must have as high as its primary had are taken from the backups' records
    and from the control file, which replay keeps up to date: where the primary was told a higher value since, the
    server stops or pauses at that place in the WAL, and can be started again with what is asked by then.
    """

    def __init__(
        self,
        instance: Instance,
        access: PrivateAccess,
        *,
        major: int,
        minimums: Mapping[str, int],
        say: Callable[[str], None],
    ) -> None:
        self._instance = instance
        self._access = access
        self._major = major
        self._minimums = dict(minimums)
        self._say = say

    def start(self) -> None:
        """Start the server and return without waiting for it; errors are those of ``Instance.start``."""
        required = self._required()
        for name, value in required.items():
            if value > self._minimums.get(name, value):
                self._say(f"{name} is raised to {value} for the replay: the source was given more since the backup")
        self._minimums = required
        libraries = fence_libraries(self._instance.configured("shared_preload_libraries"))
        if libraries.left_out:
            self._say(f"not loaded behind the fence, since they act by themselves: {', '.join(libraries.left_out)}")
        self._instance.start(
            libraries.settings
            | fence_settings(major=self._major, socket_directory=str(self._access.directory))
            | self._access.settings()
            | {name: str(value) for name, value in required.items()}
            | WATCHED_LOG
        )

    def is_too_small(self) -> bool:
        """Tell whether the WAL that was replayed asks for more than the server was started with."""
        return any(value > self._minimums.get(name, 0) for name, value in self._required().items())

    def _required(self) -> dict[str, int]:
        control = read_control_file(self._instance.data_directory)
        return {name: max(self._minimums.get(name, 0), int(getattr(control, name))) for name in REPLAY_MINIMUMS}
