"""What every format offers: a conversation as the exact prompt a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.parts import Part


@dataclass(frozen=True, slots=True)
class ThoughtMarkup:
    """How a model marks its thought: `open` and `close` around it, `header` between it and the answer, if any."""

    open: str
    close: str
    header: str = ""


class PromptFormat(Protocol):
    """A way to write a conversation; `render` is pure."""

    @property
    def name(self) -> str:
        """What `--format` calls it."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a reply, beside the model's own end token."""

    @property
    def default_system(self) -> str | None:
        """The system prompt of a conversation that has none."""

    @property
    def thoughts(self) -> tuple[ThoughtMarkup, ...]:
        """The markup of thought a reply may begin with."""

    @property
    def verbatim(self) -> bool:
        """Whether a reply is kept with the white space around it."""

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """Return the prompt for the next reply, without BOS unless the format writes it itself."""
