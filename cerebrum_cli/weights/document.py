"""Adapter to PyYAML: fields of a YAML document, whose errors name the file and the path to a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import did_you_mean, truncate

_CONSTRUCTION_ERRORS = (RecursionError, ValueError, LookupError, AttributeError, ArithmeticError, TypeError)
_TYPO_SIMILARITY = 0.8  # a name more similar than this to a known one is taken for a typing error


@frozen
class Field:
    """A value in a document, None if it is missing; `path` is where it is, such as `slices[2].sources[0]`."""

    file: str
    path: str
    value: Any

    def __getitem__(self, key: str) -> Field:
        """The field of a key, in a value that is a mapping or missing."""
        path = f"{self.path}.{key}".lstrip(".")
        return Field(self.file, path, (self.value or {}).get(key))

    @property
    def missing(self) -> str:
        return "missing" if self.value is None else ""

    def error(self, problem: str, hint: str) -> UsageError:
        place = ": ".join(filter(None, (self.file, self.path)))
        return UsageError(printable(f"{place}: {problem}"), printable(hint))

    def require_keys(self, keys: Sequence[str]) -> None:
        if not isinstance(self.value, dict):
            raise self.error("not a mapping", f"write lines of `key: value` with these keys: {', '.join(keys)}")
        for key, item in self.value.items():
            if item is not None and key not in keys:
                raise self.error(f"unknown key {quoted(key)}", choices(key, keys))

    def items(self) -> list[Field]:
        if not isinstance(self.value, list) or not self.value:
            raise self.error("not a list with items", "begin each item with `- `")
        return [Field(self.file, f"{self.path}[{index}]", item) for index, item in enumerate(self.value)]

    def text(self, needed: str) -> str:
        if not isinstance(self.value, str) or not self.value.strip() or not self.value.isprintable():
            raise self.error(f"not {needed}", "write it on one line, quoted if YAML reads it as another type")
        return self.value.strip()

    def number(self) -> float:
        """A finite number, which YAML may have read as text: `1e-3`."""
        number = math.nan
        if isinstance(self.value, int | float | str):
            with suppress(ValueError, OverflowError):
                number = float(self.value)
        if not math.isfinite(number):
            raise self.error("not a finite number", "write one such as 0.5")
        return number


def read_document(file: str, text: str) -> Field:
    """Parse a text that holds one YAML document. Raises UsageError, with line and column, if it does not."""
    import yaml

    root = Field(file, "", None)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise root.error("empty file", "write a recipe: a merge_method, and slices or models")
        return Field(file, "", loader.construct_document(node))
    # PyYAML does not translate the exceptions of int(), date() and re for invalid numbers, dates and tagged values.
    except (yaml.YAMLError, *_CONSTRUCTION_ERRORS) as error:
        at = ""
        if mark := getattr(error, "problem_mark", None):
            at = f" at line {mark.line + 1}, column {mark.column + 1}"
        reason = truncate(str(getattr(error, "problem", None) or error), 200)
        raise root.error(f"not valid YAML{at}: {reason}", "correct it, or quote it if it is text") from error


def choices(name: object, known: Sequence[str]) -> str:
    """The known names, as a hint; the one first that a name is probably meant to be."""
    meant = did_you_mean(name[:100], known, cutoff=_TYPO_SIMILARITY) if isinstance(name, str) else ""
    return f"{meant}supported: {', '.join(known)}"


def quoted(value: object) -> str:
    if not isinstance(value, str):
        return f"({type(value).__name__})"
    if not value.strip():
        value = repr(value)
    return truncate(value, 60)


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
