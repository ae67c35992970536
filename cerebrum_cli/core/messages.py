"""Conversations from OpenAI's lists of messages, in the variants that programs write."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import truncate, well_formed
from cerebrum_cli.core.tools import Round, ToolCall

ROLES = ("system", "user", "assistant", "tool")  # `developer` is another name of `system`
TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "refusal")
REASONING_PARTS = ("thinking", "reasoning", "redacted_thinking")
TEXT_KEYS = ("text", "content", "refusal", "value")
SHOWN = 80  # characters of an invalid call
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def conversation_from_messages(items: Any, name: str, is_request: bool = True) -> Conversation:
    """Convert an OpenAI messages list. Raises UsageError with `name` as the source.

    A request ends with a question, or with the beginning of the reply to it. Messages in a row are joined if their role
    is the same; system messages that are not the first become part of the question. Those without content are ignored.
    Calls of functions and their results are part of the reply that follows them.
    """
    numbered = enumerate(items if isinstance(items, list) else [], 1)
    turns = [turn for number, item in numbered if (turn := _turn(item, f"{name}: message {number}"))]
    if not turns:
        raise UsageError(f"{name} has no messages", 'it must be a list like [{"role": "user", "content": "..."}]')
    turns = _joined(turns)
    system = turns.pop(0).content if turns[0].role == "system" else None
    if turns and turns[0].role != "user":
        raise UsageError(f"{turns[0].where} has the role {turns[0].role}, expected user", "a question must come first")
    messages = []
    for turn in turns:
        messages.append(Message(turn.role, turn.content, reasoning=turn.reasoning or None, rounds=turn.rounds))
    conversation = Conversation(tuple(messages), system)
    if not is_request:
        return conversation
    if not turns:
        raise UsageError(f"{name}: no question to answer", "add a message with the role user")
    for turn in turns[::2]:
        if not turn.content.strip():
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


class _Call(NamedTuple):
    """A call of a message, and the id by which its result names it."""

    where: str
    id: Any
    call: ToolCall
    is_done: bool = False


class _Turn(NamedTuple):
    """What was said in a role; a result has the id of its `call`, a reply the `calls` that its text ends with."""

    where: str
    role: Any
    content: str
    reasoning: str
    call: Any = None
    calls: tuple[_Call, ...] = ()
    rounds: tuple[Round, ...] = ()


def _joined(turns: list[_Turn]) -> list[_Turn]:
    first, *others = turns
    joined = [first]
    for turn in others:
        last = joined[-1]
        role = "user" if turn.role == "system" and last.role != "system" else turn.role
        if role == "tool":
            joined[-1] = _with_result(last, turn)
        elif last.role == role:
            last = _after_calls(last)
            content, reasoning = _paragraphs(last.content, turn.content), _paragraphs(last.reasoning, turn.reasoning)
            joined[-1] = last._replace(content=content, reasoning=reasoning, calls=turn.calls)
        else:
            joined.append(turn._replace(role=role))
    return [_after_calls(turn) for turn in joined]


def _with_result(turn: _Turn, result: _Turn) -> _Turn:
    """A reply with the result of one of its calls: of the one with that id, or of the first if ids are missing."""
    for index, each in enumerate(turn.calls):
        if not each.is_done and (each.id == result.call or None in (each.id, result.call)):
            call = replace(each.call, result=result.content)
            done = each._replace(call=call, is_done=True)
            return turn._replace(calls=(*turn.calls[:index], done, *turn.calls[index + 1 :]))
    problem = f"{result.where} is the result of no call: tool_call_id is {result.call!r}"
    raise UsageError(problem, "it must be the id of a call in the assistant's message before it")


def _after_calls(turn: _Turn) -> _Turn:
    """A turn whose calls, if it has any, have become a round. Raises UsageError if one has no result."""
    if not turn.calls:
        return turn
    for each in turn.calls:
        if not each.is_done:
            raise UsageError(f"{each.where} calls {each.call.name!r}, without a result", "add one with the role tool")
    called = Round(tuple(each.call for each in turn.calls), turn.content, turn.reasoning or None)
    return turn._replace(content="", reasoning="", calls=(), rounds=(*turn.rounds, called))


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _turn(item: Any, where: str) -> _Turn | None:
    """A message as a turn; None if it has neither content nor reasoning."""
    role = item.get("role") if isinstance(item, dict) else None
    if role == "developer":
        role = "system"
    if role not in ROLES:
        raise UsageError(f"{where} has the role {role!r}", "roles are system, user, assistant and tool")
    if item.get("function_call"):
        raise UsageError(f"{where} has a `function_call`", "use `tool_calls`")
    calls = _calls(item, where)
    content = _text_of({"content": None, **item} if calls else item)
    if content is None:
        raise UsageError(f"{where} has no text content", "content must be a string, or a list of text parts")
    reasoning = next(filter(None, map(item.get, REASONING_KEYS)), None)
    if role != "assistant" or not isinstance(reasoning, str):
        reasoning = ""
    if item.get("content") is None and role != "tool" and not (content or reasoning or calls):
        return None
    return _Turn(where, role, well_formed(content), well_formed(reasoning), item.get("tool_call_id"), calls)


def _calls(message: JsonDict, where: str) -> tuple[_Call, ...]:
    calls = message.get("tool_calls") or []
    if calls and message["role"] != "assistant":
        raise UsageError(f"{where} has `tool_calls`", "only messages with the role assistant may call functions")
    return tuple(_call(value, where) for value in (calls if isinstance(calls, list) else [calls]))


def _call(value: Any, where: str) -> _Call:
    match value:
        case {"function": {"name": str(name), **function}}:
            arguments: Any = function.get("arguments") or {}
            with suppress(TypeError, ValueError, RecursionError):  # TypeError: they are an object, not text
                arguments = json.loads(arguments)
            if isinstance(arguments, dict):
                return _Call(where, value.get("id"), ToolCall(well_formed(name), arguments))
    expected = '{"id": "1", "function": {"name": "f", "arguments": "{}"}}'
    raise UsageError(f"{where} has an invalid call: {truncate(json.dumps(value), SHOWN)}", f"expected {expected}")


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
                if len(values) > 1 or part.keys().isdisjoint((*TEXT_KEYS, *REASONING_KEYS)):
                    return None
                waiting += values
            case dict() if part["type"] in REASONING_PARTS:
                continue
            case None:
                continue
            case _:
                return None
    return "".join(texts)
