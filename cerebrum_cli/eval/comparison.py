"""Comparison of two runs over the same questions: which is better, and whether that could be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import asin, atan, comb, log, pi, sin, sqrt
from statistics import NormalDist

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.eval.estimates import (
    CONFIDENCE,
    ROUNDING,
    Clusters,
    Interval,
    Z,
    cluster_quantile,
    degrees_of_freedom,
    mean,
    standard_error,
    wilson,
)
from cerebrum_cli.eval.questions import QuestionId
from cerebrum_cli.eval.report import Samples, mean_of, votes_of

Z_POWER = NormalDist().inv_cdf(0.8)  # a power of 80%
SEQUENCE_SCALE = 40  # questions
MIN_DISCORDANT = 6  # changes of one direction that an exact McNemar test needs: 2 / 2**6 < 0.05 < 2 / 2**5
MIN_CLUSTERS = 5  # of equal size: with fewer degrees of freedom than four, the level is not that of the interval


@frozen
class QuestionResult:
    """A question in one run: the share of its samples that are correct, and the majority vote of all.

    `form` is the normal form of the winning answer, None if no sample has one.
    """

    accuracy: float
    form: str | None
    correct: bool
    cluster: object


@frozen
class Comparison:
    """Run B compared with run A; `interval` is of the difference between their accuracies, B minus A.

    `sequential_interval` is wider: it holds at each look, however often growing runs are compared.

    The other figures are about majority answers: questions right in A and wrong in B and the reverse, the p value of
    McNemar's exact test on these, and the `flips`: all questions answered differently. `smallest_difference` is what
    these runs would have shown in 80% of cases; None if they are too small to show any. Where questions have clusters,
    `effective_clusters` is the number of equal ones with as many degrees of freedom, and there is no p value, since
    McNemar's test takes questions as independent; None if each question is its own cluster.
    """

    n: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: Interval
    sequential_interval: Interval
    right_to_wrong: int
    wrong_to_right: int
    p_value: float | None
    flips: int
    smallest_difference: float | None
    is_significant: bool
    effective_clusters: float | None = None


def question_results(questions: Mapping[QuestionId, Samples]) -> dict[QuestionId, QuestionResult]:
    found = {}
    for id, question in questions.items():
        votes = votes_of(question)
        leader = votes.vote.tally.winner
        form = leader.form if leader else None
        found[id] = QuestionResult(mean_of(question, "correct"), form, votes.correct[form], question[0].cluster_key)
    return found


def compare(a: Sequence[QuestionResult], b: Sequence[QuestionResult]) -> Comparison:
    """Compare two runs, given the results of the same questions in the same order.

    The difference is significant if its interval excludes 0 and there are enough questions, and clusters of them, to
    show a difference at all.
    McNemar's exact test may disagree where few answers changed: it finds fewer than 5% of equal runs different.
    """
    differences = [after.accuracy - before.accuracy for before, after in zip(a, b, strict=True)]
    right_to_wrong, wrong_to_right, flips = _changes(a, b)
    clusters = [outcome.cluster for outcome in a]
    interval = paired_interval(differences, clusters)
    units = len(set(clusters))
    independent = units == len(clusters)
    is_binary = all(outcome.accuracy in (0.0, 1.0) for outcome in (*a, *b))
    smallest = _smallest_difference_of(differences, clusters, is_binary)
    return Comparison(
        n=len(differences),
        accuracy_a=mean([outcome.accuracy for outcome in a]),
        accuracy_b=mean([outcome.accuracy for outcome in b]),
        difference=mean(differences),
        interval=interval,
        sequential_interval=paired_interval(differences, clusters, sequential_confidence(units)),
        right_to_wrong=right_to_wrong,
        wrong_to_right=wrong_to_right,
        p_value=mcnemar(right_to_wrong, wrong_to_right) if independent else None,
        flips=flips,
        smallest_difference=smallest,
        is_significant=smallest is not None and not interval.low <= 0 <= interval.high,
        effective_clusters=None if independent else degrees_of_freedom(clusters) + 1,
    )


def _changes(a: Sequence[QuestionResult], b: Sequence[QuestionResult]) -> tuple[int, int, int]:
    """Questions that went from right to wrong, from wrong to right, and all that were answered differently."""
    right_to_wrong = wrong_to_right = flips = 0
    for before, after in zip(a, b, strict=True):
        right_to_wrong += before.correct and not after.correct
        wrong_to_right += after.correct and not before.correct
        # Two spellings of a right answer are the same answer.
        flips += before.correct != after.correct or (not after.correct and before.form != after.form)
    return right_to_wrong, wrong_to_right, flips


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Two-sided p value of McNemar's exact test: how likely fair coins split as unevenly."""
    changes = right_to_wrong + wrong_to_right
    tail = sum(comb(changes, count) for count in range(min(right_to_wrong, wrong_to_right) + 1))
    return min(1.0, 2 * tail / (1 << changes))


