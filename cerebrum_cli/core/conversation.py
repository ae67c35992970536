"""Conversations as immutable values, and the parts of the prompts that formats make of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Round, ToolCall, ToolSpecs

Role = Literal["user", "assistant"]
ROLES = ("system", "user", "assistant")  # of OpenAI's messages; `developer` is another name of `system`
TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "refusal")
REASONING_PARTS = ("thinking", "reasoning", "redacted_thinking")
TEXT_KEYS = ("text", "content", "refusal", "value")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@frozen
class Message:
    """One turn; `tokens` are those a reply was generated as, `thinks` is that of the conversation it answered.

    `reasoning` is what a reply marked as such; its content does not include it. `rounds` are the parts of a reply that
    called functions; its other fields are of what follows them.
    """

    role: Role
    content: str
    tokens: TokenIds | None = None
    thinks: bool | None = None
    reasoning: str | None = None
    rounds: tuple[Round, ...] = ()


class Turn(NamedTuple):
    """What was said in a role, and the value that it is from; `thinks` as in a Message.

    `number` counts the calls of functions; that of a Round is the number of calls before it.
    """

    role: str
    content: str
    said: Message | Round | ToolCall | None = None
    thinks: bool | None = None
    number: int = 0

    @property
    def openai(self) -> JsonDict:
        """The turn as one of OpenAI's messages, except that arguments are an object, not text."""
        message: JsonDict = {"role": self.role, "content": self.content}
        match self.said:
            case Round(calls):
                message["tool_calls"] = [
                    {"id": call_id(number), "type": "function", "function": _function(call)}
                    for number, call in enumerate(calls, self.number + 1)
                ]
            case ToolCall(name):
                message |= {"name": name, "tool_call_id": call_id(self.number)}
        return message


def call_id(number: int) -> str:
    """The id of a call: nine letters and digits, as Mistral's templates require."""
    return f"call{number:05}"


def _function(call: ToolCall) -> JsonDict:
    return {"name": call.name, "arguments": call.arguments}


@frozen
class Conversation:
    """Turns that alternate and start with the user; with `system_prompt=None` the format's default applies.

    `thinks`: whether the next reply is to begin with reasoning, `effort`: how much of it, `keeps_reasoning`: whether
    the prompt holds that of earlier replies. None leaves it to the format. `prefill` begins the next reply, which may
    call the `tools`.
    """

    messages: tuple[Message, ...] = ()
    system_prompt: str | None = None
    thinks: bool | None = None
    effort: str | None = None
    keeps_reasoning: bool | None = None
    prefill: Message | None = None
    tools: ToolSpecs = ()

    def user(self, content: str) -> Conversation:
        return self.add(Message("user", content))

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
    def turns(self) -> list[Turn]:
        """All that was said, in order, with the calls of each reply and their results."""
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
        return replace(self, messages=(*self.messages[:-1], Message("user", content)))


def conversation_from_messages(items: Any, name: str, is_request: bool = True) -> Conversation:
    """Convert an OpenAI messages list. Raises UsageError with `name` as the source.

    A request ends with a question, or with the beginning of the reply to it. Messages in a row are joined if their role
    is the same; system messages that are not the first become part of the question. Those without content are ignored.
    """
    numbered = enumerate(items if isinstance(items, list) else [], 1)
    turns = [turn for number, item in numbered if (turn := _turn(item, f"{name}: message {number}"))]
    if not turns:
        raise UsageError(f"{name} has no messages", 'it must be a list like [{"role": "user", "content": "..."}]')
    turns = _joined(turns)
    system = turns.pop(0).content if turns[0].role == "system" else None
    if turns and turns[0].role == "assistant":
        raise UsageError(f"{turns[0].where} has the role assistant, expected user", "a question must come first")
    messages = [Message(turn.role, turn.content, reasoning=turn.reasoning or None) for turn in turns]
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
    if last.content.strip() or last.reasoning:
        prefill = last
    return replace(conversation, messages=tuple(before), prefill=prefill)


class _Turn(NamedTuple):
    where: str
    role: Any
    content: str
    reasoning: str


def _joined(turns: list[_Turn]) -> list[_Turn]:
    first, *others = turns
    joined = [first]
    for turn in others:
        last = joined[-1]
        role = "user" if turn.role == "system" and last.role != "system" else turn.role
        if last.role == role:
            content = _paragraphs(last.content, turn.content)
            joined[-1] = last._replace(content=content, reasoning=_paragraphs(last.reasoning, turn.reasoning))
        else:
            joined.append(turn._replace(role=role))
    return joined


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _turn(item: Any, where: str) -> _Turn | None:
    """A message as a turn; None if it has neither content nor reasoning."""
    role = item.get("role") if isinstance(item, dict) else None
    if role == "developer":
        role = "system"
    if role not in ROLES:
        raise UsageError(f"{where} has the role {role!r}", "roles are system, user and assistant")
    for key in filter(item.get, ("tool_calls", "function_call")):
        raise UsageError(f"{where} calls a tool", f"tools are not supported: remove `{key}`")
    content = _text_of(item)
    if content is None:
        raise UsageError(f"{where} has no text content", "content must be a string, or a list of text parts")
    reasoning = next(filter(None, map(item.get, REASONING_KEYS)), None)
    if role != "assistant" or not isinstance(reasoning, str):
        reasoning = ""
    if item.get("content") is None and not content and not reasoning:
        return None
    return _Turn(where, role, well_formed(content), well_formed(reasoning))


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


def join_parts(parts: PromptParts) -> PromptParts:
    out: list[PromptPart] = []
    for part in parts:
        if part in (Tokens(()), Text(""), Text("", trusted=True)):
            continue
        last = out[-1] if out else None
        if isinstance(part, Text) and isinstance(last, Text) and part.trusted == last.trusted:
            out[-1] = Text(last.value + part.value, last.trusted)
        else:
            out.append(part)
    return tuple(out)
