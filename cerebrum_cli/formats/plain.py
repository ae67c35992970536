"""Formats that are rows of data: a system line, then turns that begin with a speaker's name.

Sources: the model cards of Cerebrum-1.0-7b and -8x7b and their chat template; the card of
CollectiveCognition-v1-Mistral-7B and the EOS token its training tool put after each reply. How that tool joined
turns is not published: one turn following the other without a line break is the reading tested here.
"""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.parts import Part, Text, Tokens, join_parts
from cerebrum_cli.formats.format import ThoughtMarkup


@dataclass(frozen=True, slots=True)
class PlainFormat:
    """A row: `user` and `assistant` name the speakers, `reply_end` is the markup after each finished reply.

    `erased` is text that is removed from every message but the first, where it stays plain text.
    """

    name: str
    user: str
    assistant: str
    reply_end: str
    stop: tuple[str, ...]
    default_system: str | None = None
    removed_text: str = ""
    thoughts: tuple[ThoughtMarkup, ...] = ()
    verbatim: bool = False

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """Return the prompt: the system text and a line break, the turns, and the name of who speaks next."""
        system = self.default_system if conversation.system_prompt is None else conversation.system_prompt
        parts: list[Part] = [Text(system), Text("\n", True)] if system else []
        for index, message in enumerate(conversation.messages):
            parts += self._turn(message, first=index == 0)
        return join_parts((*parts, Text(self.assistant, True)))

    def _turn(self, message: Message, first: bool) -> tuple[Part, ...]:
        content = message.content if first or not self.removed_text else message.content.replace(self.removed_text, "")
        if message.role == "user":
            return Text(f"{self.user} ", True), Text(content.strip()), Text("\n", True)
        said: Part = Text(f" {content.strip()}") if message.tokens is None else Tokens(message.tokens)
        return Text(self.assistant, True), said, Text(self.reply_end, True)


@dataclass(frozen=True, slots=True)
class RawFormat:
    """No format at all: the last message is the prompt as it stands, special tokens spelled in it included."""

    name: str = "raw"
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    thoughts: tuple[ThoughtMarkup, ...] = ()
    verbatim: bool = True

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """Return the text to continue."""
        return (Text(conversation.messages[-1].content, True),)


CEREBRUM = PlainFormat(
    name="cerebrum",
    user="User:",
    assistant="AI:",
    reply_end="\n",
    stop=("\nUser:",),
    default_system=(
        "A chat between a user and a thinking artificial intelligence assistant. The assistant describes its thought"
        " process and gives helpful and detailed answers to the user's questions."
    ),
    removed_text="</s>",
)

COLLECTIVE_COGNITION = PlainFormat(
    name="collective-cognition",
    user="USER:",
    assistant="ASSISTANT:",
    reply_end="</s>",
    stop=("\nUSER:",),
)

PLAIN_FORMATS = {row.name: row for row in (CEREBRUM, COLLECTIVE_COGNITION)}
RAW = RawFormat()
EMBEDDED = "embedded"
