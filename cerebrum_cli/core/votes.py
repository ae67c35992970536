"""How many samples a vote takes, and what an answer needs to win."""

from __future__ import annotations

import re
from dataclasses import replace

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen

MAX_VOTES = 256
SHARE_PLACES = 4  # decimals of the share of samples that have an answer
_VOTES = re.compile(r"(?P<least>\d{1,4})|auto(?::(?P<from>\d{1,4})\.\.(?P<to>\d{1,4}))?", re.ASCII)


@frozen
class Votes:
    """How many samples to take, `minimum` and `maximum` may be equal; between them, until the outcome is likely.

    An answer wins with at least `needed` samples. With `checks`, each sample also has a program, and at least
    `needed_checked` programs must come to the winning answer, and a reply.
    """

    minimum: int
    maximum: int
    needed: int = 1
    checks: bool = False
    needed_checked: int = 0

    def __str__(self) -> str:
        parts = [f"{self.minimum}..{self.maximum}"]
        if self.needed > 1:
            parts.append(f"{self.needed} to win")
        if self.checks:
            parts.append("checked by programs")
        if self.needed_checked:
            parts.append(f"{self.needed_checked} checked")
        return ", ".join(parts)

    def needing(self, votes: int | None) -> Votes:
        """The same samples, with the votes that the winner needs. Raises UsageError if that is more than all."""
        if votes is not None and not 1 <= votes <= self.maximum:
            raise UsageError.invalid("--min-votes", votes, f"from 1 to {self.maximum}, the number of samples")
        return replace(self, needed=votes or 1)

    def checked_by(self, language: str | None, needed: int = 0) -> Votes:
        """The same samples, checked by programs in a language if one is given. Raises UsageError."""
        if language not in (None, "python"):
            raise UsageError.invalid("--check", language, "python")
        if needed and not language:
            raise UsageError("min_checked needs --check python", "add --check python")
        if needed > self.maximum:
            raise UsageError.invalid("--set min_checked", needed, f"from 0 to {self.maximum}, the number of samples")
        return replace(self, checks=language is not None, needed_checked=needed)


AUTO = Votes(3, 16)
ASK_FOR_ANSWER = 'end the question with "Finish with: The answer is ...", or use --schema'  # without a final answer


def parse_votes(text: str) -> Votes:
    """Parse "8", "auto" or "auto:3..16". Raises UsageError."""
    if match := _VOTES.fullmatch(text):
        least, most = match["least"] or match["from"], match["least"] or match["to"]
        votes = Votes(int(least), int(most)) if least and most else AUTO
        if 1 <= votes.minimum <= votes.maximum <= MAX_VOTES:
            return votes
    bounds = f"auto:{AUTO.minimum}..{AUTO.maximum}"
    raise UsageError.invalid("--votes", text, f"a number from 1 to {MAX_VOTES}, auto, or auto with bounds: {bounds}")
