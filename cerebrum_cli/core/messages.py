"""Conversations from OpenAI's lists of messages, and messages for servers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from cerebrum_cli.core.conversation import Conversation, Message, Picture, Pictures, Turn
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import truncate, well_formed
from cerebrum_cli.core.tools import Round, ToolCall, read_call

SHOWN = 80  # characters of an invalid value
CALL = '{"id": "1", "function": {"name": "f", "arguments": "{}"}}'
PARTS = 'expected {"type": "text", "text": "..."}, or in a question, image_url with a data: URL'
RESULTS = "after `tool_calls`, add a message for each result: role tool, tool_call_id"


def conversation_from_messages(items: Any, name: str, is_request: bool = True) -> Conversation:
    """Convert an OpenAI messages list. Raises UsageError with `name` as the source.

    A request ends with a question, or with the beginning of the reply to it. Messages in a row are joined if their role
    is the same. Function calls and their results are part of the reply that follows them.
    """
    if not isinstance(items, (list, tuple)) or not items:
        raise UsageError(f"{name} has no messages", 'it must be a list like [{"role": "user", "content": "..."}]')
    read = _Messages()
    for number, item in enumerate(items, 1):
        read.add(item, f"{name}: message {number}")
    read.require_results(f"{name}: its end")
    conversation = Conversation(tuple(read.messages), read.system)
    return _as_request(conversation, name) if is_request else conversation


def _as_request(conversation: Conversation, name: str) -> Conversation:
    """A conversation whose last message, if it is the assistant's, is the beginning of the reply."""
    if not conversation.messages:
        raise UsageError(f"{name}: no question to answer", "add a message with the role user")
    for message in conversation.messages:
        if message.role == "user" and not (message.content.strip() or message.pictures):
            raise UsageError(f"{name} has an empty question", "a question must contain text")
    *before, last = conversation.messages
    if last.role == "user":
        return conversation
    prefill = last if last.content.strip() or last.reasoning or last.rounds else None
    return replace(conversation, messages=tuple(before), prefill=prefill)


@dataclass(slots=True)
class _Messages:
    """What has been read of a list; `waiting` are the calls of the last round that lack a result, by their ids."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    waiting: dict[str, ToolCall] = field(default_factory=dict)

    def add(self, item: Any, where: str) -> None:
        role = item.get("role") if isinstance(item, dict) else None
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise UsageError(f"{where} has the role {role!r}", "roles are system, user, assistant and tool")
        content, pictures = _content(item.get("content"), role, where)
        if role == "tool":
            self._add_result(str(item.get("tool_call_id") or ""), content, where)
            return
        self.require_results(where)
        if role == "user":
            self._add_question(content, pictures)
        elif role == "assistant":
            self._add_reply(item, content, where)
        elif self.messages:
            raise UsageError(f"{where} has the role {role}", "a system message must come first")
        else:
            self.system = _joined(self.system, content)

    def require_results(self, where: str) -> None:
        if self.waiting:
            raise UsageError(f"{where} follows calls without results: {', '.join(self.waiting)}", RESULTS)

    def _add_question(self, content: str, pictures: Pictures) -> None:
        if self.messages and self.messages[-1].role == "user":
            last = self.messages.pop()
            content, pictures = _joined(last.content, content), (*last.pictures, *pictures)
        self.messages.append(Message("user", content, pictures=pictures))

    def _add_reply(self, item: JsonDict, content: str, where: str) -> None:
        """Add to a reply; what precedes calls becomes a round, whose calls wait for their results."""
        if not self.messages:
            raise UsageError(f"{where} has the role assistant, expected user", "a question must come first")
        last = self.messages.pop() if self.messages[-1].role == "assistant" else Message("assistant", "")
        content = _joined(last.content, content)
        reasoning = item.get("reasoning_content")
        if not isinstance(reasoning, str):
            reasoning = ""
        reasoning = _joined(last.reasoning, well_formed(reasoning)) or None
        self.waiting = _calls(item.get("tool_calls") or [], where)
        if self.waiting:
            part = Round(tuple(self.waiting.values()), content, reasoning)
            self.messages.append(replace(last, content="", reasoning=None, rounds=(*last.rounds, part)))
        else:
            self.messages.append(replace(last, content=content, reasoning=reasoning))

    def _add_result(self, id: str, content: str, where: str) -> None:
        """Add the result of a call to its round; without an id, that of the first call that lacks one."""
        waiting = self.waiting.pop(id or next(iter(self.waiting), ""), None)
        if waiting is None:
            raise UsageError(f"{where} is the result of no call", RESULTS)
        last = self.messages[-1]
        *rounds, part = last.rounds
        calls = tuple(replace(call, result=content) if call is waiting else call for call in part.calls)
        self.messages[-1] = replace(last, rounds=(*rounds, replace(part, calls=calls)))


def _joined(first: str | None, second: str) -> str:
    return "\n\n".join(filter(None, (first, second)))


def _content(value: Any, role: str, where: str) -> tuple[str, tuple[Picture, ...]]:
    """The text and the pictures of a message; a reply and a result may have null."""
    if value is None and role in ("assistant", "tool"):
        return "", ()
    if not isinstance(value, (str, list)):
        raise UsageError(f"{where} has no text content", "content must be a string, or a list of text parts")
    texts, pictures = [], []
    for part in [{"type": "text", "text": value}] if isinstance(value, str) else value:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(well_formed(text))
            case {"type": "image_url", "image_url": {"url": str(url)}} if role == "user" and url.startswith("data:"):
                pictures.append(Picture(url))
            case _:
                raise UsageError(f"{where} has the part {_shown(part)}", PARTS)
    return "".join(texts), tuple(pictures)


def _calls(values: Any, where: str) -> dict[str, ToolCall]:
    """Calls by id, or by position if they have none."""
    calls = {}
    for place, value in enumerate(values if isinstance(values, list) else [values]):
        match value:
            case {"function": {"name": str(name), "arguments": str() | dict() as arguments}}:
                calls[str(value.get("id") or place)] = read_call(name, arguments)
            case _:
                raise UsageError(f"{where} has an invalid call: {_shown(value)}", f"expected {CALL}")
    return calls


def _shown(value: Any) -> str:
    return truncate(well_formed(repr(value)), SHOWN)


def wire_message(turn: Turn) -> JsonDict:
    """A turn as one of OpenAI's messages for servers: pictures before the text, arguments as JSON text."""
    message = turn.openai
    for call in message.get("tool_calls", ()):
        function = call["function"]
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    if isinstance(turn.value, Message) and turn.value.pictures:
        pictures = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in turn.value.pictures]
        message["content"] = [*pictures, {"type": "text", "text": turn.content}]
    return message
