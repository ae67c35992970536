"""Run `cerebrum` and record the time at which each phase of its start ends; see start.py.

Usage: python -c "from benchmarks import traced; traced.main()" START ARGUMENTS...

START is the value of time.perf_counter() in the parent; on Linux, both processes share that clock. Functions are
wrapped where they are looked up, after their module is imported, so that the order of imports does not change. The last
line on standard error is a JSON object: seconds from START to the end of each phase, up to the first token.
"""

from __future__ import annotations

import sys
from time import perf_counter

TYPE_CHECKING = False  # importing typing takes milliseconds, which would be measured
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


INTERPRETER = "interpreter"
IMPORTS = "imports of the command line: typer, the command"
USE_CASE = "command line parsed, imports of the use case"
RESOLVED = "model, settings and format resolved"
BINDINGS = "engine: bindings of llama.cpp imported"
PLANNED = "engine: devices and memory detected, load planned"
LOADED = "model loaded, in native code"
RENDERED = "format built, prompt rendered and tokenized"
CONTEXT = "context created"
EVALUATED = "prompt evaluated"
SHOWN = "first token sampled, on standard output"

phase_ends: dict[str, float] = {}


def main() -> None:
    """Run the command line, and print the phases."""
    end_phase(INTERPRETER)
    start = float(sys.argv[1])
    sys.argv[:2] = ["cerebrum"]
    from cerebrum_cli import main as program

    wrap(program, "commands_for", on_return=trace_command_line)
    try:
        program.run()
    finally:
        import json

        print(json.dumps({name: end - start for name, end in phase_ends.items()}), file=sys.stderr)


def end_phase(phase: str) -> None:
    """Record that a phase ends now; a later end replaces an earlier one until the first token."""
    if SHOWN not in phase_ends:
        phase_ends[phase] = perf_counter()


def nothing() -> None:
    """Do nothing."""


def wrap(
    owner: object, name: str, end_on_call: str = "", end_on_return: str = "", on_return: Callable[[], None] = nothing
) -> None:
    """Wrap a function so that it ends one phase when called and one on return, and then calls `on_return`."""
    function = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if end_on_call:
            end_phase(end_on_call)
        result = function(*arguments, **options)
        if end_on_return:
            end_phase(end_on_return)
        on_return()
        return result

    setattr(owner, name, wrapped)


def trace_command_line() -> None:
    """Trace where the command line is assembled, whose module would be imported next."""
    from cerebrum_cli.cli import command_line

    wrap(command_line, "assembled", end_on_return=IMPORTS, on_return=trace_command)


def trace_command() -> None:
    """Trace where a command gets its app, and where that opens a model."""
    from cerebrum_cli.cli import command
    from cerebrum_cli.engine.local import MachineRecords

    original: Any = MachineRecords.open_file

    def open_file(*arguments: Any) -> Any:
        end_phase(RESOLVED)
        trace_engine()
        return original(*arguments)

    setattr(MachineRecords, "open_file", open_file)  # noqa: B010
    wrap(command, "app_of", end_on_call=USE_CASE, on_return=trace_answer)


def trace_answer() -> None:
    """Trace where the answer is printed."""
    from cerebrum_cli.terminal.streams import Streams

    wrap(Streams, "answer", end_on_return=SHOWN)


def trace_engine() -> None:
    """Trace the calls of llama.cpp; the engine's thread would import the same modules next."""
    import cerebrum_cli.engine.llama.load as load
    from cerebrum_cli.engine.llama.llama_backend import LlamaBackend

    end_phase(BINDINGS)
    wrap(load, "load_model", end_on_call=PLANNED, end_on_return=LOADED)
    wrap(LlamaBackend, "reserve", end_on_call=RENDERED, end_on_return=CONTEXT)
    wrap(LlamaBackend, "decode", end_on_return=EVALUATED)
