"""The values of arguments that a call writes as texts, by the JSON Schemas of their function. Pure."""

from __future__ import annotations

import ast
import json
from contextlib import suppress
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import UnknownType
from referencing.exceptions import Unresolvable

from cerebrum_cli.core.json_types import JsonObject

UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, UnknownType, Unresolvable)


def typed(text: str, key: str, schema: JsonObject) -> Any:
    """The value of an argument that is written as a text: JSON, or a Python literal, if its schema allows that value.

    Otherwise, it is the text. An argument without a schema may be JSON.
    """
    expected = schema.get("properties", {}).get(key)
    validator = Draft202012Validator({**(expected or {}), "$defs": schema.get("$defs", {})})
    for parse in (json.loads, ast.literal_eval) if expected else (json.loads,):
        with suppress(*UNREADABLE):
            value = parse(text.strip())
            if not isinstance(value, str) and validator.is_valid(value):
                return value
    return text
