"""Estimates from scored samples: mean scores with their standard error and interval, majority votes, pass@k.

Standard errors are those of Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640): the scores of a question's
samples are averaged first, so the questions are what varies, or clusters of them. Intervals are at 95%.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb, fsum, pi, sqrt, tan
from random import Random
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.replies.majority_vote import MajorityVote

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
STEPS = 100_000  # of an integral
MAX_SUBSETS = 1000  # of a question's samples, in a majority vote
SEED = 18
DRAWS = 40_000  # of the scores in unequal clusters, to find a quantile within 1%
CORRELATIONS = (0.0, 0.03, 0.1, 0.3, 1.0)  # within clusters
ROUNDING = 1e-12  # a smaller standard error is rounding: one sample of 256 in 100,000 questions makes 4e-8
# Weights of an answer that a reply and a program agree on, of a ballot, and of a stated answer. With up to 256 samples,
# each outweighs all smaller ones together.
CHECKED, BALLOT, STATED = 2**24, 2**12, 1
ALL_SIZES = 8  # numbers of samples of which each has its votes

Clusters = Sequence[object]  # of each score; scores of one cluster are not independent


class Interval(NamedTuple):
    low: float
    high: float


@frozen
class Estimate:
    value: float
    interval: Interval


class Totals(NamedTuple):
    sum: float
    size: float


class QuestionVotes(NamedTuple):
    """The samples of a question in a majority vote, and whether each normal form is correct; the first form is None."""

    vote: MajorityVote
    correct: Mapping[str | None, bool]


def mean(scores: Sequence[float]) -> float:
    return fsum(scores) / len(scores)


def standard_error(scores: Sequence[float], clusters: Clusters) -> float:
    """Standard error of the mean of scores; 0 for a single score or cluster, whose spread is unknown.

    It is Bell and McCaffrey's of 2002 (CR2): the square root of the sum, over the clusters, of squares of their summed
    deviations, each divided by the other clusters' share of the scores, over n. If each score is its own cluster, this
    is the usual standard deviation over sqrt(n).
    """
    return _error(mean(scores), _cluster_totals(scores, clusters))


def degrees_of_freedom(clusters: Clusters) -> float:
    """Degrees of freedom of the standard error, by Bell and McCaffrey's approximation for independent scores.

    Clusters of equal size have one fewer than there are clusters, those of unequal size fewer than that.
    """
    shares = [size / len(clusters) for size in Counter(clusters).values()]
    if len(shares) == 1:
        return 0.0
    odds = [share / (1 - share) for share in shares]
    precision = fsum(odds) ** 2 - 1 - fsum(odd**2 for odd in odds)
    return round(1 / precision, 6)  # whole for equal clusters


def cluster_quantile(clusters: Clusters, confidence: float = CONFIDENCE) -> float:
    """How many standard errors an interval of the mean reaches to both sides, for scores in at least two clusters.

    It is Student's t, and more for clusters of unequal size: scores that are correlated within them leave fewer degrees
    of freedom. The factor is that of the 95% quantile, for the correlation that needs the largest.
    """
    sizes = Counter(Counter(clusters).values())
    freedom = degrees_of_freedom(clusters)
    quantile = student_t(freedom, confidence)
    if len(sizes) == 1:
        return quantile
    needed = _simulated_quantile(tuple(sorted(sizes.items())))
    return quantile * max(1.0, needed / student_t(freedom, CONFIDENCE))


@lru_cache(maxsize=64)
def _simulated_quantile(sizes: tuple[tuple[int, int], ...]) -> float:
    """The 95% quantile of |mean| / standard error of normal scores with a mean of 0, in clusters of several sizes.

    `sizes` are pairs of a size and the number of clusters which have it. Their sums are normal with a variance v; the
    sum of m such sums is sqrt(m v) z, and that of their squares is v (z² + chi²), with m - 1 degrees of freedom.
    """
    import numpy

    random = numpy.random.RandomState(SEED)  # whose numbers are the same in every version
    normal = [random.standard_normal(DRAWS) for _ in sizes]
    squares = [
        z**2 + (random.chisquare(m - 1, DRAWS) if m > 1 else 0.0) for z, (_, m) in zip(normal, sizes, strict=True)
    ]
    n = sum(size * m for size, m in sizes)
    quantiles = []
    for correlation in CORRELATIONS:
        variances = [size * (1 - correlation + size * correlation) for size, _ in sizes]
        sums = [sqrt(m * v) * z for v, z, (_, m) in zip(variances, normal, sizes, strict=True)]
        total = numpy.sum(sums, axis=0)
        error = numpy.zeros(DRAWS)
        for v, sum_, square, (size, m) in zip(variances, sums, squares, sizes, strict=True):
            share = size / n
            error += (v * square - 2 * share * total * sum_ + m * (share * total) ** 2) / (1 - share)
        quantiles.append(numpy.quantile(abs(total) / numpy.sqrt(error), CONFIDENCE))
    return float(max(quantiles))


def _cluster_totals(scores: Sequence[float], clusters: Clusters) -> list[Totals]:
    members = defaultdict(list)
    for score, cluster in zip(scores, clusters, strict=True):
        members[cluster].append(score)
    return [Totals(fsum(cluster), len(cluster)) for cluster in members.values()]


def _error(center: float, totals: Sequence[Totals]) -> float:
    if len(totals) == 1:
        return 0.0
    n = sum(cluster.size for cluster in totals)
    squares = fsum((cluster.sum - cluster.size * center) ** 2 / (1 - cluster.size / n) for cluster in totals)
    return sqrt(squares) / n


def wilson(value: float, n: float) -> Interval:
    """Wilson's score interval of a share among `n`; [0, 1] if `n` is 0."""
    square = Z**2
    center = n * value + square / 2
    reach = Z * sqrt(max(0.0, n * value * (1 - value)) + square / 4)
    low = (center - reach) / (n + square)
    high = (center + reach) / (n + square)
    # Rounding must not push a bound past the share, nor past 0 and 1, which are exact for none and all.
    return Interval(max(0.0, min(value, low)), min(1.0, max(value, high)))


