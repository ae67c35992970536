"""Estimates from scored samples: mean scores with their standard error and interval, majority votes, pass@k.

Standard errors are those of Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640): the scores of a question's
samples are averaged first, so the questions are what varies, or clusters of them. Intervals are at 95%.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, cos, fsum, pi, sin, sqrt, tan
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
NEARLY_NORMAL, BISECTIONS = 1000, 50  # degrees of freedom; halvings of an angle
MAX_SUBSETS = 1000  # of a question's samples, in a majority vote
SEED = 18
ROUNDING = 1e-12  # a smaller standard error is rounding: one sample of 256 in 100,000 questions makes 4e-8
ALL_SIZES = 8  # numbers of samples of which each has its votes

# Cluster of each score; scores of one cluster are not independent. None: each is.
Clusters = Sequence[object] | None


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    interval: Interval


class Totals(NamedTuple):
    sum: float
    size: float


class Vote(NamedTuple):
    """A sample in a majority vote; `form` is the normal form of its answer, None if it has no answer.

    `is_stated` is False if the answer was guessed from how the reply ends. `computed` is the normal form of what the
    sample's program printed, if it has one that votes, and `is_computed_correct` whether that is correct.

    Samples of one form should all be correct or all wrong; if they are not, the first of them decides.
    """

    form: str | None
    correct: bool
    probability: float
    is_stated: bool = False
    computed: str | None = None
    is_computed_correct: bool = False


def mean(scores: Sequence[float]) -> float:
    return fsum(scores) / len(scores)


def standard_error(scores: Sequence[float], clusters: Clusters = None) -> float:
    """Standard error of the mean of scores; 0 for a single score or cluster, whose spread is unknown.

    With C clusters it is sqrt(C / (C - 1) * sum of squares of the clusters' summed deviations) / n. If each score is
    its own cluster, this is the usual standard deviation over sqrt(n).
    """
    return _error(mean(scores), count_totals(scores, clusters))


def count_totals(scores: Sequence[float], clusters: Clusters = None) -> Counter[Totals]:
    if clusters is None:
        return Counter(Totals(score, 1) for score in scores)
    members: dict[object, list[float]] = {}
    for score, cluster in zip(scores, clusters, strict=True):
        members.setdefault(cluster, []).append(score)
    return Counter(Totals(fsum(cluster_scores), len(cluster_scores)) for cluster_scores in members.values())


def _error(center: float, totals: Counter[Totals]) -> float:
    count = totals.total()
    if count == 1:
        return 0.0
    squares = fsum(times * (cluster.sum - cluster.size * center) ** 2 for cluster, times in totals.items())
    return sqrt(count / (count - 1) * squares) / _size(totals)


def _size(totals: Counter[Totals]) -> float:
    return sum(times * cluster.size for cluster, times in totals.items())


def wilson(value: float, n: float) -> Interval:
    """Wilson's score interval of a share among `n`; [0, 1] if `n` is 0."""
    square = Z**2
    reach = Z * sqrt(max(0.0, n * value * (1 - value)) + square / 4)
    # Rounding must not push a bound past the share, nor past 0 and 1, which are exact for none and all.
    low = min(value, (n * value + square / 2 - reach) / (n + square)) if value > 0 else 0.0
    high = max(value, (n * value + square / 2 + reach) / (n + square)) if value < 1 else 1.0
    return Interval(max(0.0, low), min(1.0, high))


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Quantile of Student's t distribution for two-sided intervals, by bisection of its finite series.

    The probability of values up to sqrt(freedom) tan(angle) is a sum of powers of the angle's cosine (Abramowitz and
    Stegun, 26.7.3 and 26.7.4). Beyond 1,000 degrees of freedom, the distribution is nearly normal.
    """
    if freedom > NEARLY_NORMAL:
        return NormalDist().inv_cdf((1 + confidence) / 2)
    low, high, is_odd = 0.0, pi / 2, freedom % 2
    for _ in range(BISECTIONS):
        angle = (low + high) / 2
        term = cos(angle) if is_odd else 1.0
        total = term if freedom > 1 else 0.0
        for power in range(2 + is_odd, freedom, 2):
            term *= (power - 1) / power * cos(angle) ** 2
            total += term
        inside = 2 / pi * (angle + sin(angle) * total) if is_odd else sin(angle) * total
        low, high = (angle, high) if inside < confidence else (low, angle)
    return sqrt(freedom) * tan(low)


def estimate(scores: Sequence[float], clusters: Clusters = None) -> Estimate:
    """Mean of scores from 0 to 1, with Wilson's interval for as many independent trials as have its standard error.

    These are n = p(1-p) / SE².

    Averages of samples that are nearly all 0 or 1 hardly vary, yet the next question may be one that all samples fail.
    So n is at most what it would be with one more question, or cluster of average size, whose scores are 0 (or 1 if
    the mean is below 0.5). Where the scores do not vary, n is the number of questions, or of clusters.
    """
    value, totals = mean(scores), count_totals(scores, clusters)
    error = _error(value, totals)
    if error < ROUNDING:
        return Estimate(value, _corrected(value, totals.total()))
    n, size, score = _size(totals), _size(totals) / totals.total(), float(value <= 0.5)
    more, center = totals + Counter([Totals(score * size, size)]), (n * value + size * score) / (n + size)
    return Estimate(value, _corrected(value, min(_effective(value, error), _effective(center, _error(center, more)))))


def _corrected(value: float, n: float) -> Interval:
    """Wilson's interval, with its bound nearer to 0 or 1 moved toward it.

    That bound excludes the truth too often where only a few errors are expected, so it is that of a share with fewer of
    them: half a trial fewer near 0 and 1, as in a continuity correction, and none at 0.5.
    """
    plain, moved = wilson(value, n), wilson(min(1.0, max(0.0, value + (value - 0.5) / n)), n)
    return Interval(min(plain.low, moved.low), max(plain.high, moved.high))


def _effective(value: float, error: float) -> float:
    return value * (1 - value) / error**2


def pass_at(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` samples, drawn from `n` of which `c` are correct, is correct."""
    return 1 - comb(n - c, k) / comb(n, k)


