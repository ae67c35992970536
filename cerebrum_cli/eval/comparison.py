"""Comparison of two runs over the same questions: which is better, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Sequence

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.eval.answered import Answered
from cerebrum_cli.eval.estimates import Interval, mcnemar, mean, paired_interval
from cerebrum_cli.eval.report import VoteResult, vote_results

LEVEL = 0.05


@frozen
class Changes:
    """Questions right in run A and wrong in run B and the reverse, and the p value of McNemar's exact test on these.

    `flips` are all questions that are answered differently.
    """

    right_to_wrong: int
    wrong_to_right: int
    p_value: float
    flips: int


@frozen
class Comparison:
    """Run B compared with run A; `interval` is of the difference between their accuracies, B minus A.

    `changes` are those of single answers, or of the votes of all samples; None for several samples without votes.
    """

    n: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: Interval
    changes: Changes | None
    is_significant: bool


def compare(a: Sequence[Answered], b: Sequence[Answered], votes: bool = True) -> Comparison:
    """Compare two runs, given their rows of the same questions in the same order. Programs are not put to `votes`.

    The difference is significant if its interval excludes 0, and of single samples, if the p value is below LEVEL, too.
    """
    differences = [after.accuracy - before.accuracy for before, after in zip(a, b, strict=True)]
    interval = paired_interval(differences)
    are_single = all(len(row.verdicts) == 1 for row in (*a, *b))
    changes = changes_of(a, b) if votes or are_single else None
    is_likely_chance = are_single and changes is not None and changes.p_value >= LEVEL
    return Comparison(
        n=len(differences),
        accuracy_a=mean([row.accuracy for row in a]),
        accuracy_b=mean([row.accuracy for row in b]),
        difference=mean(differences),
        interval=interval,
        changes=changes,
        is_significant=not interval.low <= 0 <= interval.high and not is_likely_chance,
    )


def changes_of(a: Sequence[Answered], b: Sequence[Answered]) -> Changes:
    pairs = list(zip(map(vote_of, a), map(vote_of, b), strict=True))
    right_to_wrong = sum(before.is_correct and not after.is_correct for before, after in pairs)
    wrong_to_right = sum(after.is_correct and not before.is_correct for before, after in pairs)
    flips = sum(is_flip(before, after) for before, after in pairs)
    return Changes(right_to_wrong, wrong_to_right, mcnemar(right_to_wrong, wrong_to_right), flips)


def vote_of(row: Answered) -> VoteResult:
    return vote_results(row)[len(row.verdicts)]


def is_flip(before: VoteResult, after: VoteResult) -> bool:
    """Whether answers differ; two spellings of a right answer are the same answer."""
    if before.is_correct != after.is_correct:
        return True
    return not after.is_correct and before.form != after.form


def conclusion(comparison: Comparison, a: str, b: str) -> str:
    better, worse = b, a
    low, high = comparison.interval
    if comparison.difference < 0:
        better, worse = a, b
        low, high = -high, -low
    ahead = f"{_points(abs(comparison.difference))} percentage points"
    interval = f"(95% interval: {_points(low)} to {_points(high)})"
    if comparison.is_significant:
        return f"{better} is {ahead} more accurate than {worse} {interval}; the difference is statistically significant"
    if comparison.difference:
        return f"no significant difference: {better} is {ahead} ahead {interval}"
    return f"no significant difference: the accuracies are equal {interval}"


def _points(share: float) -> str:
    return f"{100 * share:z.1f}"
