"""What is asked: a conversation, settings, a grammar, and how many samples a vote takes."""

from __future__ import annotations

import re
from dataclasses import field, replace

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import Tools

MAX_VOTES = 256
SHARE_PLACES = 4  # decimals of the share of samples that have an answer
_VOTES = re.compile(r"(?P<least>\d{1,4})|auto(?::(?P<from>\d{1,4})\.\.(?P<to>\d{1,4}))?", re.ASCII)


@frozen
class Ask:
    """What is asked, whoever asks: a conversation, and how to sample `n` replies to it, or up to `max_n` in the end.

    `prefix_tokens` are the tokens of a reply to continue. With `ignore_eos`, neither the model's end-of-text token nor
    the format's stop strings end a reply. With `stream`, a server sends tokens as they are sampled, not the whole reply
    at the end. The reply may call the `tools`.
    """

    conversation: Conversation = field(default_factory=Conversation)
    settings: Settings = field(default_factory=Settings)
    grammar: Grammar | None = None
    n: int = 1
    prefix_tokens: TokenIds = ()
    ignore_eos: bool = False
    max_n: int = 1
    stream: bool = False
    tools: Tools = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "conversation", self.settings.applied_to(self.conversation, self.tools))


@frozen
class Votes:
    """How many samples to take, `minimum` and `maximum` may be equal; between them, until the outcome is likely.

    With `checks`, each sample also has a program, whose output is a vote, too. With `takes_all`, no sample is stopped
    because the outcome is certain.
    """

    minimum: int
    maximum: int
    checks: bool = False
    takes_all: bool = False

    def __str__(self) -> str:
        samples = f"{self.minimum}..{self.maximum}" if self.minimum < self.maximum else f"{self.minimum}"
        return f"{samples}, checked by programs" if self.checks else samples


AUTO = Votes(3, 16)
ASK_FOR_ANSWER = 'end the question with "Finish with: The answer is ...", or use --schema'  # without a final answer


def parse_votes(text: str, check: str | None = None) -> Votes:
    """Parse "8", "auto" or "auto:3..16"; programs in the language `check` vote, too. Raises UsageError."""
    if check not in (None, "python"):
        raise UsageError.invalid("--check", check, "python")
    if match := _VOTES.fullmatch(text):
        least, most = match["least"] or match["from"], match["least"] or match["to"]
        votes = Votes(int(least), int(most)) if least and most else AUTO
        if 1 <= votes.minimum <= votes.maximum <= MAX_VOTES:
            return replace(votes, checks=check is not None)
    bounds = f"auto:{AUTO.minimum}..{AUTO.maximum}"
    raise UsageError.invalid("--votes", text, f"a number from 1 to {MAX_VOTES}, auto, or auto with bounds: {bounds}")
