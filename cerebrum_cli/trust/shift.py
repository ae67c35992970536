"""Whether new rows differ from labelled ones, so that what holds for those may not hold for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Literal

from cerebrum_cli.core.frozen import frozen

LEVEL = 0.01  # the chance of a false alarm, of both tests together
DRAWS = 1999
SEED = 0

Statistic = Callable[[Any], Any]  # of counts by value in the last axis


class SeenRows:
    """Counts of rows by the probability of their answer, in hundredths, and by answer where all rows have the same."""

    def __init__(self) -> None:
        self._hundredths = Counter[int]()
        self._choices = Counter[Hashable]()

    def add(self, probability: float, choice: Hashable = None) -> None:
        """Count a row; `choice` is None if rows have answers of their own."""
        self._hundredths[round(100 * probability)] += 1
        if choice is not None:
            self._choices[choice] += 1

    @property
    def mean_probability(self) -> float:
        """Mean probability of the answers, which are rounded to hundredths; 0 without rows."""
        rows = self._hundredths.total()
        return sum(value * count for value, count in self._hundredths.items()) / max(1, rows) / 100

    def shift_from(self, labelled: SeenRows) -> Shift | None:
        """How these rows differ from labelled ones; None if they may well be alike.

        Two permutation tests share the level: of the mean probability, and of the shares of the choices. Each draws as
        many rows as are labelled from all rows, which needs only their counts, and holds for any number of rows.
        """
        means = labelled.mean_probability, self.mean_probability
        p_value = _p_value(labelled._hundredths, self._hundredths, _mean_statistic)
        if p_value <= LEVEL / 2:
            return Shift("probability", *means, p_value)
        p_value = _p_value(labelled._choices, self._choices, _share_statistic)
        if p_value <= LEVEL / 2:
            return Shift("choices", *means, p_value)
        return None


@frozen
class Shift:
    """New rows differ from labelled ones in the mean probability of their answers, or in the shares of the choices."""

    what: Literal["probability", "choices"]
    labelled_mean: float
    new_mean: float
    p_value: float


def _p_value(labelled: Counter[Any], new: Counter[Any], statistic_of: Callable[[Any, Any, int], Statistic]) -> float:
    """The share of draws at least as far from what is expected as the labelled rows, which count as one of them."""
    import numpy

    kinds = list(labelled | new)
    found = numpy.array([labelled[kind] for kind in kinds])
    pooled = found + numpy.array([new[kind] for kind in kinds], dtype=int)
    rows = int(found.sum())
    if len(kinds) < 2 or rows in (0, int(pooled.sum())):
        return 1.0
    statistic = statistic_of(numpy.array(kinds), pooled, rows)
    draws = numpy.random.default_rng(SEED).multivariate_hypergeometric(pooled, rows, size=DRAWS, method="marginals")
    as_far = numpy.count_nonzero(statistic(draws) >= statistic(found) * (1 - 1e-9))
    return (1 + int(as_far)) / (1 + DRAWS)


def _mean_statistic(hundredths: Any, pooled: Any, rows: int) -> Statistic:
    """The distance of the labelled rows' sum from what is expected."""
    expected = (pooled @ hundredths) * rows / pooled.sum()
    return lambda counts: abs(counts @ hundredths - expected)


def _share_statistic(_: Any, pooled: Any, rows: int) -> Statistic:
    """Pearson's chi-squared of the labelled rows."""
    expected = pooled * rows / pooled.sum()
    return lambda counts: ((counts - expected) ** 2 / expected).sum(axis=-1)
