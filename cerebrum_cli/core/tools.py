"""Functions that a model may call, and its calls, as values."""

from __future__ import annotations

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.token_ids import TokenIds


@frozen
class ToolSpec:
    """What a model knows of a function: its name, what it does, and the JSON Schema of its arguments, an object."""

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
    """A call of a function with arguments by name; `result` is what it returned, or its error, as text."""

    name: str
    arguments: JsonObject
    result: str = ""


ToolCalls = tuple[ToolCall, ...]


@frozen
class Round:
    """A part of a reply that ends with calls: what it says before them, its reasoning, and all tokens it sampled."""

    calls: ToolCalls
    content: str = ""
    reasoning: str | None = None
    tokens: TokenIds | None = None
