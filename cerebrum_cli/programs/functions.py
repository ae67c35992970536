"""Functions that a model may call: Python functions, those of a file, and `python`, which runs programs."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from inspect import isroutine
from io import StringIO
from pathlib import Path
from traceback import walk_tb
from typing import Any, get_origin, get_type_hints

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import one_line, truncate, well_formed
from cerebrum_cli.core.tools import ToolSpec
from cerebrum_cli.programs.code import interactive_program
from cerebrum_cli.programs.function_schema import function_spec
from cerebrum_cli.programs.guest import cut as cut
from cerebrum_cli.programs.sandbox import require_sandbox

TIMEOUT_S = 5.0  # for a program
MAX_PROBLEM = 200  # characters
NO_RESULT = "(no result)"
WORDS = {"True": "true", "False": "false", "None": "null"}  # which Python's values become in some templates

ToolFunction = Callable[..., object]


@frozen
class Tool:
    """A function that a model may call; whoever runs it asks the user first, if it `asks`."""

    spec: ToolSpec
    function: ToolFunction
    asks: bool = False

    def run(self, arguments: JsonObject) -> str:
        """Call the function: what it prints and returns, as text, or a line about wrong arguments or an exception.

        What any thread prints meanwhile is in the result, and not on standard output. Strings are returned as they are,
        other values as JSON.
        """
        values = convert(arguments, self.spec)
        if problem := _problem(values, {**self.spec.parameters, "additionalProperties": False}):
            return f"invalid arguments: {problem}"
        printed = StringIO()
        try:
            for name, annotation in get_type_hints(self.function).items():
                kind = get_origin(annotation)
                if kind in (tuple, set) and name in values:
                    values[name] = kind(values[name])
            with redirect_stdout(printed):
                result = _text(self.function(**values))
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            result = _describe(error, self.function.__module__)
        return well_formed(printed.getvalue() + result) or NO_RESULT


def convert(arguments: JsonObject, spec: ToolSpec) -> JsonDict:
    """Arguments of the types that a schema wants, where they have others.

    Text is parsed as JSON, since some formats write all values as text. Null is left out if the argument is optional.
    """
    converted = {}
    for name, value in arguments.items():
        schema = spec.parameters["properties"].get(name, {})
        if _problem(value, schema) and isinstance(value, str):
            value = _parsed(value)
        if value is not None or name in spec.parameters.get("required", ()) or not _problem(value, schema):
            converted[name] = value
    return converted


def _parsed(text: str) -> Any:
    try:
        return json.loads(WORDS.get(text, text))
    except (ValueError, RecursionError):
        return text


def _problem(value: Any, schema: JsonObject) -> str | None:
    """Why a value does not match a schema, in one line; None if it does."""
    from jsonschema import Draft202012Validator

    for error in Draft202012Validator(schema).iter_errors(value):
        path = "".join(f"{part}: " for part in error.absolute_path)
        return truncate(one_line(f"{path}{error.message}"), MAX_PROBLEM)
    return None


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _describe(error: BaseException, module: str) -> str:
    """An exception in one line, with its line in the code of a module, if it comes from there."""
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == module:
            place = f" (line {line})"
    return one_line(f"{type(error).__name__}: {error}{place}")


def tools_of(sources: Iterable[ToolFunction | Tool | str], directory: Path = Path()) -> tuple[Tool, ...]:
    """Tools of functions, of Python files in a directory, and `python`.

    Raises UsageError for anything else, for a file or function that cannot be used, and for two tools of one name.
    """
    tools = [tool for source in sources for tool in _tools(source, directory)]
    names = [tool.spec.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tools are named {name}", "rename or omit one of them")
    return tuple(tools)


def _tools(source: ToolFunction | Tool | str, directory: Path) -> list[Tool]:
    if isinstance(source, Tool):
        return [source]
    if callable(source):
        return [Tool(function_spec(source), source)]
    if source == "python":
        python = python_function()
        return [Tool(function_spec(python), python)]
    if str(source).endswith(".py"):
        return [Tool(function_spec(function), function, asks=True) for function in _functions_of(directory / source)]
    raise UsageError.invalid("tool", source, "python, or the path of a Python file (.py)")


def _functions_of(path: Path) -> list[ToolFunction]:
    """Functions in a file's `__all__`, or all that it defines without an underscore; it may import its siblings."""
    module = f"cerebrum_tools_{path.stem}"
    folder, writes_no_bytecode = str(path.parent), sys.dont_write_bytecode
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True  # beside the user's files
    try:
        with redirect_stdout(sys.stderr):
            names = runpy.run_path(str(path), run_name=module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"cannot import {path}: {_describe(error, module)}", "correct the file or its path") from error
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = writes_no_bytecode
    own = [name for name, value in names.items() if name[0] != "_" and getattr(value, "__module__", "") == module]
    functions = [names[name] for name in names.get("__all__", own) if isroutine(names.get(name))]
    if not functions:
        raise UsageError(f"{path} defines no public functions", "define one whose name has no leading underscore")
    return functions


def python_function() -> Callable[[str], str]:
    """The built-in function that runs programs in the sandbox. Raises UsageError where there is no sandbox."""
    sandbox = require_sandbox()

    def python(code: str) -> str:
        """Run a Python program and return what it prints. Use it for every calculation.

        It can import the standard library and numpy.

        Args:
            code: The program, which prints its result.
        """
        result = sandbox.run(interactive_program(code), "", TIMEOUT_S)
        if result.reason in ("passed", "failed"):
            return result.detail
        return f"the program was ended: {result.reason} {result.detail}"

    return python
