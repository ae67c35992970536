"""Conversations as immutable values, from and to the messages of OpenAI's API, and the parts of their prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import truncate, well_formed
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Round, ToolCall, ToolSpecs, read_call

SHOWN = 80  # characters of an invalid value
CALL = '{"id": "1", "function": {"name": "f", "arguments": "{}"}}'
PARTS = 'expected {"type": "text", "text": "..."}, or in a question, image_url with a data: URL'
RESULTS = "after `tool_calls`, add a message for each result: role tool, tool_call_id"


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


def shows(prompt: PromptParts, text: str) -> bool:
    """Whether a prompt has a text, apart from the white space around it."""
    return any(isinstance(part, Text) and text.strip() in part.value for part in prompt)


def conversation_from_messages(items: Any, name: str, is_request: bool = True) -> Conversation:
    """Convert an OpenAI messages list. Raises UsageError with `name` as the source.

    A request ends with a question, or with the beginning of the reply to it. Messages in a row are joined if their role
    is the same. Function calls and their results are part of the reply that follows them.
    """
    if not isinstance(items, (list, tuple)) or not items:
        raise UsageError(f"{name} has no messages", 'it must be a list like [{"role": "user", "content": "..."}]')
    read = _Messages()
    for number, item in enumerate(items, 1):
        read.add(item, f"{name}: message {number}")
    read.require_results(f"{name}: its end")
    conversation = Conversation(tuple(read.messages), read.system)
    return _as_request(conversation, name) if is_request else conversation


def _as_request(conversation: Conversation, name: str) -> Conversation:
    """A conversation whose last message, if it is the assistant's, is the beginning of the reply."""
    if not conversation.messages:
        raise UsageError(f"{name}: no question to answer", "add a message with the role user")
    for message in conversation.messages:
        if message.role == "user" and not (message.content.strip() or message.pictures):
            raise UsageError(f"{name} has an empty question", "a question must contain text")
    *before, last = conversation.messages
    if last.role == "user":
        return conversation
    prefill = last if last.content.strip() or last.reasoning or last.rounds else None
    return replace(conversation, messages=tuple(before), prefill=prefill)


@dataclass(slots=True)
class _Messages:
    """What has been read of a list; `waiting` are the calls of the last round that lack a result, by their ids."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    waiting: dict[str, ToolCall] = field(default_factory=dict)

    def add(self, item: Any, where: str) -> None:
        role = item.get("role") if isinstance(item, dict) else None
        if role not in ("system", "developer", "user", "assistant", "tool"):
            raise UsageError(f"{where} has the role {role!r}", "roles are system, user, assistant and tool")
        content, pictures = _content(item.get("content"), role, where)
        if role == "tool":
            self._add_result(str(item.get("tool_call_id") or ""), content, where)
            return
        self.require_results(where)
        if role == "user":
            self._add_question(content, pictures)
        elif role == "assistant":
            self._add_reply(item, content, where)
        elif self.messages:
            raise UsageError(f"{where} has the role {role}", "a system message must come first")
        else:
            self.system = _joined(self.system, content)

    def require_results(self, where: str) -> None:
        if self.waiting:
            raise UsageError(f"{where} follows calls without results: {', '.join(self.waiting)}", RESULTS)

    def _add_question(self, content: str, pictures: Pictures) -> None:
        if self.messages and self.messages[-1].role == "user":
            last = self.messages.pop()
            content, pictures = _joined(last.content, content), (*last.pictures, *pictures)
        self.messages.append(Message("user", content, pictures=pictures))

    def _add_reply(self, item: JsonDict, content: str, where: str) -> None:
        """Add to a reply; what precedes calls becomes a round, whose calls wait for their results."""
        if not self.messages:
            raise UsageError(f"{where} has the role assistant, expected user", "a question must come first")
        last = self.messages.pop() if self.messages[-1].role == "assistant" else Message("assistant", "")
        content = _joined(last.content, content)
        reasoning = item.get("reasoning_content")
        if not isinstance(reasoning, str):
            reasoning = ""
        reasoning = _joined(last.reasoning, well_formed(reasoning)) or None
        self.waiting = _calls(item.get("tool_calls") or [], where)
        if self.waiting:
            part = Round(tuple(self.waiting.values()), content, reasoning)
            self.messages.append(replace(last, content="", reasoning=None, rounds=(*last.rounds, part)))
        else:
            self.messages.append(replace(last, content=content, reasoning=reasoning))

    def _add_result(self, id: str, content: str, where: str) -> None:
        """Add the result of a call to its round; without an id, that of the first call that lacks one."""
        waiting = self.waiting.pop(id or next(iter(self.waiting), ""), None)
        if waiting is None:
            raise UsageError(f"{where} is the result of no call", RESULTS)
        last = self.messages[-1]
        *rounds, part = last.rounds
        calls = tuple(replace(call, result=content) if call is waiting else call for call in part.calls)
        self.messages[-1] = replace(last, rounds=(*rounds, replace(part, calls=calls)))


def _joined(first: str | None, second: str) -> str:
    return "\n\n".join(filter(None, (first, second)))


def _content(value: Any, role: str, where: str) -> tuple[str, tuple[Picture, ...]]:
    """The text and the pictures of a message; a reply and a result may have null."""
    if value is None and role in ("assistant", "tool"):
        return "", ()
    if not isinstance(value, (str, list)):
        raise UsageError(f"{where} has no text content", "content must be a string, or a list of text parts")
    texts, pictures = [], []
    for part in [{"type": "text", "text": value}] if isinstance(value, str) else value:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(well_formed(text))
            case {"type": "image_url", "image_url": {"url": str(url)}} if role == "user" and url.startswith("data:"):
                pictures.append(Picture(url))
            case _:
                raise UsageError(f"{where} has the part {_shown(part)}", PARTS)
    return "".join(texts), tuple(pictures)


def _calls(values: Any, where: str) -> dict[str, ToolCall]:
    """Calls by id, or by position if they have none."""
    calls = {}
    for place, value in enumerate(values if isinstance(values, list) else [values]):
        match value:
            case {"function": {"name": str(name), "arguments": str() | dict() as arguments}}:
                call = read_call(name, arguments or {})
                if call.result:
                    problem = f"{where} has a call whose arguments are not a JSON object: {_shown(arguments)}"
                    raise UsageError(problem, f"expected {CALL}")
                calls[str(value.get("id") or place)] = call
            case _:
                raise UsageError(f"{where} has an invalid call: {_shown(value)}", f"expected {CALL}")
    return calls


def _shown(value: Any) -> str:
    return truncate(well_formed(repr(value)), SHOWN)


def wire_message(turn: Turn) -> JsonDict:
    """A turn as one of OpenAI's messages for servers: pictures before the text, arguments as JSON text."""
    message = turn.openai
    for call in message.get("tool_calls", ()):
        function = call["function"]
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    if isinstance(turn.value, Message) and turn.value.pictures:
        pictures = [{"type": "image_url", "image_url": {"url": picture.url}} for picture in turn.value.pictures]
        message["content"] = [*pictures, {"type": "text", "text": turn.content}]
    return message
