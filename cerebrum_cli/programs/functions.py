"""Functions that a model may call: Python functions, those of a file, and `python`, which runs programs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, chdir, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import file_sha256
from cerebrum_cli.core.json_types import JsonObject
from cerebrum_cli.core.tools import Tool, ToolCall, ToolFinder, ToolFunction, Tools
from cerebrum_cli.programs.function_process import REFUSED, Confirm, FunctionFile, Report
from cerebrum_cli.programs.guest import cut as cut
from cerebrum_cli.programs.sandbox import require_sandbox

if TYPE_CHECKING:
    from cerebrum_cli.programs.function_schema import Signature

TIMEOUT_S = 5.0  # for a program
PYTHON = """Run a Python program and return what it prints. Use it for every calculation.

{}

Args:
    code: The program, which prints its result.
"""
UNSUPPORTED = "This interpreter has only a part of Python: write the program without it."


def discard(_: NoticeEvent) -> None:
    """Do nothing with a notice."""


def tools_of(
    sources: Iterable[ToolFunction | Tool | str],
    report: Report = discard,
    confirm: Confirm | None = None,
    sandbox: str = "auto",
    find: ToolFinder | None = None,
) -> Tools:
    """Tools of functions, of Python files, `python`, and what `find` knows.

    With `confirm`, a call of another program or a file runs if it agrees. `sandbox` is the setting. Reports functions
    of files that cannot be used. Raises UsageError for anything else, for a file without any that can, and for two
    tools with one name.
    """
    tools = [tool for source in sources for tool in _tools(source, report, confirm, sandbox, find)]
    names = [tool.spec.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tools are named {name}", "rename or omit one of them")
    return tuple(tools)


def _tools(
    source: ToolFunction | Tool | str, report: Report, confirm: Confirm | None, sandbox: str, find: ToolFinder | None
) -> list[Tool]:
    if isinstance(source, Tool):
        return [source]
    if callable(source):
        return [_tool_of(source)]
    found = find(source) if find else None
    if found is not None:
        return [_confirmed(tool, confirm) if confirm else tool for tool in found]
    if source == "python":
        return [_python_tool(sandbox)]
    if str(source).endswith(".py"):
        file = FunctionFile(Path(source), report)
        specs = file.describe()
        digest = file_sha256(Path(source)) or ""
        return [Tool(spec, partial(file.run, spec.name, confirm), True, digest) for spec in specs]
    raise UsageError.invalid("tool", source, "python, or the path of a Python file (.py)")


def _confirmed(tool: Tool, confirm: Confirm) -> Tool:
    """The tool, which runs only the calls that `confirm` agrees to."""

    def run(arguments: JsonObject) -> ToolCall:
        call = ToolCall(tool.spec.name, arguments)
        shown = replace(call, name=f"{tool.server}: {call.name}") if tool.server else call
        return tool.run(arguments) if confirm(shown) else replace(call, result=REFUSED)

    return replace(tool, run=run)


def _tool_of(function: ToolFunction) -> Tool:
    """A function of this process as a tool."""
    from cerebrum_cli.programs.function_schema import Signature  # imports pydantic

    signature = Signature(function)
    return Tool(signature.spec, partial(_run, signature, function))


def _run(signature: Signature, function: ToolFunction, arguments: JsonObject) -> ToolCall:
    """Call a function of this process: the result is a line about wrong arguments, or what `run_function` returns.

    What Python prints goes to the result; what other programs write to standard output, to standard error.
    """
    from cerebrum_cli.programs.function_calls import FunctionOutput, describe, run_function

    call = ToolCall(signature.spec.name, arguments)
    try:
        values = signature.read(arguments)
        call = replace(call, arguments=signature.as_json(values))
        with _as_before():
            return replace(call, result=run_function(function, values, FunctionOutput(sys.stdout)))
    except Interrupted:
        raise
    except ValueError as problem:
        return replace(call, result=f"invalid arguments: {problem}")
    except Exception as error:
        return replace(call, result=describe(error))


@contextmanager
def _as_before() -> Iterator[None]:
    """Restore the current directory afterwards; meanwhile, standard output of programs is standard error."""
    sys.stdout.flush()
    standard_output = os.dup(1)
    with ExitStack() as stack:
        stack.callback(os.close, standard_output)
        stack.callback(os.dup2, standard_output, 1)
        with suppress(OSError):  # the directory may have been removed
            stack.enter_context(chdir("."))
        os.dup2(2, 1)
        yield


def _python_tool(choice: str) -> Tool:
    """The built-in function that runs programs in the sandbox. Raises UsageError where it does not work."""
    sandbox = require_sandbox(choice)

    def python(code: str) -> str:
        result = sandbox.evaluate(code, TIMEOUT_S)
        if result.reason in ("passed", "failed"):
            return result.detail
        if result.reason == "unsupported":
            return f"{result.detail}{UNSUPPORTED}"
        return f"the program was ended: {result.reason} {result.detail}"

    python.__doc__ = PYTHON.format(sandbox.runner.offers)
    return replace(_tool_of(python), digest="monty" if sandbox.runner.name == "monty" else "")
