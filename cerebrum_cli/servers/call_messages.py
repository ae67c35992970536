"""Function calls in chat completions: in the messages sent to a server, and in the chunks of its replies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.messages import wire_message
from cerebrum_cli.core.tools import ToolCalls, read_call


def chat_messages(conversation: Conversation) -> list[JsonDict]:
    """OpenAI's messages as servers take them, with the calls of the reply in progress last."""
    turns = conversation.turns
    if conversation.prefill:
        *turns, _ = conversation.add(conversation.prefill).turns  # the rest of the reply is still to come
    return [wire_message(turn) for turn in turns]


@dataclass(slots=True)
class PartialCall:
    """A call of which more pieces may follow."""

    id: Any
    name: str
    arguments: str = ""


def read_calls(pieces: Iterable[JsonObject]) -> ToolCalls:
    """The calls in a reply, from pieces, one call after the other. Raises one of `DAMAGE` if they are malformed.

    A piece with a name begins a call, unless it repeats the id: servers disagree on the index.
    """
    calls: list[PartialCall] = []
    for piece in pieces:
        id, function = piece.get("id"), piece["function"]
        if function.get("name") and not (id and calls and id == calls[-1].id):
            calls.append(PartialCall(id, function["name"]))
        calls[-1].arguments += function.get("arguments") or ""
    return tuple(read_call(call.name, call.arguments or "{}") for call in calls)
