"""Estimates from scores: shares and differences with 95% intervals, McNemar's test, pass@k.

The samples of a question are averaged first: the questions are what varies.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, fsum, sqrt
from statistics import NormalDist, pvariance
from typing import NamedTuple

from cerebrum_cli.core.frozen import frozen

Z = NormalDist().inv_cdf(0.975)
ALL_SIZES = 8  # numbers of samples of which each has its votes


class Interval(NamedTuple):
    low: float
    high: float


@frozen
class Estimate:
    value: float
    interval: Interval


def mean(scores: Sequence[float]) -> float:
    return fsum(scores) / len(scores)


def wilson(share: float, n: float) -> Interval:
    """Wilson's score interval of a share among `n` trials."""
    square = Z**2
    center = n * share + square / 2
    reach = Z * sqrt(max(0.0, n * share * (1 - share)) + square / 4)
    low = (center - reach) / (n + square)
    high = (center + reach) / (n + square)
    # Rounding must not push a bound past the share, nor past 0 and 1, which are exact for none and all.
    return Interval(max(0.0, min(share, low)), min(1.0, max(share, high)))


def estimate(scores: Sequence[float]) -> Estimate:
    """The mean of scores from 0 to 1, with Wilson's interval.

    Averages over several samples vary less than single ones. They count as the number of trials whose share has their
    variance, p(1-p)/n, with one more question that goes against the mean: the next one may be such a question. For
    scores of 0 and 1, that is the number of questions.
    """
    value = mean(scores)
    with_one_more = [*scores, float(value <= 0.5)]
    center = mean(with_one_more)
    trials = center * (1 - center) * len(scores) / pvariance(with_one_more)
    return Estimate(value, wilson(value, trials))


def paired_interval(differences: Sequence[float]) -> Interval:
    """The interval of the mean of paired differences between -1 and 1.

    It is that of Agresti and Min 2005 (Statistics in Medicine 24, 729-740), who add two pairs of which half a pair
    changes in each direction: without any difference, the next question may still show one.
    """
    n = len(differences) + 2
    center = fsum(differences) / n
    variance = (fsum(difference**2 for difference in differences) + 1) / n - center**2
    reach = Z * sqrt(variance / n)
    return Interval(max(-1.0, center - reach), min(1.0, center + reach))


def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Two-sided p value of McNemar's exact test: how likely fair coins split as unevenly."""
    changes = right_to_wrong + wrong_to_right
    tail = sum(comb(changes, count) for count in range(min(right_to_wrong, wrong_to_right) + 1))
    return min(1.0, 2 * tail / (1 << changes))


def pass_at(n: int, c: int, k: int) -> float:
    """Chance that at least one of `k` samples, drawn from `n` of which `c` are correct, is correct."""
    return 1 - comb(n - c, k) / comb(n, k)


def vote_sizes(samples: int) -> list[int]:
    """The k of maj@k and pass@k to report: all of a few samples, or powers of two and the last."""
    if samples <= ALL_SIZES:
        return list(range(1, samples + 1))
    powers = [1 << exponent for exponent in range((samples - 1).bit_length())]
    return [*powers, samples]
