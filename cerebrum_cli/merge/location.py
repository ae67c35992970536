"""Where a value stands in a file, and readers of mappings, lists and texts whose errors name that place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from cerebrum_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """A value's place: the name of the file, and the way to it, as in `slices[2].sources[0]`."""

    where: str
    path: str = ""

    def key(self, key: str) -> Place:
        """Return the place of a mapping's value."""
        return Place(self.where, f"{self.path}.{key}" if self.path else key)

    def item(self, index: int) -> Place:
        """Return the place of a list's item, the first of which is 0."""
        return Place(self.where, f"{self.path}[{index}]")

    def error(self, problem: str, do: str) -> UsageError:
        """Return the error that says what is wrong here, one line each whatever the file holds."""
        at = f"{self.path}: " if self.path else ""
        return UsageError(one_line(f"{self.where}: {at}{problem}"), one_line(do))


def read_row(
    place: Place, value: object, keys: Sequence[str], ignored: Sequence[str] = (), unsupported: Sequence[str] = ()
) -> dict[str, object]:
    """Return a mapping without the keys that are ignored or have no value. UsageError for a key that is none of these.

    `unsupported` are keys mergekit knows and a merge here cannot follow.
    """
    if not isinstance(value, dict):
        raise place.error("a mapping is needed", f"write lines of `key: value`; the keys are {', '.join(keys)}")
    for key, item in value.items():
        if key in unsupported and item is not None:
            problem = "cerebrum does not support this mergekit key"
            raise place.key(key).error(problem, "remove it, if the merge is then still what you want")
        if key not in (*keys, *ignored, *unsupported):
            raise place.error(f"unknown key {quoted(key)}", choices(key, keys))
    return {key: item for key, item in value.items() if key in keys and item is not None}


def read_items(place: Place, value: object) -> list[tuple[Place, object]]:
    """Return the items of a list, each with its place."""
    if not isinstance(value, list) or not value:
        raise place.error("a list with at least one item is needed", "start each item with `- `")
    return [(place.item(index), item) for index, item in enumerate(value)]


def read_text(place: Place, value: object, needed: str) -> str:
    """Return a text that can be shown as it is."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise place.error(f"{needed} is needed", "write it on one line, quoted if YAML would read it as something else")
    return value.strip()


def choices(given: object, known: Sequence[str]) -> str:
    """Return which of what is known is meant, as a guess, and what there is."""
    near = get_close_matches(given[:100], known, n=1) if isinstance(given, str) else []
    return f"{f'did you mean {near[0]}? ' if near else ''}valid: {', '.join(known)}"


def quoted(value: object) -> str:
    """Return a text as it is shown within an error, in quotes if it is blank; what is none is told by its type."""
    if not isinstance(value, str):
        return f"({type(value).__name__})"
    return short(value if value.strip() else repr(value), 60)


def short(text: str, length: int) -> str:
    """Return a text, its end left out where it is longer than this."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def one_line(text: str) -> str:
    """Return a text with escapes for what is no character on a line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
