"""A Python function that a model may call: pydantic reads its signature and its arguments, and writes its result."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, to_jsonable_python

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import describe_error, one_line, truncate, well_formed
from cerebrum_cli.core.tool_schema import shortened
from cerebrum_cli.core.tools import ToolSpec

SUPPORTED = "use named parameters, and types that JSON can represent, such as str, list[int], an Enum or a dataclass"
MAX_PROBLEMS = 4  # of arguments that are named
MAX_SHOWN = 60  # characters of an invalid value
NO_RESULT = "(no result)"


class PythonFunction:
    """A function, and what a model sees of it: its `spec`.

    Raises UsageError if its arguments cannot be passed by name, as JSON.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        name = getattr(function, "__name__", str(function))
        try:
            if not name.isidentifier():
                raise TypeError("it has no name")
            self._adapter: TypeAdapter[JsonDict] = TypeAdapter(_returning_its_arguments(function))
            schema = self._adapter.json_schema()
            if schema["type"] != "object":
                raise TypeError("it has parameters without a name")
            short = shortened(schema)
        except Exception as error:  # annotations are expressions
            problem = str(error).partition("\n")[0].partition(". Set `arbitrary_types_allowed")[0]
            raise UsageError(f"{name} cannot be a tool: {problem}", SUPPORTED) from error
        required = schema.get("required", [])
        parameters = {"type": "object", "properties": short["properties"], "required": required}
        self.spec = ToolSpec(name, inspect.getdoc(function) or "", parameters)

    def __call__(self, arguments: JsonObject) -> str:
        """The result, strings as they are and other values as JSON; or a line about wrong arguments or an error."""
        try:
            values = self._adapter.validate_python(ArgsKwargs((), dict(arguments)))
        except ValidationError as error:
            return f"invalid arguments: {_problems(error)}"
        try:
            result = self._function(**values)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            result = to_jsonable_python(result, fallback=_plain)
            if result is None:
                return NO_RESULT
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        except Interrupted:
            raise
        except Exception as error:
            return describe_error(error)
        return well_formed(text) or NO_RESULT


def _returning_its_arguments(function: Callable[..., object]) -> Any:
    """A function with the same signature that returns its arguments, so that they can be validated without a call."""

    @functools.wraps(function)
    def arguments(**values: Any) -> JsonDict:
        return values

    return arguments


def _plain(value: Any) -> Any:
    """A value that pydantic does not know: arrays and numbers of numpy as lists and numbers, others as their text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _problems(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False)[:MAX_PROBLEMS]:
        line = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        if problem["type"] not in ("missing_argument", "unexpected_keyword_argument"):
            line += f" (got {truncate(repr(problem['input']), MAX_SHOWN)})"
        lines.append(line)
    return one_line("; ".join(lines))
