"""Runs a function: what it prints and returns is its result, and so is every exception."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from inspect import isawaitable
from io import BytesIO, TextIOWrapper
from traceback import TracebackException
from typing import Any, TextIO

from cerebrum_cli.core.errors import Interrupted
from cerebrum_cli.core.text import one_line, well_formed
from cerebrum_cli.programs.function_results import MAX_ITEMS, NotJson, result_text

NO_RESULT = "(no result)"


class FunctionOutput(TextIOWrapper):
    """Standard output for functions: between `begin` and `end`, a part of the result.

    What is printed at another time goes to `other`, and so does what threads print that earlier calls left behind.
    """

    def __init__(self, other: TextIO | None) -> None:
        self._bytes = _OpenBytes()
        super().__init__(self._bytes, "utf-8", "surrogatepass", newline="", write_through=True)
        self._other = other
        self._earlier: set[threading.Thread] | None = None

    def begin(self) -> None:
        self._earlier = {*threading.enumerate()} - {threading.current_thread()}

    def end(self) -> str:
        """The text since `begin`."""
        self._earlier = None
        text = self._bytes.getvalue().decode(errors="replace")
        self._bytes.seek(0)
        self._bytes.truncate()
        return text

    def write(self, text: str) -> int:
        if self._earlier is not None and threading.current_thread() not in self._earlier:
            return super().write(text)
        if self._other:
            with suppress(OSError, ValueError):  # it may be closed
                self._other.write(text)
        return len(text)

    def detach(self) -> Any:
        raise OSError("this output cannot be detached")


class _OpenBytes(BytesIO):
    def close(self) -> None:
        """Do nothing: a function may close its output, but the next one has the same."""


def run_function(function: Callable[..., object], values: dict[str, Any], output: FunctionOutput) -> str:
    """Call a function with `output` as standard output; its result, or a line about its exception.

    Strings are returned as they are, other values as JSON. Standard streams are as before afterwards.
    """
    streams = sys.stdin, sys.stdout, sys.stderr
    sys.stdout = output
    output.begin()
    try:
        result = result_text(_awaited(function(**values)))
    except (Interrupted, KeyboardInterrupt):
        output.end()
        raise
    except NotJson as problem:
        result = f"{getattr(function, '__name__', 'the function')} returned {problem}, which JSON cannot represent"
    except BaseException as error:
        result = describe(error)
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
    return well_formed(output.end() + result) or NO_RESULT


def describe(error: BaseException) -> str:
    """An exception in one line."""
    name = type(error).__name__
    try:
        problem = TracebackException(type(error), error, None)  # also of an error whose `__str__` fails
        return one_line(f"{name}: {problem}").removesuffix(":")
    except Exception:
        return name


def _awaited(value: object) -> object:
    """What a coroutine returns, and what an asynchronous generator yields; other values as they are."""
    if isawaitable(value):
        return _run_to_end(value)
    if isinstance(value, AsyncIterable):
        return _run_to_end(_collected(value))
    return value


async def _collected(values: AsyncIterable[object]) -> object:
    items = []
    async for value in values:
        items.append(value)
        if len(items) > MAX_ITEMS:
            break
    return iter(items)


def _run_to_end(value: Awaitable[object]) -> object:
    """The result of an awaitable, from an event loop of its own: where one is running, in another thread."""

    import asyncio

    async def main() -> object:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    results: list[object] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(main()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
