"""Locations in a YAML file, and readers of mappings, lists and texts whose errors name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from cerebrum_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Location:
    """Location of a value: the file name, and the path to it, such as `slices[2].sources[0]`."""

    file: str
    path: str = ""

    def key(self, key: str) -> Location:
        return Location(self.file, f"{self.path}.{key}" if self.path else key)

    def item(self, index: int) -> Location:
        """Location of an item in a list, counted from 0."""
        return Location(self.file, f"{self.path}[{index}]")

    def error(self, problem: str, hint: str) -> UsageError:
        """Build an error for this location, with control characters escaped."""
        at = f"{self.path}: " if self.path else ""
        return UsageError(printable(f"{self.file}: {at}{problem}"), printable(hint))


def read_mapping(
    location: Location, value: object, keys: Sequence[str], ignored: Sequence[str] = (), unsupported: Sequence[str] = ()
) -> dict[str, object]:
    """Read a mapping, without ignored keys and keys without a value. Raises UsageError for an unknown key.

    `unsupported` are mergekit keys that change the merge and are not implemented.
    """
    for key, item in require_mapping(location, value, keys).items():
        if key in unsupported and item is not None:
            problem = "mergekit key not supported by cerebrum"
            raise location.key(key).error(problem, "remove it if the merge does not depend on it")
        if key not in (*keys, *ignored, *unsupported):
            raise location.error(f"unknown key {quoted(key)}", choices(key, keys))
    return {
        key: item for key, item in require_mapping(location, value, keys).items() if key in keys and item is not None
    }


def require_mapping(location: Location, value: object, keys: Sequence[str]) -> dict[Any, object]:
    """Raise UsageError if a value is not a mapping; `keys` are listed in the hint."""
    if not isinstance(value, dict):
        raise location.error("not a mapping", f"write lines of `key: value` with these keys: {', '.join(keys)}")
    return value


def read_items(location: Location, value: object) -> list[tuple[Location, object]]:
    """Read a list that is not empty: its items with their locations."""
    if not isinstance(value, list) or not value:
        raise location.error("not a list with items", "begin each item with `- `")
    return [(location.item(index), item) for index, item in enumerate(value)]


def read_text(location: Location, value: object, needed: str) -> str:
    """Read a printable text; `needed` describes it in the error."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise location.error(f"not {needed}", "write it on one line, quoted if YAML reads it as another type")
    return value.strip()


def choices(given: object, known: Sequence[str]) -> str:
    """Hint that suggests the known name closest to a given one, and lists all of them."""
    near = nearest(given, known)
    return f"{f'did you mean {near}? ' if near else ''}supported: {', '.join(known)}"


def nearest(given: object, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """Known name closest to a given one, None if none is similar enough."""
    return next(iter(get_close_matches(given[:100], known, 1, cutoff)), None) if isinstance(given, str) else None


def quoted(value: object) -> str:
    """Format a value for an error message: text quoted if blank, anything else as its type."""
    if not isinstance(value, str):
        return f"({type(value).__name__})"
    return truncate(value if value.strip() else repr(value), 60)


def truncate(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def printable(text: str) -> str:
    """Escape characters that are not printable."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
