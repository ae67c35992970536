"""JSON Schemas of arguments as a model sees them: shortened, since they are a part of each prompt. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from cerebrum_cli.core.json_types import JsonDict

LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
DROPPED = ("title", "default", "discriminator", "$defs", "definitions", "$ref", "const")
MAX_PARTS = 5000  # of a schema: definitions that refer to others many times multiply


def shortened(schema: JsonDict) -> JsonDict:
    """A JSON Schema without titles, defaults and null, and with definitions in place of references to them.

    A type within itself is an object, or whatever it is, without details. A schema of another shape raises an error of
    `core.errors.DAMAGE`, and one of too many parts ValueError.
    """
    return _short(schema, {**schema.get("definitions", {}), **schema.get("$defs", {})}, count(1))


def _short(schema: JsonDict, definitions: JsonDict, parts: Iterator[int], within: tuple[str, ...] = ()) -> JsonDict:
    """A part of a schema, shortened; `parts` counts, and `within` are the names of the definitions that it is in."""
    if next(parts) > MAX_PARTS:
        raise ValueError(f"it has more than {MAX_PARTS:,} parts")
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        if name in within:
            return {"type": definitions[name].get("type", "object")}
        schema = {**definitions[name], **schema}
        within = (*within, name)
    if (constant := schema.get("const")) is not None:
        schema["enum"] = [constant]
    short = {"type": schema["type"]} if "type" in schema else {}
    for key, value in schema.items():
        if key in LISTS_OF_SCHEMAS:
            value = [_short(part, definitions, parts, within) for part in value if part != {"type": "null"}]
        elif key == "properties":
            value = {name: _short(part, definitions, parts, within) for name, part in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            value = _short(value, definitions, parts, within)
        if key in DROPPED or (key in ("items", "additionalProperties") and not _is_shown(key, value)):
            continue
        if key == "anyOf" and len(value) == 1:
            short |= value[0]
        else:
            short[key] = value
    return short


def _is_shown(key: str, value: JsonDict | bool) -> bool:
    """Whether the schema of items is worth its tokens: values of plain types in dictionaries are not described."""
    if isinstance(value, bool) or not value:
        return False
    return key == "items" or not value.keys() <= {"type", "enum", "items"} or _is_shown(key, value.get("items", {}))
