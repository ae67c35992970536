"""A session as a file: Markdown for people, OpenAI's messages and ShareGPT for programs, and back from those two."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cerebrum_cli.ground.conversation import Conversation, Message, Role, text_of
from cerebrum_cli.ground.errors import SessionError
from cerebrum_cli.ground.text import well_formed

SPEAKERS = {"user": "User", "assistant": "Assistant"}
_SHAREGPT: Mapping[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SHAPES = 'it must be {"messages": [...]} as OpenAI has it, or {"conversations": [...]} as ShareGPT'


def as_markdown(name: str, conversation: Conversation) -> str:
    """Return a conversation as Markdown: a heading for each turn."""
    system = [] if conversation.system_prompt is None else [f"## System\n\n{conversation.system_prompt}"]
    turns = [f"## {SPEAKERS[message.role]}\n\n{message.content.strip()}" for message in conversation.messages]
    return "\n\n".join((f"# {name}", *system, *turns)) + "\n"


def as_messages(conversation: Conversation) -> list[dict[str, str]]:
    """Return a conversation as OpenAI's messages list."""
    system = conversation.system_prompt
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": message.role, "content": message.content} for message in conversation.messages]


def as_sharegpt(name: str, conversation: Conversation) -> dict[str, Any]:
    """Return a conversation in ShareGPT's shape."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    said = [{"from": names[each["role"]], "value": each["content"]} for each in as_messages(conversation)]
    return {"id": name, "conversations": said}


def read_conversation(text: str, source: str) -> tuple[str | None, Conversation]:
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
    return (printable(name) or None if isinstance(name, str) else None), _conversation(said, source)


def printable(name: str) -> str:
    """Return a name without what cannot be printed on one line."""
    return "".join(char if char.isprintable() else " " for char in well_formed(name)).strip()


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
