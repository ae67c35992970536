"""Calls of functions in chat completions: in the messages that a server gets, and in pieces of its replies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.tools import ToolCalls, read_call


def chat_messages(conversation: Conversation) -> list[JsonDict]:
    """OpenAI's messages as servers take them, with the calls of the reply in progress last."""
    messages = conversation.openai_messages
    if conversation.prefill:
        *messages, _ = conversation.add(conversation.prefill).openai_messages  # the rest of the reply is still to come
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return messages


@dataclass(slots=True)
class PartialCall:
    """What has arrived of a call, of which servers may omit the index, the id, or both."""

    index: Any
    id: Any
    name: str = ""
    arguments: str = ""

    def is_continued_by(self, piece: JsonObject, name: str) -> bool:
        """Whether a piece is of this call: some servers repeat its name, others have one index for all calls."""
        index, id = piece.get("index"), piece.get("id")
        if index not in (None, self.index):
            return False
        if name and id:
            return bool(id == self.id)
        return not name or index is not None

    def add(self, name: str, arguments: Any) -> None:
        """Add to the name, unless it is repeated, and to the arguments, which may also be an object."""
        self.name += name.removeprefix(self.name)
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments)
        self.arguments += arguments or ""


class StreamedCalls:
    """The calls in a reply, whose pieces may alternate."""

    def __init__(self) -> None:
        self._calls: list[PartialCall] = []

    def add(self, pieces: Iterable[JsonObject]) -> None:
        """Add pieces of calls. Raises one of `DAMAGE` if they have another form."""
        for piece in pieces:
            function = piece.get("function") or {}
            name = function.get("name") or ""
            self._call_of(piece, name).add(name, function.get("arguments"))

    def _call_of(self, piece: JsonObject, name: str) -> PartialCall:
        for call in reversed(self._calls):
            if call.is_continued_by(piece, name):
                return call
        call = PartialCall(piece.get("index"), piece.get("id"))
        self._calls.append(call)
        return call

    @property
    def calls(self) -> ToolCalls:
        return tuple(read_call(call.name, call.arguments or "{}") for call in self._calls if call.name)
