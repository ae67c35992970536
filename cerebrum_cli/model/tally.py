"""Count majority votes: which answer leads, whether more samples can change that, how many to run.

Self-consistency is from Wang et al. 2022 (arXiv:2203.11171); stopping early from Aggarwal et al. 2023, "Let's Sample
Step by Step: Adaptive-Consistency" (arXiv:2305.11860). Of samples that were checked by a program, only those count
whose program comes to their answer, if there are any; so does PROVE (arXiv:2410.12608).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import comb, fsum
from typing import NamedTuple

from cerebrum_cli.core.errors import UsageError

MAX_VOTES = 256

_VOTES = re.compile(r"(?P<least>\d{1,4})|auto(?::(?P<from>\d{1,4})\.\.(?P<to>\d{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Votes:
    """How many samples to take, `minimum` and `maximum` may be equal; between them, until the outcome is likely.

    An answer wins with at least `needed` samples. With `checks`, each sample is checked by a program, and at least
    `needed_checked` programs must come to the winning answer.
    """

    minimum: int
    maximum: int
    needed: int = 1
    checks: bool = False
    needed_checked: int = 0

    def __str__(self) -> str:
        needed = f", {self.needed} to win" if self.needed > 1 else ""
        checked = f", {self.needed_checked} checked" if self.needed_checked else ""
        return f"{self.minimum}..{self.maximum}{needed}" + (f", checked by programs{checked}" if self.checks else "")

    def needing(self, votes: int | None) -> Votes:
        """The same samples, with the votes that the winner needs. Raises UsageError if that is more than all."""
        if votes is not None and not 1 <= votes <= self.maximum:
            raise UsageError.invalid("--min-votes", votes, f"from 1 to {self.maximum}, the number of samples")
        return replace(self, needed=votes or 1)

    def checked_by(self, language: str | None, needed: int | None = None) -> Votes:
        """The same samples, checked by programs in a language if one is given. Raises UsageError."""
        if language not in (None, "python"):
            raise UsageError.invalid("--check", language, "python")
        if needed is not None and not (language and 0 <= needed <= self.maximum):
            raise UsageError.invalid(
                "--set min_checked", needed, f"from 0 to {self.maximum} samples, with --check python"
            )
        return replace(self, checks=language is not None, needed_checked=needed or 0)


AUTO = Votes(3, 16)


def parse_votes(text: str) -> Votes:
    """Parse "8", "auto" or "auto:3..16". Raises UsageError."""
    if match := _VOTES.fullmatch(text):
        least, most = match["least"] or match["from"], match["least"] or match["to"]
        votes = Votes(int(least), int(most)) if least and most else AUTO
        if 1 <= votes.minimum <= votes.maximum <= MAX_VOTES:
            return votes
    bounds = f"auto:{AUTO.minimum}..{AUTO.maximum}"
    raise UsageError.invalid("--votes", text, f"a number from 1 to {MAX_VOTES}, auto, or auto with bounds: {bounds}")


class Program(NamedTuple):
    """A program that computes an answer, and the last line that it printed; `output` is None if it failed."""

    code: str
    output: str | None


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """A finished sample: its final answer as the model wrote it, and its normal form.

    `probability` is the exponential of the mean log probability of its tokens, 0 until a tie needs it. If it
    `is_checked`, its program comes to the same answer.
    """

    answer: str | None
    form: str | None
    probability: float
    is_stated: bool
    is_checked: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """One candidate as most of its samples wrote it, and their number; `probability_sum` is 0 of a single sample."""

    answer: str
    count: int
    probability_sum: float
    form: str
    stated: int = 0


@dataclass(frozen=True, slots=True)
class Tally:
    """Answers of the first samples, in their order: the outcome does not depend on which finishes first."""

    votes: Votes
    answers: tuple[SampleAnswer, ...] = ()

    def add(
        self,
        answer: str | None,
        probability: float = 0.0,
        is_stated: bool = False,
        program: Program | None = None,
    ) -> Tally:
        from cerebrum_cli.answers.canonical import canonical  # its patterns take 50 ms to compile

        form = None if answer is None else canonical(answer)
        is_checked = program is not None and answer is not None and comes_to(program, answer)
        sample = SampleAnswer(answer, form, probability, is_stated, is_checked)
        return replace(self, answers=(*self.answers, sample))

    def with_probabilities(self, probabilities: Mapping[int, float]) -> Tally:
        answers = (
            replace(answer, probability=probabilities.get(at, answer.probability))
            for at, answer in enumerate(self.answers)
        )
        return replace(self, answers=tuple(answers))

    @property
    def samples(self) -> int:
        return len(self.answers)

    @property
    def is_checked(self) -> bool:
        """Whether any sample is: then only those count."""
        return any(answer.is_checked for answer in self.answers)

    @property
    def counted(self) -> tuple[SampleAnswer | None, ...]:
        """The samples, with None in place of those that do not count."""
        counts_all = not self.is_checked
        return tuple(answer if counts_all or answer.is_checked else None for answer in self.answers)

    @property
    def counts(self) -> tuple[Count, ...]:
        """Candidates, best first: by samples, by those that state it, if several by probability, then by the first."""
        groups: dict[str, list[SampleAnswer]] = {}
        for answer in filter(None, self.counted):
            if answer.form is not None:
                groups.setdefault(answer.form, []).append(answer)
        counts = []
        for form, group in groups.items():
            # Of two spellings that are equally frequent, the first is shown.
            [(spelling, _)] = Counter(answer.answer or "" for answer in group).most_common(1)
            probability = fsum(answer.probability for answer in group) if len(group) > 1 else 0.0
            counts.append(Count(spelling, len(group), probability, form, sum(answer.is_stated for answer in group)))
        return tuple(sorted(counts, key=lambda count: (count.count, count.stated, count.probability_sum), reverse=True))

    @property
    def leader(self) -> Count | None:
        return next(iter(self.counts), None)

    @property
    def winner(self) -> Count | None:
        leader, votes = self.leader, self.votes
        needed = max(votes.needed, votes.needed_checked)
        return leader if leader and leader.count >= needed and (self.is_checked or not votes.needed_checked) else None

    @property
    def tied(self) -> tuple[Count, ...]:
        """The answers with the most samples, as often stated, if those are several, else none."""
        counts = self.counts
        leading = tuple(count for count in counts if (count.count, count.stated) == (counts[0].count, counts[0].stated))
        return leading if len(leading) > 1 else ()

    @property
    def tied_samples(self) -> list[int]:
        """The samples of the leading answers if several have the most samples, and at least two; none otherwise."""
        forms = [count.form for count in self.tied if count.count > 1]
        return [sample for sample, answer in enumerate(self.counted) if answer and answer.form in forms]

    @property
    def winning_sample(self) -> int | None:
        """Sample to show: the first one with the leading answer."""
        forms = [answer and answer.form for answer in self.counted]
        return forms.index(self.leader.form) if self.leader else None

    @property
    def agreement(self) -> float:
        return self.winner.count / self.samples if self.winner else 0.0

    @property
    def is_decided(self) -> bool:
        """Whether the outcome is certain, or, if `votes` is adaptive, likely enough."""
        return self._is_decided_with(0)

    @property
    def missing_samples(self) -> int:
        """Samples to start if none is running: all, or, if `votes` is adaptive, the minimum, then as few as may do."""
        if self.is_decided:
            return 0
        if self.samples < self.votes.minimum:
            return self.votes.minimum - self.samples
        return next(more for more in range(1, self.votes.maximum + 1) if self._is_decided_with(more))

    def _is_decided_with(self, more: int) -> bool:
        counted = self.samples + more
        is_open = self.votes.checks and not self.is_checked  # one that is checked will outvote all that are not
        first, second = (*(count.count for count in self.counts[:2] if not is_open), 0, 0)[:2]
        leader = first + more
        left = self.votes.maximum - counted
        if left <= 0 or (leader + left < self.votes.needed and not is_open):
            return True
        if leader < max(self.votes.needed, self.votes.needed_checked):
            return False
        if leader > second + left:
            return True
        is_adaptive = self.votes.minimum < self.votes.maximum  # a likely outcome is enough, it need not be certain
        return is_adaptive and counted >= self.votes.minimum and is_lead_certain(leader, second)


def comes_to(program: Program, answer: str) -> bool:
    """Whether a program printed an answer, which may be rounded to some decimals, up to the error of its arithmetic."""
    from cerebrum_cli.answers.canonical import canonical

    form, output = canonical(answer), canonical(program.output or "")
    try:
        value, computed = Fraction(form), Fraction(output)
    except (ValueError, ZeroDivisionError):
        return form == output
    decimals = re.search(r"\.(\d+)", answer)
    precision = Fraction(1, 2 * 10 ** len(decimals[1])) if decimals else abs(value) / 10**9
    return abs(value - computed) <= precision


def is_lead_certain(leader: int, runner_up: int) -> bool:
    """Whether the leader is the likelier of the two best answers with a probability of at least 9/10.

    The Beta posterior of Adaptive-Consistency, I_1/2(runner_up + 1, leader + 1), by tosses of a coin.
    """
    tosses = leader + runner_up + 1
    unlikely = sum(comb(tosses, heads) for heads in range(runner_up + 1))
    return 10 * ((1 << tosses) - unlikely) >= 9 << tosses  # three equal answers are enough, two are not
