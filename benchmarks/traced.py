"""The command line as it always is, with the times at which it passes some places written down; see start.py.

Usage: PYTHONPATH=benchmarks python -c "import traced; traced.main()" BEGAN ARGUMENTS...

BEGAN is what time.perf_counter() said in the process that starts this one: on Linux they share a clock. Functions are
wrapped where they are looked up, once their module is there: nothing is imported sooner than without. The last line on
standard error is an object: seconds from BEGAN to the end of each phase, up to the first piece of an answer.
"""

from __future__ import annotations

import sys
from time import perf_counter

TYPE_CHECKING = False  # typing takes milliseconds, and it is not for this module to import it
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cerebrum_cli.engine.backend import Backend, OpenBackend

INTERPRETER = "interpreter"
COMMANDS = "imports of the command line: typer, the command"
USE_CASE = "command line parsed, imports of the use case"
FOUND = "model, settings and format resolved"
BINDINGS = "engine: bindings of llama.cpp imported"
PLANNED = "engine: devices and memory detected, load planned"
LOADED = "model loaded, in native code"
PROMPT = "format built, prompt rendered and tokenized"
CONTEXT = "context created"
EVALUATED = "prompt evaluated"
SHOWN = "first token sampled, on standard output"

passed: dict[str, float] = {}


def main() -> None:
    """Do what the command line says, and tell when it was where."""
    mark(INTERPRETER)
    began = float(sys.argv[1])
    sys.argv[:2] = ["cerebrum"]
    import cerebrum_cli.main as command_line

    wrap(command_line, "assembled", after=COMMANDS, then=follow_command)
    try:
        command_line.main()
    finally:
        import json

        print(json.dumps({name: at - began for name, at in passed.items()}), file=sys.stderr)


def mark(phase: str) -> None:
    """Write down that a phase ends now, or, if it ended before, that it did so only now."""
    if SHOWN not in passed:
        passed[phase] = perf_counter()


def nothing() -> None:
    """Do nothing."""


def wrap(owner: object, name: str, before: str = "", after: str = "", then: Callable[[], None] = nothing) -> None:
    """Have a function mark the end of phases when it is called and when it returns, and do something after that."""
    function = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before:
            mark(before)
        result = function(*arguments, **named)
        if after:
            mark(after)
        then()
        return result

    setattr(owner, name, wrapped)


def follow_command() -> None:
    """Go on where a command asks for its runtime."""
    from cerebrum_cli.commands import ask

    wrap(ask, "runtime_of", before=USE_CASE, then=follow_runtime)


def follow_runtime() -> None:
    """Go on where a model is opened, and where an answer is written."""
    import cerebrum_cli.runtime.composition as runtime
    from cerebrum_cli.terminal.streams import Streams

    opener = runtime.llama_opener

    def llama_opener(*arguments: Any) -> OpenBackend:
        open_backend = opener(*arguments)

        def opened(*engine: Any) -> Backend:
            mark(FOUND)
            follow_engine()
            return open_backend(*engine)

        return opened

    setattr(runtime, "llama_opener", llama_opener)  # noqa: B010
    wrap(Streams, "answer", after=SHOWN)


def follow_engine() -> None:
    """Go on where llama.cpp is called; the engine's thread would import the same next."""
    import cerebrum_cli.engine.llama.load as load
    from cerebrum_cli.engine.llama.backend import LlamaBackend

    mark(BINDINGS)
    wrap(load, "load_model", before=PLANNED, after=LOADED)
    wrap(LlamaBackend, "reserve", before=PROMPT, after=CONTEXT)
    wrap(LlamaBackend, "decode", after=EVALUATED)
