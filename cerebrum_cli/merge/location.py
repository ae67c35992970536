"""Where a value stands in a file, and readers of mappings, lists and texts whose errors name that location."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from cerebrum_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Location:
    """A value's location: the name of the file, and the way to it, as in `slices[2].sources[0]`."""

    file: str
    path: str = ""

    def key(self, key: str) -> Location:
        """Return the location of a mapping's value."""
        return Location(self.file, f"{self.path}.{key}" if self.path else key)

    def item(self, index: int) -> Location:
        """Return the location of a list's item, the first of which is 0."""
        return Location(self.file, f"{self.path}[{index}]")

    def error(self, problem: str, hint: str) -> UsageError:
        """Return the error that says what is wrong here, one line each whatever the file holds."""
        at = f"{self.path}: " if self.path else ""
        return UsageError(one_line(f"{self.file}: {at}{problem}"), one_line(hint))


def read_mapping(
    location: Location, value: object, keys: Sequence[str], ignored: Sequence[str] = (), unsupported: Sequence[str] = ()
) -> dict[str, object]:
    """Return a mapping without the keys that are ignored or have no value. UsageError for a key that is none of these.

    `unsupported` are keys mergekit knows and a merge here cannot follow.
    """
    if not isinstance(value, dict):
        raise location.error("a mapping is needed", f"write lines of `key: value`; the keys are {', '.join(keys)}")
    for key, item in value.items():
        if key in unsupported and item is not None:
            problem = "cerebrum does not support this key of mergekit's"
            raise location.key(key).error(problem, "leave it out, if the merge is still the one you mean")
        if key not in (*keys, *ignored, *unsupported):
            raise location.error(f"there is no key {quoted(key)} here", choices(key, keys))
    return {key: item for key, item in value.items() if key in keys and item is not None}


def read_items(location: Location, value: object) -> list[tuple[Location, object]]:
    """Return the items of a list, each with its location."""
    if not isinstance(value, list) or not value:
        raise location.error("a list of one item or more is needed", "write each item on lines that begin with `- `")
    return [(location.item(index), item) for index, item in enumerate(value)]


def read_text(location: Location, value: object, needed: str) -> str:
    """Return a text that can be shown as it is."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise location.error(
            f"{needed} is needed", "write it on one line, in quotes if YAML takes it for something else"
        )
    return value.strip()


def choices(given: object, known: Sequence[str]) -> str:
    """Return which of what is known is meant, as a guess, and what there is."""
    near = get_close_matches(given[:100], known, n=1) if isinstance(given, str) else []
    return f"{f'is it {near[0]}? ' if near else ''}there {'are' if len(known) > 1 else 'is'} {', '.join(known)}"


def quoted(value: object) -> str:
    """Format a value for an error message: text quoted if blank, anything else as its type."""
    if not isinstance(value, str):
        return f"({type(value).__name__})"
    return truncate(value if value.strip() else repr(value), 60)


def truncate(text: str, length: int) -> str:
    """Return a text, its end left out where it is longer than this."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def one_line(text: str) -> str:
    """Return a text with escapes for what is no character on a line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
