"""The interface of prompt formats: a conversation as the exact prompt the model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cerebrum_cli.core.conversation import Conversation, PromptPart

LINE_BREAK = "\n"
BLANK_LINE = "\n\n"


@dataclass(frozen=True, slots=True)
class ThoughtMarkup:
    """The markup of a model's reasoning: `open` before it, `close` after it, `header` before the answer, if any.

    With `own_lines`, the reasoning is on lines of its own, and a blank line precedes the answer. `final` is the header
    behind this reasoning, where that is another one.
    """

    open: str
    close: str
    header: str = ""
    own_lines: bool = False
    final: str = ""

    def ending(self, text: str = "") -> str:
        """What ends the reasoning behind a text, which may include `open`, and begins the answer."""
        if not self.own_lines:
            return self.close + (self.final or self.header)
        body = text.rstrip(LINE_BREAK)
        breaks = 2 if body.endswith(self.open) else 1  # no reasoning leaves a blank line
        return LINE_BREAK * max(0, breaks - len(text) + len(body)) + self.close + BLANK_LINE


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
    def marks_thought(self) -> bool:
        """Whether the format itself has reasoning markup."""

    @property
    def has_switch(self) -> bool:
        """Whether a prompt turns reasoning on and off."""

    @property
    def verbatim(self) -> bool:
        """Whether replies are passed on unchanged, with surrounding white space and reasoning markup."""

    def render(self, conversation: Conversation) -> tuple[PromptPart, ...]:
        """Render the prompt of the next reply, without BOS unless the format itself writes it."""
