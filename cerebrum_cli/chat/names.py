"""Session names: one line of printable text, so that every name can be shown and typed."""

from __future__ import annotations

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.text import well_formed


def printable_name(name: str) -> str:
    """Remove from a name what cannot be printed on one line."""
    return "".join(char if char.isprintable() else " " for char in well_formed(name)).strip()


def validated_name(name: str) -> str:
    """Normalize a session name as it is stored. Raises SessionError if it is invalid."""
    name = well_formed(name)
    if not name or name != printable_name(name):
        raise SessionError(
            f"invalid session name {name!r}", "use one line of printable text without leading or trailing spaces"
        )
    return name
