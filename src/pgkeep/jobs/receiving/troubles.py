"""What is wrong, said once: when it begins, when it changes, and when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trouble:
    """
    Something that somebody has to look after.

    Attributes:
        name: What kind of trouble; there is one of a kind at a time.
        message: One line, with figures that may change from look to look.
        state: Said again when this is another one.
        is_said: Whether somebody else has said it, and will say that it is over.
    """

    name: str
    message: str
    state: str = ""
    is_said: bool = False


class Troubles:
    """
    The troubles of one receiver.

    Args:
        say: Takes one line for the log.
        warn: Takes one warning.
    """

    def __init__(self, *, say: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self._say = say
        self._warn = warn
        self._now: dict[str, Trouble] = {}

    def update(self, found: Iterable[Trouble]) -> None:
        """Say what is new in *found*, which is all that is wrong now, and what is over."""
        now = {trouble.name: trouble for trouble in found}
        for trouble in now.values():
            before = self._now.get(trouble.name)
            if not trouble.is_said and (before is None or before.state != trouble.state):
                self._warn(trouble.message)
        for name, trouble in self._now.items():
            if name not in now and not trouble.is_said:
                self._say(f"is over: {trouble.message}")
        self._now = now

    def messages(self) -> dict[str, str]:
        """Return what is wrong now: messages by names."""
        return {trouble.name: trouble.message for trouble in self._now.values()}
