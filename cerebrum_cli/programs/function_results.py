"""What a function returns, as text for a model: text as it is, other values as JSON."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MappingView,
    Sequence,
    Set,
)
from dataclasses import fields, is_dataclass
from enum import Enum
from inspect import isclass
from io import IOBase
from itertools import islice
from math import isfinite
from types import NoneType, UnionType
from typing import IO, Annotated, Any, Literal, Union, get_args, get_origin

MAX_ITEMS = 10_000  # of an iterator, which may be endless
STOPPED = f"[stopped after {MAX_ITEMS:,} items]"
ITERABLES = (Iterator, Sequence, Set, MappingView, deque)
AWAITED = (Awaitable, AsyncIterable, AsyncIterator)
FILES = (IOBase, IO)


class NotJson(Exception):
    """A value that JSON cannot represent; the text says which."""


def result_text(value: object) -> str:
    """What a function returned, as text: nothing for None. Raises NotJson."""
    if value is None:
        return ""
    try:
        value = json_value(value)
        if isinstance(value, str):
            return value
        return json.dumps(value, ensure_ascii=False)
    except RecursionError as error:
        raise NotJson("a value within itself, or nested too deep") from error


def json_value(value: Any) -> Any:
    """A value as JSON represents it: what can be iterated as a list, objects with fields as objects. Raises NotJson."""
    if isinstance(value, Enum):
        return json_value(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not isfinite(value):
            raise NotJson(str(value))
        return value
    if isinstance(value, FILES):
        raise NotJson("an open file")
    if is_dataclass(value) and not isclass(value):
        return {field.name: json_value(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "model_dump") and not isclass(value):  # a model of pydantic
        return json_value(value.model_dump())
    if isinstance(value, Mapping):
        return {_key(key): json_value(item) for key, item in value.items()}
    if isinstance(value, ITERABLES) and not isinstance(value, (bytes, bytearray, memoryview)):
        return _items(value)
    if hasattr(value, "tolist"):  # arrays, and their scalars
        return json_value(value.tolist())
    return _scalar(value)


def _items(values: Any) -> list[Any]:
    """Values as a list, sets in order: that of their hashes is another one in each process."""
    if isinstance(values, Set):
        try:
            values = sorted(values)
        except TypeError:
            values = sorted(values, key=repr)
    if not isinstance(values, (Iterator, range)):
        return [json_value(value) for value in values]
    items = [json_value(value) for value in islice(values, MAX_ITEMS + 1)]
    if len(items) > MAX_ITEMS:
        items[-1] = STOPPED
    return items


def _key(key: Any) -> Any:
    written = json_value(key)
    if isinstance(written, (list, dict)):
        raise NotJson(f"a mapping with a key of type {type(key).__name__}")
    return written


def _scalar(value: Any) -> Any:
    """A date, a path, a decimal number or another value with a text."""
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return json_value(to_jsonable_python(value, inf_nan_mode="constants"))
    except UnicodeDecodeError as error:
        raise NotJson(f"{type(value).__name__} that are not UTF-8") from error
    except PydanticSerializationError as error:
        raise NotJson(_article(type(value).__name__)) from error


def _article(name: str) -> str:
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def require_json(annotation: Any) -> None:
    """Raise TypeError if no value of an annotation is JSON, such as a file or a function."""
    origin, parts = get_origin(annotation), get_args(annotation)
    kind = annotation if origin is None else origin
    if kind is Annotated:
        require_json(parts[0])
    elif kind in (Union, UnionType):
        problems = [problem for part in parts if part is not NoneType and (problem := _problem(part))]
        if len(problems) >= len({*parts} - {NoneType}):
            raise problems[0]
    elif kind is Callable or (isclass(kind) and not _is_json_class(kind)):
        raise TypeError(f"it returns {_article(str(getattr(kind, '__name__', kind)))}, which JSON cannot represent")
    elif kind is not Literal:
        for part in parts:
            require_json(part)


def _problem(annotation: Any) -> TypeError | None:
    try:
        require_json(annotation)
    except TypeError as error:
        return error
    return None


def _is_json_class(kind: type) -> bool:
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError

    if issubclass(kind, FILES):
        return False
    if issubclass(kind, (*ITERABLES, *AWAITED, Mapping)) or kind is Iterable or hasattr(kind, "tolist"):
        return True
    try:
        TypeAdapter(kind).json_schema(mode="serialization")
    except PydanticSchemaGenerationError:
        return False
    except PydanticUserError as error:
        return error.code != "invalid-for-json-schema"
    return True
