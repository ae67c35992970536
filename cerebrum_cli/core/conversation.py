"""Conversations as immutable values, and the parts of the prompts that formats make of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import well_formed

Role = Literal["user", "assistant"]
ROLES: tuple[Role, Role] = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn; `tokens` are those a reply was generated as, `thinks` is that of the conversation it answered.

    `reasoning` is what a reply marked as such; its content does not include it.
    """

    role: Role
    content: str
    tokens: tuple[int, ...] | None = None
    thinks: bool | None = None
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that alternate and start with the user; with `system_prompt=None` the format's default applies.

    `thinks`: whether the next reply is to begin with reasoning, `effort`: how much of it, `keeps_reasoning`: whether
    the prompt holds that of earlier replies. None leaves it to the format.
    """

    messages: tuple[Message, ...] = ()
    system_prompt: str | None = None
    thinks: bool | None = None
    effort: str | None = None
    keeps_reasoning: bool | None = None

    def user(self, content: str) -> Conversation:
        return replace(self, messages=(*self.messages, Message("user", content)))

    def assistant(
        self, content: str, tokens: tuple[int, ...] | None = None, reasoning: str | None = None
    ) -> Conversation:
        message = Message("assistant", content, tokens, self.thinks, reasoning)
        return replace(self, messages=(*self.messages, message))

    @property
    def openai_messages(self) -> list[dict[str, str]]:
        messages = []
        if self.system_prompt is not None:
            messages.append({"role": "system", "content": self.system_prompt})
        for message in self.messages:
            messages.append({"role": message.role, "content": message.content})
        return messages

    @property
    def question(self) -> str:
        return self.messages[-1].content

    def with_question(self, content: str) -> Conversation:
        return replace(self, messages=self.messages[:-1]).user(content)


def conversation_from_messages(items: Any, name: str, is_request: bool = True) -> Conversation:
    """Convert an OpenAI messages list; a request ends with a question. Raises UsageError with `name` as the source.

    Elsewhere, questions in a row are joined.
    """
    if not isinstance(items, list) or not items:
        raise UsageError(f"{name} has no messages", 'it must be a list like [{"role": "user", "content": "..."}]')
    turns = [_message(item, f"{name}: message {number}") for number, item in enumerate(items, 1)]
    system = None
    first = 1  # number of the first turn
    if turns[0].role == "system":
        system = turns.pop(0).content
        first = 2
    if not is_request:
        before = len(turns)
        turns = _joined(turns)
        first += before - len(turns)
    conversation = tuple(_checked(turns, name, first, is_request))
    if is_request and len(turns) % 2 == 0:
        raise UsageError(f"{name}: no question to answer", "the last message must have the role user")
    return Conversation(conversation, system)


def _checked(turns: list[_Turn], name: str, first: int, is_request: bool) -> Iterator[Message]:
    """Yield the turns, which must alternate, as messages; `first` is the number of the first one."""
    for number, turn in enumerate(turns):
        where = f"{name}: message {first + number}"
        role = ROLES[number % 2]
        if turn.role != role:
            raise UsageError(
                f"{where} has the role {turn.role}, expected {role}",
                "one system message may come first; then user and assistant alternate, starting with the user",
            )
        if is_request and role == "user" and not turn.content.strip():
            raise UsageError(f"{where} is empty", "a question must contain text")
        yield Message(role, turn.content, reasoning=turn.reasoning)


class _Turn(NamedTuple):
    role: str
    content: str
    reasoning: str | None = None


def _joined(turns: list[_Turn]) -> list[_Turn]:
    joined: list[_Turn] = []
    for turn in turns:
        if joined and turn.role == joined[-1].role == "user":
            joined[-1] = _Turn("user", f"{joined[-1].content}\n\n{turn.content}")
        else:
            joined.append(turn)
    return joined


def _message(item: Any, where: str) -> _Turn:
    role = item.get("role") if isinstance(item, dict) else None
    if role == "developer":
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise UsageError(f"{where} has the role {role!r}", "roles are system, user and assistant")
    content = _text_of(item.get("content"))
    if content is None:
        raise UsageError(f"{where} has no text content", "content must be a string, or a list of text parts")
    reasoning = item.get("reasoning_content")
    if role != "assistant" or not isinstance(reasoning, str) or not reasoning:
        return _Turn(role, well_formed(content))
    return _Turn(role, well_formed(content), well_formed(reasoning))


def _text_of(content: Any) -> str | None:
    """The text of a message, which may be in parts; None if it has other parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return None
        texts.append(part["text"])
    return "".join(texts)


@dataclass(frozen=True, slots=True)
class Text:
    """Text; special tokens are recognized only in trusted text, such as a format's own markup."""

    value: str
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids to use unchanged: a reply in the tokens it was generated as."""

    ids: tuple[int, ...]


PromptPart = Text | Tokens


def join_parts(parts: tuple[PromptPart, ...]) -> tuple[PromptPart, ...]:
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
