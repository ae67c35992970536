"""Whether new rows differ from labelled ones, so that what holds for those may not hold for them."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt

from cerebrum_cli.core.frozen import frozen

LEAST_ROWS = 30  # of each kind: the means of fewer are not normal enough
DEVIATIONS = 3.0  # at most about one false alarm in 100, as probabilities are skewed
LEAST_CHANGE = 0.001  # of the mean: less is rounding


@frozen
class Shift:
    """The mean probabilities of the answers of labelled and of new rows, which differ by more than chance."""

    labelled_mean: float
    new_mean: float


def find_shift(labelled: Sequence[float], new: Sequence[float]) -> Shift | None:
    """Compare the mean probabilities of answers by a z-test; None if they may well be alike, or rows are too few."""
    if min(len(labelled), len(new)) < LEAST_ROWS:
        return None
    labelled_mean, labelled_error = _mean_and_squared_error(labelled)
    new_mean, new_error = _mean_and_squared_error(new)
    chance = DEVIATIONS * sqrt(labelled_error + new_error)
    if abs(new_mean - labelled_mean) <= max(chance, LEAST_CHANGE):
        return None
    return Shift(labelled_mean, new_mean)


def _mean_and_squared_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the square of its standard error."""
    count = len(values)
    mean = fsum(values) / count
    variance = fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, variance / count
