"""Functions that a model may call, and its calls, as values."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, is_nested_deeper
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.core.token_ids import TokenIds


@frozen
class ToolSpec:
    """What a model knows about a function: its name, what it does, and the JSON Schema of its arguments, an object."""

    name: str
    description: str
    parameters: JsonObject

    @property
    def openai(self) -> JsonDict:
        """The function as an item of OpenAI's `tools`."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


ToolSpecs = tuple[ToolSpec, ...]


@frozen
class ToolCall:
    """A function call with arguments by name; `result` is what it returned, or its error, as text.

    A call that already has a result is not run: its arguments could not be read.
    """

    name: str
    arguments: JsonObject
    result: str = ""

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({arguments})"


ToolCalls = tuple[ToolCall, ...]
MAX_LEVELS = 100  # of lists and objects in arguments; functions of Python that read them end at some hundreds

ToolFunction = Callable[..., object]


@frozen
class Tool:
    """A function that a model may call. `run` takes the arguments of a call, and returns its result as text.

    Whoever runs a tool that `asks` must ask the user first. `digest` is that of what defines the function, such as its
    file. `server` names the program that runs it, if it is another one.
    """

    spec: ToolSpec
    run: Callable[[JsonObject], str]
    asks: bool = False
    digest: str = ""
    server: str = ""


Tools = tuple[Tool, ...]
ToolFinder = Callable[[str], Tools | None]
"""The functions of a source that is neither `python` nor a file, of which it gives None. Raises UsageError."""


def read_call(name: str, arguments: object) -> ToolCall:
    """A call with arguments as an object or as JSON text; if it cannot be that, the result is the error."""
    problem = "not a JSON object: it has values that JSON cannot represent"
    with suppress(ValueError, TypeError, RecursionError):
        if isinstance(arguments, str):
            problem = f"not a JSON object: {well_formed(arguments)}"
            arguments = json.loads(arguments)
        if isinstance(arguments, dict) and is_nested_deeper(arguments, MAX_LEVELS):
            problem = f"they have more than {MAX_LEVELS} levels of lists and objects"
        elif isinstance(arguments, dict):
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            return ToolCall(well_formed(name), json.loads(well_formed(written)))
    return ToolCall(well_formed(name), {}, f"invalid arguments: {problem}")


@frozen
class Round:
    """A part of a reply that ends with calls: the text before them, its reasoning, and all sampled tokens."""

    calls: ToolCalls
    content: str = ""
    reasoning: str | None = None
    tokens: TokenIds | None = None
