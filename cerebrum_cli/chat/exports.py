"""Export and import of sessions: Markdown for people, OpenAI messages and ShareGPT for other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cerebrum_cli.chat.session import StoredMessage, printable_name
from cerebrum_cli.core.conversation import Conversation, Message, Role, text_of
from cerebrum_cli.core.errors import SessionError
from cerebrum_cli.core.text import well_formed

HEADINGS = {"user": "User", "assistant": "Assistant"}
END_LABELS = {
    "cancelled": "interrupted",
    None: "interrupted",
    "length": "truncated",
    "context": "truncated",
    "repetition": "ended: repetition",
}
_SHAREGPT: Mapping[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})\s*(.*)")
_EXPECTED = 'expected OpenAI\'s {"messages": [...]} or ShareGPT\'s {"conversations": [...]}'


def to_markdown(name: str, system_prompt: str | None, messages: Sequence[StoredMessage]) -> str:
    """Format a conversation as Markdown: one heading per turn, and a note after each incomplete reply."""
    system = () if system_prompt is None else ("## System", system_prompt)
    turns = [part for stored in messages for part in _markdown_turn(stored)]
    return "\n\n".join((f"# {name}", *system, *turns)) + "\n"


def to_openai_messages(conversation: Conversation) -> list[dict[str, str]]:
    system = conversation.system_prompt
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": message.role, "content": message.content} for message in conversation.messages]


def to_sharegpt(name: str, conversation: Conversation) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[each["role"]], "value": each["content"]} for each in to_openai_messages(conversation)]
    return {"id": name, "conversations": turns}


def parse_conversation(text: str, source: str) -> tuple[str | None, Conversation]:
    """Parse either JSON format into the conversation's name, if it has one, and the conversation.

    Raises SessionError, naming `source`, if the text is malformed.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SessionError(f"{source} is not JSON: {error}", _EXPECTED) from error
    if isinstance(value, list) and value and isinstance(value[0], dict) and "conversations" in value[0]:
        if len(value) > 1:
            raise SessionError(f"{source} holds {len(value)} conversations", "import them one at a time")
        value = value[0]  # ShareGPT files are lists of conversations
    outer = value if isinstance(value, dict) else {"messages": value}
    name = outer.get("name") or outer.get("id")
    items = outer.get("messages") or outer.get("conversations")
    if not isinstance(items, list):
        raise SessionError(f"{source} holds no conversation", _EXPECTED)
    turns = [_parse_turn(item, f"{source}: message {number}") for number, item in enumerate(items, 1)]
    return (printable_name(name) or None if isinstance(name, str) else None), _conversation(turns, source)


def _markdown_turn(stored: StoredMessage) -> Iterable[str]:
    message, metadata = stored.message, stored.metadata
    yield f"## {HEADINGS[message.role]}"
    content = message.content.strip()
    is_sampled = metadata.model or metadata.finish_reason  # imported and edited replies have no finish reason to show
    end = END_LABELS.get(metadata.finish_reason) if message.role == "assistant" and is_sampled else None
    if content:
        yield f"{content}\n{fence}" if end and (fence := _open_fence(content)) else content
    if end:
        yield f"*({end})*"


def _open_fence(text: str) -> str:
    """Find the fence that closes the code block a text ends in; empty if it ends in none."""
    fence = ""
    for line in text.splitlines():
        if not (match := _FENCE.match(line)):
            continue
        if not fence:
            fence = match[1]
        elif match[1].startswith(fence) and not match[2]:
            fence = ""
    return fence


def _parse_turn(item: Any, where: str) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise SessionError(f"{where} is not an object", _EXPECTED)
    role, content = item.get("role", item.get("from")), text_of(item.get("content", item.get("value")))
    role = "system" if role == "developer" else role
    if role not in ("system", *_SHAREGPT) or content is None:
        raise SessionError(f"{where} has no text or no known role", _EXPECTED)
    return role, well_formed(content)


def _conversation(turns: list[tuple[str, str]], source: str) -> Conversation:
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    messages = []
    for number, (name, content) in enumerate(turns):
        role = _SHAREGPT.get(name)
        if role != ("user", "assistant")[number % 2]:
            raise SessionError(
                f"{source}: the turns do not alternate, starting with the user", "one system message may come first"
            )
        messages.append(Message(role, content))
    if not messages:
        raise SessionError(f"{source} holds no turns", _EXPECTED)
    return Conversation(tuple(messages), system)
