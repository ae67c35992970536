"""The values of arguments that a call writes as texts, by the types in its function's schema. Pure."""

from __future__ import annotations

import ast
import json
from contextlib import suppress
from typing import Any

from cerebrum_cli.core.json_types import JsonObject


def typed(text: str, key: str, schema: JsonObject) -> Any:
    """The value of an argument that is written as a text, by the type in its function's schema.

    It is JSON, or a Python literal, if the schema has such a type, or none at all; otherwise it is the text.
    """
    kinds = _kinds(schema.get("properties", {}).get(key, {}), schema)
    if kinds == {"string"}:
        return text
    for parse in (json.loads, ast.literal_eval) if kinds else (json.loads,):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = parse(text.strip())
            if not isinstance(value, str) and (not kinds or _kind(value) & kinds):
                return value
    return text


def _kinds(schema: Any, root: JsonObject) -> set[str]:
    """The types that a JSON Schema allows; empty for any."""
    if not isinstance(schema, dict):
        return set()
    if "$ref" in schema:
        return _kinds(root.get("$defs", {}).get(schema["$ref"].rpartition("/")[2]), {})
    named = schema.get("type", ())
    kinds = {named} if isinstance(named, str) else set(named)
    if not kinds:
        for value in schema.get("enum", [schema["const"]] if "const" in schema else []):
            kinds |= _kind(value)
    for alternative in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        kinds |= _kinds(alternative, root)
    return kinds


def _kind(value: Any) -> set[str]:
    match value:
        case None:
            return {"null"}
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number", "integer"} if value.is_integer() else {"number"}
        case str():
            return {"string"}
        case dict():
            return {"object"}
        case list():
            return {"array"}
    return set()
