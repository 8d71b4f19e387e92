"""The parameters of the table that are no options of any command."""

from __future__ import annotations

from pgkeep.settings.unbuilt import NOT_BUILT as UNBUILT

NOT_BUILT = UNBUILT | {"abort_on_error", "debug", "profile", "state_dir", "timeout", "wal_restore_dir"}
"""Parameters that no command acts on yet: no option of any command; where a file sets one, there is a warning."""
