"""The functions that a server lists, as a model sees them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from cerebrum_cli.core.errors import DAMAGE
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import foreign_line, truncate
from cerebrum_cli.core.tool_schema import shortened
from cerebrum_cli.core.tools import ToolSpec

NAME = re.compile(r"[\w./:-]{1,128}", re.ASCII)  # what formats read as the name of a function
MAX_DESCRIPTION = 4000  # characters


class LeftOut(Exception):
    """A function that a model cannot call; the text says which, and why."""


def spec_of(name: str, description: str, schema: JsonDict, others: Collection[str]) -> ToolSpec:
    """What a model sees of a function; `others` are names that are taken. Raises LeftOut."""
    if not NAME.fullmatch(name):
        raise LeftOut(f"a function is left out: {foreign_line(repr(name))} cannot be its name")
    if name in others:
        raise LeftOut(f"the second function {name} is left out")
    try:
        parameters = parameters_of(schema)
    except DAMAGE as error:
        raise LeftOut(f"the function {name} is left out: its schema cannot be read") from error
    return ToolSpec(name, truncate(description.strip(), MAX_DESCRIPTION), parameters)


def parameters_of(schema: JsonDict) -> JsonDict:
    """The JSON Schema of arguments as a model sees it. Raises an error of DAMAGE for one that is not understood."""
    short = shortened(schema)
    required = schema.get("required", [])
    properties = short.get("properties", {})
    if '"$ref"' in json.dumps(short) or not {*required} <= properties.keys():
        raise ValueError("a part of it is missing")
    return {"type": "object", "properties": properties, "required": required}
