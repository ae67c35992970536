"""Count the votes of several chains of thought: who leads, whether more chains can change that, how many to run.

Self-consistency is from Wang et al. 2022 (arXiv:2203.11171); stopping early from Aggarwal et al. 2023, "Let's Sample
Step by Step: Adaptive-Consistency" (arXiv:2305.11860).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import comb, fsum

from cerebrum_cli.core.errors import UsageError

MAX_VOTES = 256
CONFIDENCE = (9, 10)  # three chains of one mind reach it, two do not

_VOTES = re.compile(r"(?P<least>\d{1,4})|auto(?::(?P<from>\d{1,4})\.\.(?P<to>\d{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Votes:
    """How many chains to sample: as many as it takes from `least` to `most`, which may be the same."""

    minimum: int
    maximum: int

    @property
    def is_adaptive(self) -> bool:
        """Whether sampling may stop once the outcome is likely, and not only once it is certain."""
        return self.minimum < self.maximum


AUTO = Votes(3, 16)


def parse_votes(text: str) -> Votes:
    """Return what "8", "auto" or "auto:3..16" asks for; UsageError if it asks for nothing of the kind."""
    if match := _VOTES.fullmatch(text):
        least, most = match["least"] or match["from"], match["least"] or match["to"]
        votes = Votes(int(least), int(most)) if least and most else AUTO
        if 1 <= votes.minimum <= votes.maximum <= MAX_VOTES:
            return votes
    raise UsageError(
        f"--votes is {text!r}",
        f"it must be a number of chains from 1 to {MAX_VOTES}, `auto`, or `auto` with bounds:"
        f" auto:{AUTO.minimum}..{AUTO.maximum}",
    )


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """One finished chain: its final answer as the model wrote it, the form that is counted, and its probability.

    `probability` is the exponential of the mean log probability of its tokens, from 0 to 1: normalised by length, as
    in the paper's weighted sums.
    """

    sample: int
    answer: str | None
    form: str | None
    probability: float


@dataclass(frozen=True, slots=True)
class Count:
    """One candidate: the answer as most of its chains wrote it, how many they are, the sum of their probabilities."""

    answer: str
    count: int
    probability_sum: float
    form: str


@dataclass(frozen=True, slots=True)
class Tally:
    """The chains cast so far, in the order of their samples: the outcome does not depend on who finishes first."""

    votes: Votes
    answers: tuple[SampleAnswer, ...] = ()

    def add(self, sample: int, answer: str | None, probability: float) -> Tally:
        """Return this ballot with one more finished chain; ValueError if that sample has been cast."""
        from cerebrum_cli.answers.canonical import canonical  # its patterns take 50 ms to compile

        if any(chain.sample == sample for chain in self.answers):
            raise ValueError(f"sample {sample} has been cast")
        form = None if answer is None else canonical(answer)
        chains = (*self.answers, SampleAnswer(sample, answer, form, probability))
        return replace(self, answers=tuple(sorted(chains, key=lambda chain: chain.sample)))

    @property
    def total(self) -> int:
        """How many chains have been cast, those without an answer included."""
        return len(self.answers)

    @property
    def counts(self) -> tuple[Count, ...]:
        """The candidates, best first: by chains, then by the sum of their probabilities, then by the first sample."""
        groups: dict[str, list[SampleAnswer]] = {}
        for chain in self.answers:
            if chain.form is not None:
                groups.setdefault(chain.form, []).append(chain)
        counts = [_count(form, chains) for form, chains in groups.items()]
        return tuple(sorted(counts, key=lambda count: (-count.count, -count.probability_sum)))  # stable

    @property
    def winner(self) -> Count | None:
        """The best candidate; None while no chain has an answer."""
        return next(iter(self.counts), None)

    @property
    def winning_sample(self) -> int | None:
        """The sample to show: the most probable chain of the winning answer."""
        winner = self.winner
        own = [chain for chain in self.answers if winner and chain.form == winner.form]
        return max(own, key=lambda chain: chain.probability).sample if own else None  # the first of equals

    @property
    def agreement(self) -> float:
        """The winner's share of all chains cast."""
        return self.winner.count / self.total if self.winner else 0.0

    @property
    def is_decided(self) -> bool:
        """Whether the answer stands: no chain can change it, or, where `votes` is adaptive, none is likely to."""
        return self._is_decided_with(0)

    def samples_to_start(self, running: int) -> int:
        """Return how many chains to start beside those cast and running.

        A fixed number is wanted at once. An adaptive one wants `least`, and then as few as could decide it.
        """
        if self.is_decided:
            return 0
        if self.total < self.votes.minimum:
            return max(0, self.votes.minimum - self.total - running)
        out = self.votes.maximum - self.total
        enough = next(more for more in range(1, out + 1) if self._is_decided_with(more))
        return max(0, enough - running)

    def _is_decided_with(self, more: int) -> bool:
        """Tell whether the answer would stand if `more` chains came to the leader's answer."""
        cast = self.total + more
        first, second = (*(count.count for count in self.counts[:2]), 0, 0)[:2]
        leader = first + more
        if cast >= self.votes.maximum or leader > second + self.votes.maximum - cast:
            return True
        return self.votes.is_adaptive and cast >= self.votes.minimum and is_lead_certain(leader, second)


def is_lead_certain(leader: int, runner_up: int) -> bool:
    """Tell whether the leader is the likelier of the two best answers with a probability of at least 9/10.

    That is the Beta posterior of Adaptive-Consistency, I_1/2(runner_up + 1, leader + 1), which for whole numbers is the
    chance that so many tosses of a coin and one show more than `runner_up` heads.
    """
    tosses = leader + runner_up + 1
    unlikely = sum(comb(tosses, heads) for heads in range(runner_up + 1))
    over, under = CONFIDENCE
    return ((1 << tosses) - unlikely) * under >= over << tosses


def _count(form: str, chains: list[SampleAnswer]) -> Count:
    """Return the count of the chains that share a form; of two ways to write it equally often the first is shown."""
    written: dict[str, int] = {}
    for chain in chains:
        written[chain.answer or ""] = written.get(chain.answer or "", 0) + 1
    answer = max(written, key=lambda answer: written[answer])
    return Count(answer, len(chains), fsum(chain.probability for chain in chains), form)
