"""A decision: the probability of each of several given answers."""

from __future__ import annotations

from math import fsum

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts

PLACES = 6  # decimals of a probability in a result
PROBABILITY_OF = "probability of "  # how the key of a choice's probability begins there


@frozen
class Decision:
    """The probabilities of all choices, in the order in which they were given; they add up to 1.

    `named` is the share of replies that begin with a choice at all, and `method` says how it was found. `first_word` is
    the choice that is likeliest after the question as it was written, and empty with votes. The names of a score are
    whole numbers.
    """

    names: Texts
    probabilities: tuple[float, ...]
    named: float
    method: str
    is_score: bool = False
    first_word: str = ""

    @property
    def answer(self) -> str:
        """The likeliest choice; of several, the first."""
        return self.names[self.probabilities.index(self.probability)]

    @property
    def probability(self) -> float:
        return max(self.probabilities)

    @property
    def mean(self) -> float | None:
        """The mean of a score, weighted by probability; None for other choices."""
        if not self.is_score:
            return None
        return fsum(int(name) * share for name, share in zip(self.names, self.probabilities, strict=True))
