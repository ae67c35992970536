"""The probability from which answers are decided, so that at most a wanted share of them is wrong.

It is found by Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052, for selective classification) with
fixed-sequence testing. Thresholds are tested from a strict one down, each at the full level, until a test fails; the
last one that passed holds. A test passes if Clopper and Pearson's upper bound (1934) for the share of wrong rows at or
above the threshold, at the wanted confidence, is at most the wanted error: it is the exact binomial test.

The thresholds tested are those above which there are just enough rows to admit one more wrong one, beginning with a
share START of the rows. So they depend on how many rows are above them, and not on which are right. The promise is then
kept with at least the confidence if less probable answers are no more often right; benchmarks/trust.py also has a case
where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from math import ceil, exp, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import NamedTuple

START = 0.15  # share of the rows above the first threshold: fewer would fail more often by a wrong label
MOST_TESTS = 100  # thresholds; each one more is another test that may fail
# Errors that may be promised instead of the wanted one.
PROMISED = tuple(percent / 100 for percent in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50))
POWER = 0.8  # the chance that the suggested number of rows has a threshold
MOST_ROWS = 10_000  # to label; more are not suggested


class ScoredRow(NamedTuple):
    """A labelled row: the calibrated probability of its answer, and whether that is right."""

    probability: float
    is_right: bool


class Group(NamedTuple):
    """The labelled rows at or above a threshold."""

    probability: float
    rows: int
    wrong: int


def find_threshold(scored: Sequence[ScoredRow], error: float, confidence: float) -> Group | None:
    """The rows at or above the lowest threshold that holds; None if the first one tested fails."""
    rows = len(scored)
    allowed = allowed_wrong(rows, error, confidence)
    sizes = [size for size in range(1, rows + 1) if allowed[size] > allowed[size - 1]]
    if not sizes:
        return None
    sizes = sizes[:: ceil(len(sizes) / MOST_TESTS)]
    needed = next((size for size in sizes if size >= START * rows), rows)
    passed = None
    for group in _groups(scored):
        if group.rows < needed:
            continue
        if group.wrong > allowed[group.rows]:
            break
        passed = group
        needed = next((size for size in sizes if size > group.rows), rows)
    return passed


def _groups(scored: Sequence[ScoredRow]) -> Iterator[Group]:
    """The rows at or above each probability, from the highest on; rows of equal probability are decided together."""
    rows = wrong = 0
    ordered = sorted(scored, key=lambda row: -row.probability)
    for probability, equal in groupby(ordered, key=lambda row: row.probability):
        right = [row.is_right for row in equal]
        rows += len(right)
        wrong += right.count(False)
        yield Group(probability, rows, wrong)


def smallest_error(scored: Sequence[ScoredRow], above: float, confidence: float) -> float | None:
    """The smallest error of PROMISED, more than `above`, that has a threshold."""
    errors = [error for error in PROMISED if error > above]
    return next((error for error in errors if find_threshold(scored, error, confidence)), None)


def rows_needed(scored: Sequence[ScoredRow], error: float, confidence: float) -> int | None:
    """About how many rows are likely to have a threshold for an error; None if more than MOST_ROWS.

    Above one of the thresholds, as large a share of them is expected, as often wrong as of these rows, by a normal
    approximation. Rows that are too few for any threshold say little, so the fewest that may have one are enough.
    """
    normal = NormalDist()
    fewest = ceil(log1p(-confidence) / log1p(-error))
    needed = []
    for group in _groups(scored):
        wrong = (group.wrong + 0.5) / (group.rows + 1)
        if wrong < error:
            deviations = normal.inv_cdf(confidence) * sqrt(error * (1 - error))
            deviations += normal.inv_cdf(POWER) * sqrt(wrong * (1 - wrong))
            above = max(fewest, (deviations / (error - wrong)) ** 2)
            needed.append(ceil(above * len(scored) / group.rows))
    if not needed and len(scored) < fewest:
        needed = [fewest]
    rows = min(needed, default=MOST_ROWS + 1)
    return rows if rows <= MOST_ROWS else None


@lru_cache(maxsize=64)
def allowed_wrong(rows: int, error: float, confidence: float) -> tuple[int, ...]:
    """How many of 0, 1, 2, ... rows may be wrong for a test to pass; -1 if it fails even without a wrong one."""
    level = 1 - confidence
    most, chance = -1, 0.0  # of that many wrong rows, and of at most as many
    allowed = [most]
    for size in range(1, rows + 1):
        if most >= 0:  # the chance for one row fewer, less that the new row is one wrong too many
            chance -= error * _binomial(most, size - 1, error)
        while most + 1 < size and (more := chance + _binomial(most + 1, size, error)) <= level:
            most, chance = most + 1, more
        allowed.append(most)
    return tuple(allowed)


def _binomial(count: int, rows: int, error: float) -> float:
    """The probability of exactly `count` wrong rows."""
    if count > rows:
        return 0.0
    ways = lgamma(rows + 1) - lgamma(count + 1) - lgamma(rows - count + 1)
    return exp(ways + count * log(error) + (rows - count) * log1p(-error))
