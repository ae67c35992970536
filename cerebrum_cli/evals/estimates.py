"""Estimates from marked samples: mean scores with their standard error and interval, majority votes, pass@k.

Standard errors are those of Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640): the scores of a question's
samples are averaged first, so the questions are what varies, or clusters of them. Intervals are at 95%.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, fsum, sqrt
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
MAX_SUBSETS = 1000  # of a question's samples, in a majority vote
SEED = 18
ROUNDING = 1e-12  # a smaller standard error is rounding: one sample of 256 in 100,000 questions makes 4e-8
BLOCK = 2**22  # numbers in the largest array

Clusters = Sequence[object] | None
"""Cluster of each score; scores of one cluster are not independent. None: each is."""


class Interval(NamedTuple):
    """Bounds of a 95% confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions, with its interval."""

    value: float
    interval: Interval


class Totals(NamedTuple):
    """The sum of the scores of a cluster, and their number."""

    sum: float
    size: float


class Vote(NamedTuple):
    """A sample in a majority vote; `form` is the normal form of its answer, None if it has no answer.

    Samples of one form should all be correct or all wrong; if they are not, the first of them decides.
    """

    form: str | None
    correct: bool
    probability: float


def mean(scores: Sequence[float]) -> float:
    """Mean of scores, of which there must be one or more."""
    return fsum(scores) / len(scores)


def standard_error(scores: Sequence[float], clusters: Clusters = None) -> float:
    """Standard error of the mean of scores; 0 for a single score or cluster, whose spread is unknown.

    With C clusters it is sqrt(C / (C - 1) * sum of squares of the clusters' summed deviations) / n. If each score is
    its own cluster, this is the usual standard deviation over sqrt(n).
    """
    return _error(mean(scores), count_totals(scores, clusters))


def count_totals(scores: Sequence[float], clusters: Clusters = None) -> Counter[Totals]:
    """The totals of the clusters, and how many clusters have the same."""
    if clusters is None:
        return Counter(Totals(score, 1) for score in scores)
    members: dict[object, list[float]] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        members.setdefault(cluster, []).append(score)
    return Counter(Totals(fsum(each), len(each)) for each in members.values())


def _error(center: float, totals: Counter[Totals]) -> float:
    """Standard error of the mean `center`."""
    count = totals.total()
    if count == 1:
        return 0.0
    squares = fsum(times * (each.sum - each.size * center) ** 2 for each, times in totals.items())
    return sqrt(count / (count - 1) * squares) / _size(totals)


def _size(totals: Counter[Totals]) -> float:
    """Number of scores."""
    return sum(times * each.size for each, times in totals.items())


def wilson(value: float, n: float) -> Interval:
    """Wilson's score interval of a share among `n`; [0, 1] if `n` is 0."""
    square = Z**2
    reach = Z * sqrt(max(0.0, n * value * (1 - value)) + square / 4)
    # Rounding must not push a bound past the share, nor past 0 and 1, which are exact for none and all.
    low = min(value, (n * value + square / 2 - reach) / (n + square)) if value > 0 else 0.0
    high = max(value, (n * value + square / 2 + reach) / (n + square)) if value < 1 else 1.0
    return Interval(max(0.0, low), min(1.0, high))


def interval_of(scores: Sequence[float], clusters: Clusters = None) -> Interval:
    """Interval of the mean of scores from 0 to 1."""
    return interval_of_totals(mean(scores), count_totals(scores, clusters))


def interval_of_totals(value: float, totals: Counter[Totals]) -> Interval:
    """Wilson's interval of a mean, with effective n = p(1-p) / SE²: independent trials of this standard error.

    Averages of samples that are nearly all 0 or 1 hardly vary, yet the next question may be one that all samples fail.
    So n is at most what it would be with one more question, or cluster of average size, whose scores are 0 (or 1 if
    the mean is below 0.5). Where the scores do not vary, n is the number of questions, or of clusters.
    """
    error = _error(value, totals)
    if error < ROUNDING:
        return wilson(value, totals.total())
    n, size, score = _size(totals), _size(totals) / totals.total(), float(value <= 0.5)
    more, center = totals + Counter([Totals(score * size, size)]), (n * value + size * score) / (n + size)
    return wilson(value, min(_effective(value, error), _effective(center, _error(center, more))))


def _effective(value: float, error: float) -> float:
    """Number of independent trials that would have this standard error."""
    return value * (1 - value) / error**2


def estimate(scores: Sequence[float], clusters: Clusters = None) -> Estimate:
    """The mean of scores from 0 to 1, with its interval."""
    return Estimate(mean(scores), interval_of(scores, clusters))


def pass_at(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` samples, drawn from `n` of which `c` are correct, is correct."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples")
    return 1 - comb(n - c, k) / comb(n, k)


def majority(questions: Sequence[Sequence[Vote]], k: int) -> list[float]:
    """maj@k of each question: the share of votes of `k` of its samples that are right.

    All subsets of `k` samples vote, or MAX_SUBSETS seeded ones where there are more, the same for all questions with as
    many samples. The answer with the most samples wins; of tied ones, that with the higher sum of probabilities, then
    the one of the earlier sample. A sample without an answer votes for nothing, and a vote without an answer is wrong.
    """
    values, sizes = [0.0] * len(questions), dict[int, list[int]]()
    for index, votes in enumerate(questions):
        if not 1 <= k <= len(votes):
            raise ValueError(f"maj@{k} of {len(votes)} samples")
        sizes.setdefault(len(votes), []).append(index)
    for size, indexes in sizes.items():
        subsets = _subsets(size, k)
        for block in _blocks(indexes, BLOCK // (len(subsets) * size)):
            shares = _are_right([questions[index] for index in block], subsets).mean(axis=1)
            for index, share in zip(block, shares.tolist(), strict=True):
                values[index] = share
    return values


def winner(votes: Sequence[Vote]) -> Vote | None:
    """The first sample with the answer that wins the vote of all samples; None if no sample has an answer."""
    import numpy

    [[index]] = _winners([votes], numpy.ones((1, len(votes)))).tolist()
    return votes[index] if index >= 0 else None


def _subsets(size: int, k: int) -> NDArray[numpy.float64]:
    """Rows of zeros and ones, of which `k` are ones."""
    import numpy

    chosen: Iterable[Sequence[int]] = combinations(range(size), k)
    if comb(size, k) > MAX_SUBSETS:
        random = Random(SEED)  # its method `random` gives the same numbers in every version of Python
        orders = [[random.random() for _ in range(size)] for _ in range(MAX_SUBSETS)]  # nested: the same for every k
        chosen = [sorted(range(size), key=order.__getitem__)[:k] for order in orders]
    indexes = numpy.array(list(chosen))
    subsets = numpy.zeros((len(indexes), size))
    numpy.put_along_axis(subsets, indexes, 1.0, axis=1)
    return subsets


def _blocks(indexes: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    length = max(1, length)
    return (indexes[start : start + length] for start in range(0, len(indexes), length))


def _are_right(questions: Sequence[Sequence[Vote]], subsets: NDArray[numpy.float64]) -> NDArray[numpy.bool_]:
    """Whether each subset's vote is right, by question and subset."""
    import numpy

    winners = _winners(questions, subsets)
    correct = numpy.array([[vote.correct for vote in votes] for votes in questions])
    return numpy.take_along_axis(correct, winners.clip(0), axis=1) & (winners >= 0)


def _winners(questions: Sequence[Sequence[Vote]], subsets: NDArray[numpy.float64]) -> NDArray[numpy.int64]:
    """Index of the first sample with the winning answer, by question and subset; -1 without an answer.

    A sample counts as one ballot plus its probability in whole units, small enough for the ballots to decide and for
    sums of both to be exact, so that equal sums are equal in any order.
    """
    import numpy

    size = subsets.shape[1]
    unit = 2.0 ** (52 - 2 * size.bit_length())
    ballots = numpy.array([[size * unit + round(vote.probability * unit) for vote in votes] for votes in questions])
    labels = numpy.array([_labels(votes) for votes in questions])
    same = (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]
    counts = subsets @ (same * ballots[:, :, None])  # of each sample's answer, by question and subset
    counts *= subsets
    winners: NDArray[numpy.int64] = counts.argmax(axis=2)  # the first of equals
    winners[counts.max(axis=2) == 0] = -1
    return winners


def _labels(votes: Sequence[Vote]) -> list[int]:
    """Number of each sample's form; -1 without one."""
    numbers: dict[str, int] = {}
    return [-1 if vote.form is None else numbers.setdefault(vote.form, len(numbers)) for vote in votes]
