"""A session as a file: Markdown for people, OpenAI's messages and ShareGPT for programs, and back from those two."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cerebrum_cli.core.conversation import Conversation, Message, Role, text_of
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.sessions.names import printable_name
from cerebrum_cli.sessions.rows import StoredMessage

HEADINGS = {"user": "User", "assistant": "Assistant"}
END_LABELS = {
    "cancelled": "interrupted",
    None: "interrupted",
    "length": "cut",
    "context": "cut",
}  # other than by itself
_SHAREGPT: Mapping[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})\s*(.*)")
_SHAPES = 'it must be {"messages": [...]} as OpenAI has it, or {"conversations": [...]} as ShareGPT'


def to_markdown(name: str, system_prompt: str | None, messages: Sequence[StoredMessage]) -> str:
    """Return a conversation as Markdown: a heading for each turn, a line after a reply that has not ended by itself."""
    system = () if system_prompt is None else ("## System", system_prompt)
    turns = [part for stored in messages for part in _markdown_turn(stored)]
    return "\n\n".join((f"# {name}", *system, *turns)) + "\n"


def to_openai_messages(conversation: Conversation) -> list[dict[str, str]]:
    """Return a conversation as OpenAI's messages list."""
    system = conversation.system_prompt
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": message.role, "content": message.content} for message in conversation.messages]


def to_sharegpt(name: str, conversation: Conversation) -> dict[str, Any]:
    """Return a conversation in ShareGPT's shape."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    said = [{"from": names[each["role"]], "value": each["content"]} for each in to_openai_messages(conversation)]
    return {"id": name, "conversations": said}


def parse_conversation(text: str, source: str) -> tuple[str | None, Conversation]:
    """Return the conversation in a JSON text of either shape, and its name where it has one.

    Raises SessionError, naming `source` and what is wrong.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SessionError(f"{source} is not JSON: {error}", _SHAPES) from error
    if isinstance(value, list) and value and isinstance(value[0], dict) and "conversations" in value[0]:
        if len(value) > 1:
            raise SessionError(f"{source} holds {len(value)} conversations", "import them one at a time")
        value = value[0]  # ShareGPT's files are lists of conversations
    outer = value if isinstance(value, dict) else {"messages": value}
    name = outer.get("name") or outer.get("id")
    items = outer.get("messages") or outer.get("conversations")
    if not isinstance(items, list):
        raise SessionError(f"{source} holds no conversation", _SHAPES)
    said = [_turn(item, f"{source}: message {number}") for number, item in enumerate(items, 1)]
    return (printable_name(name) or None if isinstance(name, str) else None), _conversation(said, source)


def _markdown_turn(stored: StoredMessage) -> Iterable[str]:
    message, said = stored.message, stored.metadata
    yield f"## {HEADINGS[message.role]}"
    content = message.content.strip()
    sampled = said.model or said.finish_reason  # what was imported, or is the user's own, has no end to tell of
    end = END_LABELS.get(said.finish_reason) if message.role == "assistant" and sampled else None
    if content:
        yield f"{content}\n{fence}" if end and (fence := _open_fence(content)) else content
    if end:
        yield f"*({end})*"


def _open_fence(text: str) -> str:
    """Return what closes a code block that a text ends in."""
    fence = ""
    for line in text.splitlines():
        if not (found := _FENCE.match(line)):
            continue
        if not fence:
            fence = found[1]
        elif found[1].startswith(fence) and not found[2]:
            fence = ""
    return fence


def _turn(item: Any, where: str) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise SessionError(f"{where} is no object", _SHAPES)
    role, content = item.get("role", item.get("from")), text_of(item.get("content", item.get("value")))
    role = "system" if role == "developer" else role
    if role not in ("system", *_SHAREGPT) or content is None:
        raise SessionError(f"{where} has no text, or no speaker", _SHAPES)
    return role, well_formed(content)


def _conversation(said: Iterable[tuple[str, str]], source: str) -> Conversation:
    turns = list(said)
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    messages = []
    for number, (speaker, content) in enumerate(turns):
        role = _SHAREGPT.get(speaker)
        if role != ("user", "assistant")[number % 2]:
            what = f"{source}: the turns do not alternate, beginning with the user"
            raise SessionError(what, "one system message may come first")
        messages.append(Message(role, content))
    if not messages:
        raise SessionError(f"{source} holds no turns", _SHAPES)
    return Conversation(tuple(messages), system)
