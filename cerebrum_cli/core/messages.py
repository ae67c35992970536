"""Conversations from OpenAI's lists of messages, in the variants that programs write, and messages for servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Conversation, Message, Turn
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.pictures import Picture, Pictures
from cerebrum_cli.core.text import truncate, well_formed
from cerebrum_cli.core.tools import Round, ToolCall, read_call

ROLES = ("system", "user", "assistant", "tool")  # `developer` is another name of `system`
TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "refusal")
REASONING_PARTS = ("thinking", "reasoning", "redacted_thinking")
TEXT_KEYS = ("text", "content", "refusal", "value")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
OTHER_KEYS = (*REASONING_KEYS, "tool_calls")  # of messages without text
ReadPicture = Callable[[str, str], Picture]  # gets a URL, and the place of it in errors
SHOWN = 80  # characters of an invalid call
CALL = '{"id": "1", "function": {"name": "f", "arguments": "{}"}}'


def conversation_from_messages(
    items: Any, name: str, is_request: bool = True, read_picture: ReadPicture | None = None
) -> Conversation:
    """Convert an OpenAI messages list. Raises UsageError with `name` as the source.

    A request ends with a question, or with the beginning of the reply to it. Messages in a row are joined if their role
    is the same; system messages that are not the first become part of the question. Those without content are ignored.
    Function calls and their results are part of the reply that follows them. Without `read_picture`, there may be
    no pictures.
    """
    numbered = enumerate(items if isinstance(items, (list, tuple)) else [], 1)
    turns = []
    for number, item in numbered:
        if turn := _turn(item, f"{name}: message {number}", read_picture):
            turns.append(turn)
    if not turns:
        raise UsageError(f"{name} has no messages", 'it must be a list like [{"role": "user", "content": "..."}]')
    turns = _joined(turns)
    system = turns.pop(0).content if turns[0].role == "system" else None
    if turns and turns[0].role != "user":
        raise UsageError(f"{turns[0].where} has the role {turns[0].role}, expected user", "a question must come first")
    messages = []
    for turn in turns:
        message = Message(turn.role, turn.content, reasoning=turn.reasoning or None, rounds=turn.rounds)
        messages.append(replace(message, pictures=turn.pictures))
    conversation = Conversation(tuple(messages), system)
    if not is_request:
        return conversation
    if not turns:
        raise UsageError(f"{name}: no question to answer", "add a message with the role user")
    for turn in turns[::2]:
        if not (turn.content.strip() or turn.pictures):
            raise UsageError(f"{turn.where} is empty", "a question must contain text")
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


class _Turn(NamedTuple):
    """A message of one role, with the calls at its end and their results, by id; a result has the id of its `call`."""

    where: str
    role: Any
    content: str
    reasoning: str
    call: Any = None
    calls: Mapping[str, ToolCall] = {}
    results: Mapping[str, str] = {}
    rounds: tuple[Round, ...] = ()
    pictures: Pictures = ()


def _joined(turns: list[_Turn]) -> list[_Turn]:
    first, *others = turns
    joined = [first]
    for turn in others:
        last = joined[-1]
        role = "user" if turn.role == "system" and last.role != "system" else turn.role
        if role == "tool":
            id = str(turn.call or len(last.results))
            joined[-1] = last._replace(results={**last.results, id: turn.content})
        elif last.role == role:
            last = _after_calls(last)
            content, reasoning = _paragraphs(last.content, turn.content), _paragraphs(last.reasoning, turn.reasoning)
            pictures = (*last.pictures, *turn.pictures)
            joined[-1] = last._replace(content=content, reasoning=reasoning, calls=turn.calls, pictures=pictures)
        else:
            joined.append(turn._replace(role=role))
    return [_after_calls(turn) for turn in joined]


def _after_calls(turn: _Turn) -> _Turn:
    """A turn whose calls, if it has any, have become a round. Raises UsageError if a call lacks its result."""
    if not (turn.calls or turn.results):
        return turn
    if turn.role != "assistant" or turn.calls.keys() != turn.results.keys():
        problem = f"{turn.where} ({turn.role}): the results {[*turn.results]} do not match the calls {[*turn.calls]}"
        raise UsageError(problem, "after `tool_calls`, add a message for each result: role tool, tool_call_id")
    calls = tuple(replace(call, result=turn.results[id]) for id, call in turn.calls.items())
    called = Round(calls, turn.content, turn.reasoning or None)
    return turn._replace(content="", reasoning="", calls={}, results={}, rounds=(*turn.rounds, called))


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _turn(item: Any, where: str, read_picture: ReadPicture | None) -> _Turn | None:
    """A message as a turn; None if it has neither content nor reasoning."""
    role = item.get("role") if isinstance(item, dict) else None
    if role == "developer":
        role = "system"
    if role not in ROLES:
        raise UsageError(f"{where} has the role {role!r}", "roles are system, user, assistant and tool")
    pictures: Pictures = ()
    if read_picture and role == "user":
        item, pictures = _without_pictures(item, where, read_picture)
    content = _text_of(item)
    if content is None:
        raise UsageError(f"{where} has no text content", "content must be a string, or a list of text parts")
    reasoning = next(filter(None, map(item.get, REASONING_KEYS)), None)
    if role != "assistant" or not isinstance(reasoning, str):
        reasoning = ""
    calls = _calls(item.get("tool_calls") or [], where)
    if item.get("content") is None and role != "tool" and not (content or reasoning or calls):
        return None
    texts = well_formed(content), well_formed(reasoning)
    return _Turn(where, role, *texts, item.get("tool_call_id"), calls, pictures=pictures)


def _without_pictures(message: JsonDict, where: str, read: ReadPicture) -> tuple[JsonDict, Pictures]:
    """A message without the parts that are pictures, which divide its text into paragraphs, and these."""
    content = message.get("content")
    if not isinstance(content, list):
        return message, ()
    pictures = []
    groups: list[list[Any]] = [[]]  # of parts between pictures
    for part in content:
        match part:
            case {"type": "image_url" | "input_image", "image_url": {"url": str(url)} | str(url)}:
                pictures.append(read(url, where))
                groups.append([])
            case _:
                groups[-1].append(part)
    texts: list[Any] = []
    for group in groups:
        if _text_of({"content": texts}) and _text_of({"content": group}):
            texts.append("\n\n")
        texts += group
    return {**message, "content": texts}, tuple(pictures)


def _calls(values: Any, where: str) -> dict[str, ToolCall]:
    """Calls by id, or by position if they have none."""
    calls = {}
    for place, value in enumerate(values if isinstance(values, list) else [values]):
        match value:
            case {"function": {"name": str(name), "arguments": str() | dict() as arguments}}:
                call = read_call(name, arguments)
            case _:
                raise UsageError(f"{where} has an invalid call: {truncate(repr(value), SHOWN)}", f"expected {CALL}")
        calls[str(value.get("id") or place)] = call
    return calls


def _text_of(message: JsonDict) -> str | None:
    """The text of a message, which may be in parts, or null; None if it has other parts, or its text is ambiguous."""
    content = message.get("content")
    waiting = [{**message, "type": "text"} if content is None else content]
    texts = []
    while waiting:
        part = waiting.pop()
        match part:
            case str():
                texts.append(part)
            case list():
                waiting += reversed(part)
            case dict() if part.get("type", "text") in TEXT_PARTS:
                values = [part[key] for key in TEXT_KEYS if part.get(key) is not None]
                if len(values) > 1 or part.keys().isdisjoint((*TEXT_KEYS, *OTHER_KEYS)):
                    return None
                waiting += values
            case dict() if part["type"] in REASONING_PARTS:
                continue
            case None:
                continue
            case _:
                return None
    return "".join(texts)


def wire_message(turn: Turn) -> JsonDict:
    """A turn as one of OpenAI's messages, as servers take them: arguments are JSON text."""
    message = turn.openai
    for call in message.get("tool_calls", ()):
        function = call["function"]
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return message
