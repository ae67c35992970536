"""The interface of prompt formats, and the built-in ones: a system line, then turns that start with a name.

Sources: the model cards of Cerebrum-1.0-7b and -8x7b and their chat template; the card of
CollectiveCognition-v1-Mistral-7B and the EOS token that its training tool put after each reply. How that tool joined
turns is not published; here they follow each other without a line break.
"""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.conversation import Conversation, PromptPart, PromptParts, Text, Tokens, join_parts
from cerebrum_cli.core.text import Texts
from cerebrum_cli.formats.plain_tools import with_plain_tools
from cerebrum_cli.formats.thinking import REASONING_MARKUPS, Markups, ReasoningMarkup
from cerebrum_cli.formats.tool_calls import PLAIN_TOOLS, ToolFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """A conversation as the exact prompt the model was trained on; `name` is the value of `--format`.

    - `stop`: stop strings, in addition to the model's end-of-text token
    - `default_system`: the system prompt of a conversation that has none
    - `markups`: the reasoning markup a reply may start with
    - `verbatim`: replies are passed on unchanged, with surrounding white space and reasoning markup
    - `is_servers`: a server applies its own template to the messages, so that the prompt is not known here
    """

    name: str
    stop: Texts = ()
    default_system: str | None = None
    markups: Markups = ()
    verbatim: bool = False
    is_servers: bool = False

    def mentions(self, markup: ReasoningMarkup) -> bool:
        return markup in self.markups

    @property
    def has_switch(self) -> bool:
        return False

    @property
    def efforts(self) -> Texts:
        return ()

    def render(self, conversation: Conversation) -> PromptParts:
        """Render the prompt of the next reply, without BOS unless the format itself writes it.

        It ends with the text of the conversation's `prefill`, unless that has no text, or none that the format shows.
        If a server does that, render the messages: text of nearly the same length.
        """
        return tuple(Text(message["content"]) for message in conversation.openai_messages)

    @property
    def tool_format(self) -> ToolFormat:
        """How the model calls functions."""
        return PLAIN_TOOLS

    @property
    def has_system(self) -> bool:
        """Whether a system prompt has its place; otherwise, it begins the first question."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFormat(PromptFormat):
    """A built-in format: `user` and `assistant` are the speakers' names, `reply_end` is the markup after a reply.

    `removed_text` is removed from every message except the first, where it is plain text.
    """

    user: str
    assistant: str
    reply_end: str
    removed_text: str = ""

    def render(self, conversation: Conversation) -> PromptParts:
        conversation = with_plain_tools(conversation, self.default_system)
        system = self.default_system if conversation.system_prompt is None else conversation.system_prompt
        parts: list[PromptPart] = [Text(system), Text("\n", True)] if system else []
        for index, message in enumerate(conversation.messages):
            content = message.content.replace(self.removed_text, "") if index else message.content
            text = content.strip()
            if message.role == "user":
                parts += Text(f"{self.user} ", True), Text(text), Text("\n", True)
            else:
                reply = Text(f" {text}") if message.tokens is None else Tokens(message.tokens)
                parts += Text(self.assistant, True), reply, Text(self.reply_end, True)
        parts.append(Text(self.assistant, True))
        beginning = conversation.prefill.content if conversation.prefill else ""
        beginning = beginning.replace(self.removed_text, "").strip()
        if beginning:
            parts.append(Text(f" {beginning}"))
        return join_parts(tuple(parts))


class RawFormat(PromptFormat):
    """No format: the last message is the prompt, and special tokens spelled in it are recognized."""

    def render(self, conversation: Conversation) -> PromptParts:
        last = conversation.prefill or conversation.messages[-1]
        return (Text(last.content, True),)


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
    name="collective-cognition", user="USER:", assistant="ASSISTANT:", reply_end="</s>", stop=("\nUSER:",)
)

PLAIN_FORMATS = {plain.name: plain for plain in (CEREBRUM, COLLECTIVE_COGNITION)}
RAW = RawFormat(name="raw", verbatim=True)
SERVERS = PromptFormat(name="server", markups=REASONING_MARKUPS, is_servers=True)
