"""What was said so far: frozen values, where every change returns a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

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
