"""Conversations as immutable values, and the parts of the prompts that formats make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Round, ToolCall, ToolSpecs

Role = Literal["user", "assistant"]


@frozen
class Picture:
    """A picture of a question, as a data: URL."""

    url: str


Pictures = tuple[Picture, ...]


@frozen
class Message:
    """One turn; `tokens` are those a reply was generated as, `thinks` is that of the conversation it answered.

    `reasoning` is what a reply marked as such; its content does not include it. `rounds` are the parts of a reply that
    called functions; its other fields describe what follows them. `pictures` precede the text of a question.
    """

    role: Role
    content: str
    tokens: TokenIds | None = None
    thinks: bool | None = None
    reasoning: str | None = None
    rounds: tuple[Round, ...] = ()
    pictures: Pictures = ()


class Turn(NamedTuple):
    """A message of one role, and the value it was made from; `thinks` as in a Message.

    `number` counts the function calls; for a Round, it is the number of calls before it.
    """

    role: str
    content: str
    value: Message | Round | ToolCall | None = None
    thinks: bool | None = None
    number: int = 0

    @property
    def openai(self) -> JsonDict:
        """The turn as one of OpenAI's messages, except that arguments are an object, not text."""
        message: JsonDict = {"role": self.role, "content": self.content}
        match self.value:
            case Round(calls):
                message["tool_calls"] = []
                for number, call in enumerate(calls, self.number + 1):
                    function = {"name": call.name, "arguments": call.arguments}
                    message["tool_calls"].append({"id": call_id(number), "type": "function", "function": function})
            case ToolCall(name):
                message |= {"name": name, "tool_call_id": call_id(self.number)}
        return message


def call_id(number: int) -> str:
    """The id of a call: nine letters and digits, as Mistral's templates require."""
    return f"call{number:05}"


@frozen
class Conversation:
    """Turns that alternate and start with the user; with `system_prompt=None` the format's default applies.

    `thinks`: whether the next reply is to begin with reasoning, `effort`: how much of it. None leaves it to the format.
    `prefill` begins the next reply, which may call the `tools`.
    """

    messages: tuple[Message, ...] = ()
    system_prompt: str | None = None
    thinks: bool | None = None
    effort: str | None = None
    prefill: Message | None = None
    tools: ToolSpecs = ()

    def user(self, content: str, pictures: Pictures = ()) -> Conversation:
        return self.add(Message("user", content, pictures=pictures))

    def assistant(self, content: str, tokens: TokenIds | None = None, reasoning: str | None = None) -> Conversation:
        return self.add(Message("assistant", content, tokens, self.thinks, reasoning))

    def add(self, message: Message) -> Conversation:
        return replace(self, messages=(*self.messages, message), prefill=None)

    def with_folded_system(self, at: int) -> Conversation:
        """The conversation with its system prompt at the beginning of a message."""
        messages = list(self.messages)
        texts = (*filter(str.strip, [self.system_prompt or ""]), messages[at].content)
        messages[at] = replace(messages[at], content="\n\n".join(texts))
        return replace(self, messages=tuple(messages), system_prompt=None)

    @property
    def uses_functions(self) -> bool:
        return bool(self.tools) or any(message.rounds for message in filter(None, (*self.messages, self.prefill)))

    @property
    def pictures(self) -> Pictures:
        return tuple(picture for message in self.messages for picture in message.pictures)

    @property
    def turns(self) -> list[Turn]:
        """All messages in order, with the calls of each reply and their results."""
        turns = []
        if self.system_prompt is not None:
            turns.append(Turn("system", self.system_prompt))
        number = 0
        for message in self.messages:
            for part in message.rounds:
                turns.append(Turn("assistant", part.content, part, message.thinks, number))
                for call in part.calls:
                    number += 1
                    turns.append(Turn("tool", call.result, call, None, number))
            turns.append(Turn(message.role, message.content, message, message.thinks))
        return turns

    @property
    def openai_messages(self) -> list[JsonDict]:
        return [turn.openai for turn in self.turns]

    @property
    def question(self) -> str:
        return self.messages[-1].content

    def with_question(self, content: str) -> Conversation:
        return replace(self, messages=(*self.messages[:-1], replace(self.messages[-1], content=content)))


@frozen
class Text:
    """Text; special tokens are recognized only in trusted text, such as a format's own markup."""

    value: str
    trusted: bool = False


@frozen
class Tokens:
    """Token ids to use unchanged: a reply in the tokens it was generated as."""

    ids: TokenIds


PromptPart = Text | Tokens
PromptParts = tuple[PromptPart, ...]  # which make a prompt
