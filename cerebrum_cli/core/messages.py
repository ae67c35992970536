"""Conversations from OpenAI's lists of messages, and messages for servers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Conversation, Message, Picture, Turn
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import truncate, well_formed
from cerebrum_cli.core.tools import Round, ToolCall, read_call

SPEAKERS = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "assistant"}
SHOWN = 80  # characters of an invalid value
CALL = '{"id": "1", "function": {"name": "f", "arguments": "{}"}}'
PARTS = 'expected {"type": "text", "text": "..."}, or in a question, image_url with a data: URL'


class _Item(NamedTuple):
    """An item of a list; a reply may have calls by their ids, a result the id of its call."""

    where: str
    role: str
    content: str
    pictures: tuple[Picture, ...]
    reasoning: str
    calls: Mapping[str, ToolCall]
    call_id: str


def conversation_from_messages(items: Any, name: str, is_request: bool = True) -> Conversation:
    """Convert an OpenAI messages list. Raises UsageError with `name` as the source.

    A request ends with a question, or with the beginning of the reply to it. Messages in a row are joined if their role
    is the same. Function calls and their results are part of the reply that follows them.
    """
    if not isinstance(items, (list, tuple)) or not items:
        raise UsageError(f"{name} has no messages", 'it must be a list like [{"role": "user", "content": "..."}]')
    read = [_item(item, f"{name}: message {number}") for number, item in enumerate(items, 1)]
    system, messages = None, list[Message]()
    for speaker, group in groupby(read, key=lambda item: SPEAKERS[item.role]):
        joined = [*group]
        where, role = joined[0].where, joined[0].role
        if speaker == "system":
            if messages:
                raise UsageError(f"{where} has the role {role}", "a system message must come first")
            system = _paragraphs(item.content for item in joined)
        elif speaker == "user":
            messages.append(_question(joined, is_request))
        elif messages:
            messages.append(_reply(joined))
        else:
            raise UsageError(f"{where} has the role {role}, expected user", "a question must come first")
    conversation = Conversation(tuple(messages), system)
    if not is_request:
        return conversation
    if not messages:
        raise UsageError(f"{name}: no question to answer", "add a message with the role user")
    return _with_prefill(conversation)


def _with_prefill(conversation: Conversation) -> Conversation:
    """A conversation whose last message, if it is the assistant's, is the beginning of the reply."""
    *before, last = conversation.messages
    if last.role == "user":
        return conversation
    prefill = None
    if last.content.strip() or last.reasoning or last.rounds:
        prefill = last
    return replace(conversation, messages=tuple(before), prefill=prefill)


def _question(items: Sequence[_Item], is_request: bool) -> Message:
    content = _paragraphs(item.content for item in items)
    pictures = tuple(picture for item in items for picture in item.pictures)
    if is_request and not (content.strip() or pictures):
        raise UsageError(f"{items[0].where} is empty", "a question must contain text")
    return Message("user", content, pictures=pictures)


def _reply(items: Sequence[_Item]) -> Message:
    """A reply with its rounds of calls. Raises UsageError if a call lacks its result."""
    where = items[0].where
    texts: list[_Item] = []
    results: dict[str, str] = {}
    rounds = []
    for item in items:
        if item.role == "tool":
            results[item.call_id or str(len(results))] = item.content
            continue
        if results or (texts and texts[-1].calls):
            rounds.append(_round(where, texts, results))
            texts, results = [], {}
        texts.append(item)
    if results or texts[-1].calls:
        rounds.append(_round(where, texts, results))
        texts = []
    content, reasoning = _texts(texts)
    return Message("assistant", content, reasoning=reasoning, rounds=tuple(rounds))


def _round(where: str, texts: Sequence[_Item], results: Mapping[str, str]) -> Round:
    """The text before calls, and these with their results."""
    calls = texts[-1].calls if texts else {}
    if calls.keys() != results.keys():
        problem = f"{where}: the results {[*results]} do not match the calls {[*calls]}"
        raise UsageError(problem, "after `tool_calls`, add a message for each result: role tool, tool_call_id")
    content, reasoning = _texts(texts)
    return Round(tuple(replace(call, result=results[id]) for id, call in calls.items()), content, reasoning)


def _texts(items: Sequence[_Item]) -> tuple[str, str | None]:
    """The content and the reasoning of messages in a row."""
    return _paragraphs(item.content for item in items), _paragraphs(item.reasoning for item in items) or None


def _paragraphs(texts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, texts))


def _item(item: Any, where: str) -> _Item:
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(role, str) or role not in SPEAKERS:
        raise UsageError(f"{where} has the role {role!r}", "roles are system, user, assistant and tool")
    content, pictures = _content(item.get("content"), role, where)
    reasoning = item.get("reasoning_content")
    if role != "assistant" or not isinstance(reasoning, str):
        reasoning = ""
    calls = _calls(item.get("tool_calls") or [], where) if role == "assistant" else {}
    return _Item(where, role, content, pictures, well_formed(reasoning), calls, str(item.get("tool_call_id") or ""))


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
