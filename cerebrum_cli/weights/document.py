"""Adapter to PyYAML: a document as a mapping. Its errors, and those of its values, are one line that names the file."""

from __future__ import annotations

from typing import Any, TypeVar

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import WrongValue, from_json
from cerebrum_cli.core.text import truncate

T = TypeVar("T")

_CONSTRUCTION_ERRORS = (RecursionError, ValueError, LookupError, AttributeError, ArithmeticError, TypeError)


def read_document(kind: type[T], file: str, text: str, hint: str) -> T:
    """A dataclass with the values of a YAML document.

    Raises UsageError for invalid YAML and for other values; with the hint for a document that is not a mapping.
    """
    content = _read_yaml(file, text)
    if not isinstance(content, dict):
        raise UsageError(printable(f"{file}: not a mapping"), hint)
    try:
        return from_json(kind, {key: value for key, value in content.items() if value is not None})
    except WrongValue as error:
        raise UsageError(printable(f"{file}: {truncate(str(error), 200)}"), error.hint) from error


def _read_yaml(file: str, text: str) -> Any:
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node)
    # PyYAML does not translate the exceptions of int(), date() and re for invalid numbers, dates and tagged values.
    except (yaml.YAMLError, *_CONSTRUCTION_ERRORS) as error:
        at = ""
        if mark := getattr(error, "problem_mark", None):
            at = f" at line {mark.line + 1}, column {mark.column + 1}"
        reason = truncate(str(getattr(error, "problem", None) or error), 200)
        hint = "correct it, or quote it if it is text"
        raise UsageError(printable(f"{file}: not valid YAML{at}: {reason}"), hint) from error


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
