"""The built-in formats: a system line, then turns that start with a name.

Sources: the model cards of Cerebrum-1.0-7b and -8x7b and their chat template; the card of
CollectiveCognition-v1-Mistral-7B and the EOS token that its training tool put after each reply. How that tool joined
turns is not published; here they follow each other without a line break.
"""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.conversation import Conversation, PromptPart, PromptParts, Text, Tokens
from cerebrum_cli.formats.plain_tools import with_plain_tools
from cerebrum_cli.formats.prompt_format import PromptFormat, join_parts


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
        if conversation.uses_functions:
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
