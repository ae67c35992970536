"""Functions that a model may call: Python functions, those of a file, and `python`, which runs programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent, OnNotice
from cerebrum_cli.core.files import file_sha256, readable
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.tools import Tool, ToolCall, ToolFinder, ToolFunction, Tools
from cerebrum_cli.programs.monty import find_monty, program_in

REFUSED = "the user refused this call"
UNSUPPORTED = "This interpreter has only a part of Python: write the program without it."

Confirm = Callable[[ToolCall], bool]


def discard(_: NoticeEvent) -> None:
    """Do nothing with a notice."""


def tools_of(
    sources: Iterable[ToolFunction | Tool | str],
    report: OnNotice = discard,
    confirm: Confirm | None = None,
    find: ToolFinder | None = None,
) -> Tools:
    """Tools of functions, of Python files, `python`, and what `find` knows.

    With `confirm`, a call of another program or a file runs if it agrees. Reports functions of files that cannot be
    used. Raises UsageError for anything else, for a file without any that can, and for two tools with one name.
    """
    tools = [tool for source in sources for tool in _tools(source, report, confirm, find)]
    names = [tool.spec.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tools are named {name}", "rename or omit one of them")
    return tuple(tools)


def _tools(
    source: ToolFunction | Tool | str, report: OnNotice, confirm: Confirm | None, find: ToolFinder | None
) -> Iterable[Tool]:
    if isinstance(source, Tool):
        return [source]
    if callable(source):
        return [_tool_of(source)]
    tools = find(source) if find else None
    if tools is None and source == "python":
        return [_tool_of(python)]
    if tools is None and str(source).endswith(".py"):
        tools = _tools_in_file(Path(source), report)
    if tools is None:
        raise UsageError.invalid("tool", source, "python, or the path of a Python file (.py)")
    return [_confirmed(tool, confirm) for tool in tools] if confirm else tools


def _tool_of(function: ToolFunction) -> Tool:
    """A function of this process as a tool."""
    from cerebrum_cli.programs.python_function import PythonFunction  # imports pydantic

    if function is python:
        find_monty()  # raises an error where it does not work
    called = PythonFunction(function)
    return Tool(called.spec, called)


def _tools_in_file(path: Path, report: OnNotice) -> Tools:
    from cerebrum_cli.programs.function_file import FunctionFile

    with readable(path):
        digest = file_sha256(path) or ""
    file = FunctionFile(path)
    specs = file.describe(report)
    return tuple(Tool(spec, partial(file.call, spec.name), asks=True, digest=digest) for spec in specs)


def _confirmed(tool: Tool, confirm: Confirm) -> Tool:
    """The tool, which runs only the calls that `confirm` agrees to."""
    name = f"{tool.server}: {tool.spec.name}" if tool.server else tool.spec.name

    def run(arguments: JsonObject) -> str:
        return tool.run(arguments) if confirm(ToolCall(name, arguments)) else REFUSED

    return replace(tool, run=run)


def python(code: str) -> str:
    """Run a Python program and return what it prints. Use it for every calculation.

    It can import math, decimal, datetime, itertools, collections, random, re and json, but not fractions, statistics
    or numpy. It has no inheritance, `yield`, `del` or input. Only the value of the last expression is shown; print the
    others.

    Args:
        code: The program, which prints its result.
    """
    if code.lstrip().startswith("```"):
        code = program_in(code)
    result = find_monty().run(code)
    hint = f"\n{UNSUPPORTED}" if result.is_unsupported else ""
    return f"{result.printed}{result.value}{result.error}{hint}"