@lru_cache(maxsize=64)  # compared runs have few different numbers of clusters
def student_t(freedom: float, confidence: float) -> float:
    """Quantile of Student's t distribution for two-sided intervals; at 95% its relative error is below 3e-6.

    |t| is below sqrt(freedom) tan(angle) with a probability proportional to the integral of cos^(freedom - 1) from 0 to
    that angle.
    """
    import numpy

    angles = numpy.linspace(0, pi / 2, STEPS)[1:]
    within = numpy.cumsum(numpy.cos(angles - angles[0] / 2) ** (freedom - 1))
    return sqrt(freedom) * tan(numpy.interp(confidence * within[-1], within, angles))


def estimate(scores: Sequence[float], clusters: Clusters) -> Estimate:
    """Mean of scores from 0 to 1, with Wilson's interval for as many independent trials as have its standard error.

    These are n = p(1-p) / SE², and fewer where questions have clusters: Student's quantile takes the place of 1.96.

    Averages of samples that are nearly all 0 or 1 hardly vary, yet the next question may be one that all samples fail.
    So n is at most what it would be with one more question, or cluster of average size, whose scores are 0 (or 1 if
    the mean is below 0.5). Where the scores do not vary, n is the number of questions, or of clusters.
    """
    value = mean(scores)
    totals = _cluster_totals(scores, clusters)
    error = _error(value, totals)
    trials: float = len(totals)
    if error >= ROUNDING:
        n = len(scores)
        size = n / len(totals)
        added = Totals(size * (value <= 0.5), size)
        center = (n * value + added.sum) / (n + size)
        error_with_added = _error(center, [*totals, added])
        trials = _effective(value, error)
        if len(totals) < n:
            trials *= (Z / cluster_quantile(clusters)) ** 2
        trials = min(trials, _effective(center, error_with_added))
    return Estimate(value, _corrected(value, trials))


def _corrected(value: float, n: float) -> Interval:
    """Wilson's interval, with its bound nearer to 0 or 1 moved toward it.

    That bound excludes the truth too often where only a few errors are expected, so it is that of a share with fewer of
    them: half a trial fewer near 0 and 1, as in a continuity correction, and none at 0.5.
    """
    plain = wilson(value, n)
    moved = wilson(min(1.0, max(0.0, value + (value - 0.5) / n)), n)
    return Interval(min(plain.low, moved.low), max(plain.high, moved.high))


