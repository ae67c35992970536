"""What a session may be called: whatever is printed on one line, so that it can be typed and read again."""

from __future__ import annotations

from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.text import well_formed


def printable_name(name: str) -> str:
    """Return a name without what cannot be printed on one line."""
    return "".join(char if char.isprintable() else " " for char in well_formed(name)).strip()


def validated_name(name: str) -> str:
    """Return a name as it is kept. SessionError where a session cannot be called so."""
    name = well_formed(name)
    if not name or name != printable_name(name):
        what = f"{name!r} is no name for a session"
        raise SessionError(what, "give one that stands on one line, with no white space before or after it")
    return name
