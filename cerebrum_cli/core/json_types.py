"""Types of JSON objects and TOML tables, writable or read-only, their texts, and dataclasses built from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from cerebrum_cli.core.text import well_formed

JsonDict: TypeAlias = dict[str, Any]
JsonObject: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

MAX_NUMBER = 2**63

_hints_of: Callable[[type], JsonDict] = cache(get_type_hints)  # types by the names of fields


def to_json(value: Any, indent: int | None = None) -> str:
    """Encode a value as JSON that is valid UTF-8."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if text.isascii() else well_formed(text)


def from_json(kind: type[T], values: JsonObject) -> T:
    """A dataclass with values from a file. Raises TypeError for an unknown field, or a value of another type."""
    hints = _hints_of(kind)
    for name, value in values.items():
        if not _has_type(value, hints.get(name, object)):
            raise TypeError(f"invalid {name}")
    return kind(**values)


def _has_type(value: object, hint: Any) -> bool:
    kind, arguments = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_has_type(value, option) for option in arguments)
    if kind is Literal:
        return value in arguments
    if isinstance(value, int | float) and not abs(value) < MAX_NUMBER:  # NaN and infinity, too
        return False
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, kind or hint)
