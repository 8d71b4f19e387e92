"""``pgkeep grants``."""

from __future__ import annotations

from pgkeep.cli.door import Call
from pgkeep.cli.output import print_line
from pgkeep.pg.grants import grants


def run(call: Call, *, role: str, major: int) -> None:
    """Print the SQL."""
    settings = call.settings
    transport = settings.get("transport")
    text = grants(settings.get("mode"), major, role, transport="local" if transport == "auto" else transport)
    print_line(text.rstrip("\n"))
