"""A session with its messages, as Markdown and as OpenAI's messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from cerebrum_cli.chat.session import Messages, Session, StoredMessage, printable_name
from cerebrum_cli.core.conversation import Conversation, wire_message
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import code_block

_FENCE = re.compile("^```", re.MULTILINE)


@frozen
class ArchivedSession:
    """A session with its messages."""

    session: Session
    messages: Messages

    @property
    def object(self) -> JsonDict:
        """The object of `sessions show --json`, with OpenAI's messages."""
        messages = tuple(stored.message for stored in self.messages)
        turns = []
        for turn in Conversation(messages, self.session.system_prompt).turns:
            message = wire_message(turn)
            if reasoning := getattr(turn.value, "reasoning", None):
                message["reasoning_content"] = reasoning  # the key that servers add for it
            turns.append(message)
        return {"name": self.session.name, "model": self.session.model, "messages": turns}

    @property
    def markdown_parts(self) -> Iterator[tuple[str, str]]:
        """The parts of its Markdown, each with the role of who wrote it, if anybody did."""
        yield "", f"# {printable_name(self.session.name)}"
        if self.session.system_prompt is not None:
            yield "", "## System"
            yield "system", self.session.system_prompt
        for stored in self.messages:
            yield "", f"## {stored.message.role.capitalize()}"
            yield from _message_parts(stored)

    @property
    def markdown(self) -> str:
        return "\n\n".join(text for _, text in self.markdown_parts) + "\n"

    @property
    def json(self) -> str:
        return json.dumps(self.object, ensure_ascii=False, indent=2) + "\n"


def _message_parts(stored: StoredMessage) -> Iterator[tuple[str, str]]:
    role, content, end = stored.message.role, stored.message.content.strip(), stored.early_end
    for part in stored.message.rounds:
        if part.content:
            yield role, part.content
        for call in part.calls:
            yield "", code_block(f"{call}\n-> {call.result}")
    if end and len(_FENCE.findall(content)) % 2:  # the reply ended within a code block
        content += "\n```"
    if content:
        yield role, content
    if end:
        yield "", f"*({end})*"
