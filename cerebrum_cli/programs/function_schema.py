"""What a model sees of a Python function: its name, docstring and parameters, as a ToolSpec."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import one_line
from cerebrum_cli.core.tools import ToolSpec

TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}
SUPPORTED = "use named parameters of the types str, int, float, bool, list, dict or Literal, or one of these or None"
# A parameter in a docstring's section "Args:": its name, a type in parentheses, and text with the lines below it.
ARGUMENT = re.compile(r"(?m)^    (\w+)(?: *\(.*?\))?:(.*(?:\n {5,}.*)*)")


def function_spec(function: Callable[..., object]) -> ToolSpec:
    """Describe a function to a model. Raises UsageError if its arguments cannot be passed by name, as JSON."""
    name = getattr(function, "__name__", str(function))
    if not name.isidentifier() or inspect.iscoroutinefunction(function):
        raise UsageError(f"{name} cannot be a tool", "use a function that has a name and is not async")
    description, _, section = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    descriptions = dict(ARGUMENT.findall(section))
    properties = {}
    required = []
    try:
        types = get_type_hints(function)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{parameter} has no name")
            schema = properties[parameter.name] = _schema(types.get(parameter.name, Any))
            if parameter.name in descriptions:
                schema["description"] = one_line(descriptions[parameter.name])
            if parameter.default is parameter.empty:
                required.append(parameter.name)
    except Exception as error:  # annotations are expressions
        raise UsageError(f"{name} cannot be a tool: {one_line(str(error))}", SUPPORTED) from error
    return ToolSpec(name, description.strip(), {"type": "object", "properties": properties, "required": required})


def _schema(annotation: Any) -> JsonDict:
    """The JSON Schema of an annotation's values, without None, since arguments can be omitted. Raises TypeError."""
    kind, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Any:
        return {}
    if kind is Literal:
        return {"type": TYPES[type(arguments[0])], "enum": [*arguments]}
    if kind in (Union, UnionType) and arguments[1:] == (NoneType,):
        return _schema(arguments[0])
    if kind not in TYPES:
        raise TypeError(f"{annotation} is not supported")
    schema: JsonDict = {"type": TYPES[kind]}
    if kind is list and arguments:
        schema["items"] = _schema(arguments[0])
    return schema