def vote_sizes(samples: int) -> list[int]:
    """The k of maj@k and pass@k to report: all of a few samples, or powers of two and the last."""
    return [k for k in range(1, samples + 1) if samples <= ALL_SIZES or k == samples or k & (k - 1) == 0]


def majorities(questions: Sequence[Sequence[Vote]]) -> dict[int, list[float]]:
    """maj@k of each question, for every k of `vote_sizes`: the share of votes of `k` of its samples that are right.

    All questions have as many samples. All subsets of `k` samples vote, or MAX_SUBSETS seeded ones where there are
    more, the same for all questions. The answer with the most samples wins; of tied ones, the one that more samples
    state, then that with the higher sum of probabilities if at least two samples agree, then the one of the earlier
    sample. A sample without an answer votes for nothing, and a vote without an answer is wrong.

    With programs, a sample is one of an answer if its reply or its program comes to it, and an answer that both a reply
    and a program come to wins against all others.
    """
    import numpy

    subsets = _subsets(len(questions[0])) if questions else {}
    shares: dict[int, list[float]] = {k: [] for k in subsets}
    for votes in questions:
        correct = numpy.array([answer.correct and answer.form is not None for answer in _answers(votes)])
        for k, winners in zip(subsets, _winners(votes, subsets.values()), strict=True):
            shares[k].append(float(correct[winners].mean()))
    return shares


def winner(votes: Sequence[Vote]) -> Vote | None:
    """The first answer that wins the vote of all samples; None if no sample has an answer."""
    import numpy

    [[index]] = _winners(votes, [numpy.arange(len(votes)).reshape(1, -1)])
    answer = _answers(votes)[index]
    return answer if answer.form is not None else None


def _subsets(size: int) -> dict[int, NDArray[numpy.int64]]:
    """Subsets of a question's samples by their size, one a row, in order. Random ones contain the smaller ones."""
    import numpy

    random = Random(SEED)  # its method `random` gives the same numbers in every version of Python
    orders = numpy.argsort([[random.random() for _ in range(size)] for _ in range(MAX_SUBSETS)], kind="stable")
    return {
        k: numpy.sort(orders[:, :k]) if comb(size, k) > MAX_SUBSETS else numpy.array(list(combinations(range(size), k)))
        for k in vote_sizes(size)
    }


def _answers(votes: Sequence[Vote]) -> list[Vote]:
    """The answers of all samples; where programs vote, each is followed by that of its program, and stated if equal."""
    if all(vote.computed is None for vote in votes):
        return list(votes)
    programs = (Vote(vote.computed, vote.is_computed_correct, 0.0, is_stated=True) for vote in votes)
    replies = (vote._replace(is_stated=vote.is_stated or vote.form == vote.computed) for vote in votes)
    return [answer for pair in zip(replies, programs, strict=True) for answer in pair]


def _winners(votes: Sequence[Vote], subsets: Iterable[NDArray[numpy.int64]]) -> Iterator[NDArray[numpy.int64]]:
    """Yield, for subsets of each size, the first of `_answers` that wins each of them, or one that is none.

    A sample counts as one ballot, plus a smaller one if its answer is stated, plus its probability in whole units, so
    small that the larger ones decide and sums are exact. The probability of a single sample does not count. A program
    that comes to the answer of its reply adds no ballot; that answer is stated.
    """
    import numpy

    answers = _answers(votes)
    columns = len(answers) // len(votes)
    size = 2 ** len(votes).bit_length()  # more than there are votes
    unit = 2**50 // size**3
    stated, single = size * unit, 2 * size**2 * unit
    forms, is_program = [answer.form for answer in answers], numpy.arange(len(answers)) % columns == 1
    has_form = numpy.array([form is not None for form in forms])
    is_repeated = is_program & numpy.array(
        [form == before for form, before in zip(forms, [None, *forms], strict=False)]
    )
    ballots = numpy.array([single + stated * vote.is_stated + round(vote.probability * unit) for vote in answers])
    ballots = ballots * has_form * ~is_repeated
    numbers: dict[str | None, int] = {}
    labels = numpy.array([numbers.setdefault(form, len(numbers)) for form in forms])
    for samples in subsets:
        rows = numpy.arange(len(samples))
        places = (columns * samples[:, :, None] + numpy.arange(columns)).reshape(len(samples), -1)
        cells = labels[places] + len(numbers) * rows[:, None]
        totals, *by_kind = (
            numpy.bincount(cells.ravel(), weights[places].ravel())[cells]  # of the answer at each place
            for weights in (ballots, has_form & ~is_program, has_form & is_program)[: 2 * columns - 1]
        )
        ranks = numpy.where(totals < 2 * single, totals // stated * stated, totals)
        if by_kind:
            ranks += 2.0**52 * numpy.all(by_kind, axis=0)  # an answer of both replies and programs
        yield places[rows, ranks.argmax(axis=1)]
