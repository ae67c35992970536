"""Functions for formats that do not support them: in the system prompt, with calls and results as turns. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.tools import Round, ToolCall, ToolSpecs

INSTRUCTIONS = """You can call these functions:
{}
To call functions, reply with nothing but a JSON object for each: {{"name": "...", "arguments": {{...}}}}
The next message has their results. If no function is needed, answer directly."""


def with_plain_tools(conversation: Conversation, default_system: str | None = None) -> Conversation:
    """The conversation with its functions, calls and results as text."""
    if conversation.tools:
        system = default_system if conversation.system_prompt is None else conversation.system_prompt
        texts = (*filter(None, [system]), instructions(conversation.tools))
        conversation = replace(conversation, system_prompt="\n\n".join(texts), tools=())
    messages = [part for message in conversation.messages for part in _expanded(message)]
    prefill = conversation.prefill
    if prefill and prefill.rounds:
        *called, prefill = _expanded(prefill)
        messages += called
        if not (prefill.content or prefill.reasoning):
            prefill = None
    return replace(conversation, messages=tuple(messages), prefill=prefill)


def instructions(tools: ToolSpecs) -> str:
    """The part of the system prompt that describes functions."""
    lines = [json.dumps(tool.openai["function"], ensure_ascii=False) for tool in tools]
    return INSTRUCTIONS.format("\n".join(lines))


def written_calls(part: Round) -> str:
    """The text and the calls of a round, in the form that the instructions ask for."""
    calls = [json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in part.calls]
    return "\n".join([*filter(None, [part.content]), *calls])


def _expanded(message: Message) -> Iterator[Message]:
    for part in message.rounds:
        yield Message("assistant", written_calls(part), part.tokens, message.thinks, part.reasoning)
        yield Message("user", "\n\n".join(map(_result, part.calls)))
    yield replace(message, rounds=())


def _result(call: ToolCall) -> str:
    return f"Result of {call.name}:\n{call.result}"
