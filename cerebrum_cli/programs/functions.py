"""Functions that a model may call: Python functions, those of a file, and `python`, which runs programs."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import partial
from inspect import isfunction, unwrap
from io import StringIO
from pathlib import Path
from traceback import TracebackException
from typing import Any

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import one_line, well_formed
from cerebrum_cli.core.tools import Tool, ToolCall, ToolFunction, Tools, ToolSpec
from cerebrum_cli.programs.code import interactive_program
from cerebrum_cli.programs.function_schema import function_spec
from cerebrum_cli.programs.guest import cut as cut
from cerebrum_cli.programs.sandbox import require_sandbox

TIMEOUT_S = 5.0  # for a program
NO_RESULT = "(no result)"
REFUSED = "the user refused this call"
WORDS = {"True": "true", "False": "false"}  # what booleans become in some templates


def _run(
    spec: ToolSpec, function: ToolFunction, confirm: Callable[[ToolCall], bool] | None, arguments: JsonObject
) -> ToolCall:
    """Call a function: the result is what it prints and returns, or a line about wrong arguments or an exception.

    What any thread prints meanwhile is in the result, and not on standard output. Strings are returned as they are,
    other values as JSON.
    """
    printed = StringIO()
    call = ToolCall(spec.name, arguments)
    try:
        values = _converted(arguments, spec.parameters)
        if problem := _problem(values, spec.parameters):
            return replace(call, result=f"invalid arguments: {problem}")
        call = replace(call, arguments=deepcopy(values))  # a function may change its own
        if confirm and not confirm(call):
            return replace(call, result=REFUSED)
        with _output_apart(printed):
            result = _text(function(**values))
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:
        result = _describe(error)
    return replace(call, result=well_formed(printed.getvalue() + result) or NO_RESULT)


def _converted(arguments: JsonObject, schema: JsonObject) -> JsonDict:
    """Arguments of the declared types: some formats write all values as text, some models null to omit one."""
    converted = {}
    for name, value in deepcopy(arguments).items():
        if _problem(value, schema["properties"].get(name, {})):
            if value is None:
                continue
            if isinstance(value, str):
                value = _parsed(value)
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
        return one_line(f"{error.json_path}: {error.message}")
    return None


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _describe(error: BaseException) -> str:
    problem = TracebackException(type(error), error, None)  # also of an error whose `__str__` fails
    return one_line(f"{type(error).__name__}: {problem}")


def tools_of(sources: Iterable[ToolFunction | Tool | str], confirm: Callable[[ToolCall], bool] | None = None) -> Tools:
    """Tools of functions, of Python files, and `python`. With `confirm`, a call of a file's function runs if it agrees.

    Raises UsageError for anything else, for a file or function that cannot be used, and for two tools with one name.
    """
    tools = [tool for source in sources for tool in _tools(source, confirm)]
    names = [tool.spec.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tools are named {name}", "rename or omit one of them")
    return tuple(tools)


def _tools(source: ToolFunction | Tool | str, confirm: Callable[[ToolCall], bool] | None) -> list[Tool]:
    if isinstance(source, Tool):
        return [source]
    if callable(source):
        spec = function_spec(source)
        return [Tool(spec, partial(_run, spec, source, None))]
    if source == "python":
        return _tools(python_function(), None)
    if str(source).endswith(".py"):
        tools = []
        for function in _functions_of(Path(source)):
            spec = function_spec(function)
            tools.append(Tool(spec, partial(_run, spec, function, confirm), asks=True))
        return tools
    raise UsageError.invalid("tool", source, "python, or the path of a Python file (.py)")


@contextmanager
def _output_apart(printed: StringIO) -> Iterator[None]:
    """What Python prints goes to `printed`; what other programs write to standard output, to standard error."""
    sys.stdout.flush()
    standard_output = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(printed):
            yield
    finally:
        os.dup2(standard_output, 1)
        os.close(standard_output)


def _functions_of(path: Path) -> list[ToolFunction]:
    """Functions that a file defines, except those with a leading underscore."""
    module = f"cerebrum_tools_{path.stem}"
    sys.path.append(str(path.parent))  # it may import its siblings, even later, in its functions
    try:
        with redirect_stdout(sys.stderr):
            names = runpy.run_path(str(path), run_name=module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"cannot import {path}: {_describe(error)}", "correct the file or its path") from error
    functions = []
    for name, value in names.items():
        if name[0] != "_" and getattr(value, "__module__", None) == module and isfunction(unwrap(value)):
            functions.append(value)
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
