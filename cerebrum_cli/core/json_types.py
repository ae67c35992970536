"""Types of JSON objects and TOML tables, writable or read-only, their texts, and dataclasses built from them."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from cerebrum_cli.core.text import enumeration, well_formed

JsonDict: TypeAlias = dict[str, Any]
JsonObject: TypeAlias = Mapping[str, Any]
T = TypeVar("T")

MAX_NUMBER = 2**63

_NAMES = {float: "one number", int: "one whole number", str: "text", bool: "true or false", tuple: "a list"}  # of types


class WrongValue(TypeError):
    """A key or a value that a dataclass cannot have; `hint` says what it can."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


_hints_of: Callable[[type], JsonDict] = cache(get_type_hints)  # types by the names of fields


def to_json(value: Any, indent: int | None = None) -> str:
    """Encode a value as JSON that is valid UTF-8."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if text.isascii() else well_formed(text)


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects in a JSON value are nested more than `levels` deep."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 1 or is_nested_deeper(item, levels - 1) for item in items if isinstance(item, (dict, list)))


def from_json(kind: type[T], values: JsonObject) -> T:
    """A dataclass with values from a file, where its tuples are lists, and dataclasses in its fields are objects.

    Raises WrongValue for an unknown or missing field, or a value of another type; ValueError for an impossible path.
    """
    hints = _hints_of(kind)
    converted = {}
    for name, value in values.items():
        if name not in hints:
            raise WrongValue(f"unknown key {name}; the keys are {', '.join(hints)}", "remove it, or correct its name")
        converted[name] = _converted(value, hints[name], name)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in converted and field.default is MISSING and field.default_factory is MISSING and field.init:
            raise WrongValue(f"missing {field.name}", f"add {field.name}: {_expected(hints[field.name])}")
    return kind(**converted)


def known_values(kind: type, values: JsonObject) -> JsonDict:
    """The values of an object that are fields of a dataclass, for `from_json`."""
    return {name: values[name] for name in _hints_of(kind) if name in values}


def _converted(value: Any, hint: Any, name: str) -> Any:
    kind, arguments = get_origin(hint), get_args(hint)
    if hint in (Any, object):
        return value
    if kind in (Union, UnionType):
        for option in arguments:
            with suppress(TypeError):
                return _converted(value, option, name)
    elif kind is Literal:
        if value in arguments:
            return value
    elif isinstance(value, list) and kind is tuple:
        return tuple(_converted(item, arguments[0], f"{name}.{number}") for number, item in enumerate(value, 1))
    elif isinstance(value, dict) and isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value)
    elif isinstance(value, dict) and kind is Mapping:
        return {key: _converted(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
    elif isinstance(value, str) and hint is Path:
        os.fsencode(value)
        return Path(value)
    elif _has_type(value, kind or hint):
        return value
    raise WrongValue(f"invalid {name}: {reprlib.repr(value)}", f"it must be {_expected(hint)}")


def _expected(hint: Any) -> str:
    """The values of a type, in words."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        return enumeration(arguments, "or")
    if kind in (Union, UnionType):
        return enumeration([_expected(option) for option in arguments if option is not NoneType], "or")
    if is_dataclass(hint):
        return f"a mapping of {', '.join(field.name for field in fields(hint))}"
    return _NAMES.get(kind or hint, "a mapping")


def _has_type(value: object, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int | float):
        is_of_kind = kind is float or isinstance(value, kind)
        return is_of_kind and abs(value) < MAX_NUMBER  # NaN and infinity are not
    return isinstance(value, kind)