def sequential_confidence(n: int) -> float:
    """Confidence of the interval at `n` questions, so that 95% of runs are inside theirs at every n.

    An asymptotic confidence sequence, narrowest at about 8 times SEQUENCE_SCALE questions (Waudby-Smith et al. 2021,
    arXiv:2103.06476).
    """
    ratio = n / SEQUENCE_SCALE
    return 2 * NormalDist().cdf(sqrt((1 + 1 / ratio) * log((1 + ratio) / (1 - CONFIDENCE) ** 2))) - 1


def paired_interval(differences: Sequence[float], clusters: Clusters, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the mean of paired differences, with the clusters' standard error and quantile.

    Even if the differences do not vary (all are zero, for example), the runs may differ on questions that were not
    asked. The interval then reaches to both sides as far as Wilson's upper bound for 0 of these questions or clusters.
    """
    units = len(set(clusters))
    center, error = mean(differences), standard_error(differences, clusters)
    reach = wilson(0.0, units).high
    if error >= ROUNDING:
        reach = cluster_quantile(clusters, confidence) * error
    return Interval(max(-1.0, center - reach), min(1.0, center + reach))


def smallest_difference(n: float, disagreement: float, quantile: float = Z) -> float | None:
    """The difference that `n` questions show in 80% of cases at a level of 5%; None if there are too few.

    `disagreement` is the mean square of the paired differences; between single samples, the share of questions on which
    the runs disagree. The difference d solves n d² = (quantile sqrt(disagreement) + z(0.8) sqrt(disagreement - d²))²,
    where the quantile is that of the test (Connor 1987, Biometrics 43, 207-211, with the normal one).
    """
    if n < MIN_DISCORDANT:
        return None
    sine = min(1.0, quantile / sqrt(n + Z_POWER**2))
    angle = atan(Z_POWER / sqrt(n)) + asin(sine)  # with d = sqrt(disagreement) sin(angle)
    return sqrt(disagreement) * sin(min(angle, pi / 2))


def _smallest_difference_of(differences: Sequence[float], clusters: Clusters, is_binary: bool) -> float | None:
    """Smallest difference given how much the questions differed, and how much less clusters tell than questions."""
    n: float = len(set(clusters))
    if degrees_of_freedom(clusters) + 1 < MIN_CLUSTERS:
        return None
    clustered = standard_error(differences, clusters)
    if clustered >= ROUNDING:
        independent = standard_error(differences, range(len(differences)))
        n = len(differences) * (independent / clustered) ** 2
    disagreement = mean([difference**2 for difference in differences])
    if is_binary or disagreement < ROUNDING:
        disagreement = max(disagreement, min(1.0, MIN_DISCORDANT / n))
    return smallest_difference(n, disagreement, cluster_quantile(clusters))


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
    least, clusters = comparison.smallest_difference, comparison.effective_clusters
    if least is None:
        few = "1 question is" if comparison.n == 1 else f"{comparison.n} questions are"
        if clusters:
            few = f"the clusters, equivalent to {clusters:.3g} of equal size, are"
        return f"no significant difference: {few} too few to detect any"
    found = f"{better} is {ahead} ahead {interval}"
    if abs(comparison.difference) < ROUNDING:
        found = "the accuracies are equal"
    return (
        f"no significant difference: {found}; with {comparison.n} questions,"
        f" a difference of about {_points(least)} percentage points would be detected in about 80% of cases"
    )


def _points(share: float) -> str:
    return f"{100 * share:z.1f}"
