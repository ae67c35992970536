"""The interface of prompt formats: a conversation as the exact prompt the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.parts import Part


@dataclass(frozen=True, slots=True)
class ThoughtMarkup:
    """The markup of a model's reasoning: `open` before it, `close` after it, `header` before the answer, if any."""

    open: str
    close: str
    header: str = ""


class PromptFormat(Protocol):
    @property
    def name(self) -> str:
        """The value of `--format`."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings, in addition to the model's end-of-text token."""

    @property
    def default_system(self) -> str | None:
        """The system prompt of a conversation that has none."""

    @property
    def thoughts(self) -> tuple[ThoughtMarkup, ...]:
        """The reasoning markup a reply may start with."""

    @property
    def verbatim(self) -> bool:
        """Whether replies are passed on unchanged, with surrounding white space and reasoning markup."""

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """Render the prompt of the next reply, without BOS unless the format itself writes it."""
