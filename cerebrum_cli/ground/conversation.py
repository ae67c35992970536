"""What was said so far: frozen values, where every change returns a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of one speaker; `tokens` are the ids a reply was sampled as, where they are known."""

    role: Role
    content: str
    tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that alternate and begin with the user; `system_prompt=None` means the format's own default."""

    messages: tuple[Message, ...] = ()
    system_prompt: str | None = None

    def user(self, content: str) -> Conversation:
        """Return this conversation with one more question."""
        return replace(self, messages=(*self.messages, Message("user", content)))

    def assistant(self, content: str, tokens: tuple[int, ...] | None = None) -> Conversation:
        """Return this conversation with one more reply."""
        return replace(self, messages=(*self.messages, Message("assistant", content, tokens)))


def text_of(content: Any) -> str | None:
    """Return the text of a message as OpenAI has it, a string or a list of text parts; None for anything else."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part["text"] for part in content if _is_text_part(part)]
    return "".join(texts) if len(texts) == len(content) else None


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