def _effective(value: float, error: float) -> float:
    return value * (1 - value) / error**2


def pass_at(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` samples, drawn from `n` of which `c` are correct, is correct."""
    return 1 - comb(n - c, k) / comb(n, k)


def vote_sizes(samples: int) -> list[int]:
    """The k of maj@k and pass@k to report: all of a few samples, or powers of two and the last."""
    if samples <= ALL_SIZES:
        return list(range(1, samples + 1))
    powers = [1 << exponent for exponent in range((samples - 1).bit_length())]
    return [*powers, samples]


def majorities(questions: Sequence[QuestionVotes]) -> dict[int, list[float]]:
    """maj@k of each question, for every k of `vote_sizes`: the share of votes of `k` of its samples that are right.

    It is the mean over all orders of the samples, which matter where answers are tied.

    All questions have as many samples. All subsets of `k` samples vote, or MAX_SUBSETS seeded ones where there are
    more, the same for all questions. The answer with the most samples wins; of tied ones, the one that more samples
    state, then that with the higher sum of probabilities if at least two samples agree, then the one of the earlier
    sample. A sample without an answer votes for nothing, and a vote without an answer is wrong.

    With programs, a sample is one of an answer if its reply or its program comes to it, and an answer that both a reply
    and a program come to wins against all others.
    """
    shares: dict[int, list[float]] = {}
    if not questions:
        return shares
    subsets = _subsets(questions[0].vote.tally.samples)
    for votes in questions:
        ballots = _Ballots(votes)
        for k, members in subsets.items():
            shares.setdefault(k, []).append(ballots.share_right(members))
    return shares


def _subsets(size: int) -> dict[int, NDArray[Any]]:
    """Subsets of a question's samples by their size, one a row: whether each sample is in it."""
    import numpy

    random = Random(SEED)  # its method `random` gives the same numbers in every version of Python
    keys = [[random.random() for _ in range(size)] for _ in range(MAX_SUBSETS)]
    orders = numpy.argsort(keys, kind="stable")
    subsets = {}
    for k in vote_sizes(size):
        chosen = orders[:, :k]  # which contain the smaller ones
        if comb(size, k) <= MAX_SUBSETS:
            chosen = numpy.array(list(combinations(range(size), k)))
        subsets[k] = numpy.zeros((len(chosen), size), bool)
        numpy.put_along_axis(subsets[k], chosen, True, axis=1)
    return subsets


class _Ballots:
    """The votes of a question's samples as matrices: rows are samples, columns are answers, the first of which is none.

    A sample has one ballot, plus a smaller one if its answer is stated.
    """

    def __init__(self, votes: QuestionVotes) -> None:
        import numpy

        numbers = {form: number for number, form in enumerate(votes.correct)}
        answers = votes.vote.tally.answers
        self._correct = numpy.array(list(votes.correct.values()))
        self._replies = [numbers[sample.form] for sample in answers]
        self._programs = [numbers[sample.computed_form] for sample in answers]
        columns = numpy.eye(len(numbers), dtype=bool)
        columns[0] = False
        self._by_reply, self._by_program = columns[self._replies], columns[self._programs]
        self._ballots = numpy.zeros(self._by_reply.shape, int)
        for row, sample in enumerate(answers):
            is_checked = sample.form == sample.computed_form
            reply = BALLOT + STATED if is_checked or sample.is_stated else BALLOT
            self._ballots[row] = reply * self._by_reply[row]
            if not is_checked:
                self._ballots[row] += (BALLOT + STATED) * self._by_program[row]

    def share_right(self, members: NDArray[Any]) -> float:
        """Share of subsets that vote for a right answer; a tie goes to the first sample, averaged over all orders."""
        ranks = members @ self._ballots
        ranks[(members @ self._by_reply) & (members @ self._by_program)] += CHECKED
        leads = ranks == ranks.max(axis=1, keepdims=True)
        replies = members & leads[:, self._replies]
        programs = members & leads[:, self._programs] & ~replies  # a reply precedes its program
        right = (replies & self._correct[self._replies]) | (programs & self._correct[self._programs])
        return float((right.sum(axis=1) / (replies | programs).sum(axis=1)).mean())
