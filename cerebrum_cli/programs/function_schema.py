"""What a Python function tells a model: its name, docstring and parameters, as a ToolSpec."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable
from contextlib import suppress
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
    NoneType: "null",
    list: "array",
    tuple: "array",
    set: "array",
    dict: "object",
}
SUPPORTED = (
    "use named parameters of the types str, int, float, bool, list[...], set[...], tuple[..., ...], dict[str, ...] and"
    " Literal, or unions of them"
)

# A docstring's description ends where a section of Google's style or a Sphinx field begins: "Args:", ":param city:".
END_OF_DESCRIPTION = re.compile(r"(?m)^(?:\w+:[ \t]*$|:\w+[^:\n]*:)")
ARGS_SECTION = re.compile(r"(?m)^(?:Args|Arguments|Parameters):[ \t]*\n((?:[ \t]+.*(?:\n|\Z)|\n)+)")
TEXT = r"(.*(?:\n[ \t]+.*)*)"  # of a line, and of those indented below it
ARGUMENT = re.compile(rf"(?m)^(\w+)[ ]*(?:\(.*?\))?:{TEXT}")
FIELD = re.compile(rf"(?m)^:param (?:[^:\n]+ )?(\w+):{TEXT}")


def function_spec(function: Callable[..., object]) -> ToolSpec:
    """What a model sees of a function. Raises UsageError if JSON cannot give its arguments, by their names."""
    try:
        name = function.__name__
        parameters = inspect.signature(function).parameters.values()
        types = get_type_hints(function)
    except Exception as error:  # annotations are expressions
        raise UsageError(f"{function} cannot be a tool: {error}", "use a function with valid annotations") from error
    if not name.isidentifier() or inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise UsageError(f"{name} cannot be a tool", "use a function that has a name, is not async and does not yield")
    docstring = inspect.getdoc(function) or ""
    properties = {each.name: _parameter_schema(name, each, types.get(each.name, Any)) for each in parameters}
    for parameter, description in _descriptions(docstring):
        if parameter in properties:
            properties[parameter]["description"] = one_line(description)
    schema = {"type": "object", "properties": properties}
    if required := [parameter.name for parameter in parameters if parameter.default is parameter.empty]:
        schema["required"] = required
    return ToolSpec(name, END_OF_DESCRIPTION.split(docstring)[0].strip(), schema)


def _descriptions(docstring: str) -> list[tuple[str, str]]:
    """Parameters and what a docstring says of them."""
    section = ARGS_SECTION.search(docstring)
    if section:
        return ARGUMENT.findall(textwrap.dedent(section[1]))
    return FIELD.findall(docstring)


def _parameter_schema(function: str, parameter: inspect.Parameter, annotation: Any) -> JsonDict:
    try:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(parameter.kind)
        schema = _schema(annotation)
    except (LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{function}: unsupported parameter: {parameter}", SUPPORTED) from error
    if parameter.default is None:
        match schema:
            case {"anyOf": [choice, {"type": "null"}]}:  # null is what omitting it means
                return dict(choice)
        return schema
    with suppress(TypeError, ValueError):  # of a value that JSON lacks, such as `Parameter.empty`
        schema["default"] = json.loads(json.dumps(parameter.default, allow_nan=False))
    return schema


def _schema(annotation: Any) -> JsonDict:
    """The JSON Schema of an annotation's values. Raises an exception for an unsupported annotation."""
    kind = get_origin(annotation) or annotation
    arguments = [argument for argument in get_args(annotation) if argument is not ...]
    if kind is Any:
        return {}
    if kind is Literal:
        (name,) = {TYPES[type(value)] for value in arguments}
        return {"type": name, "enum": arguments}
    if kind in (Union, UnionType):
        return {"anyOf": [_schema(choice) for choice in arguments]}
    if not arguments:
        return {"type": TYPES[kind]}
    if kind is dict and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(arguments[1])}
    if TYPES[kind] == "array" and len(arguments) == 1:
        return {"type": "array", "items": _schema(arguments[0])}
    raise TypeError(annotation)
