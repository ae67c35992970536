"""Estimates of an evaluation against brute force and statsmodels."""

from itertools import combinations
from random import Random

import pytest
from hypothesis import given, strategies as st

from cerebrum_cli.eval.estimates import estimate, mcnemar, mean, paired_interval, pass_at, vote_sizes, wilson

scores = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), min_size=1, max_size=50)


@given(st.integers(1, 2000), st.data())
def test_wilson_equals_that_of_statsmodels(n: int, data: st.DataObject) -> None:
    from statsmodels.stats.proportion import proportion_confint

    correct = data.draw(st.integers(0, n))
    assert wilson(correct / n, n) == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)


@given(scores)
def test_interval_contains_the_mean_within_0_and_1(values: list[float]) -> None:
    low, high = estimate(values).interval
    assert 0 <= low <= mean(values) <= high <= 1
    assert low < high


@pytest.mark.parametrize("correct", [0, 1, 30, 110, 200])
def test_interval_of_single_samples_is_wilsons(correct: int) -> None:
    found = estimate([1.0] * correct + [0.0] * (200 - correct))
    assert found.value == correct / 200
    assert found.interval == pytest.approx(wilson(correct / 200, 200), abs=1e-12)


def test_interval_of_averages_covers_the_accuracy() -> None:
    """Of 60 questions of different difficulty, with 8 samples each."""
    random, covered, widths = Random(1), 0, []
    for _ in range(500):
        values = []
        for _ in range(60):
            share = random.betavariate(3, 1)
            values.append(sum(random.random() < share for _ in range(8)) / 8)
        low, high = estimate(values).interval
        covered += low <= 0.75 <= high
        widths.append(high - low)
    assert 465 <= covered < 500
    single = wilson(0.75, 60)
    assert mean(widths) < 0.7 * (single.high - single.low)


def test_interval_of_nearly_equal_scores_is_near_that_of_equal_ones() -> None:
    equal, nearly = estimate([1.0] * 50).interval, estimate([1.0] * 49 + [0.875]).interval
    assert nearly.low == pytest.approx(equal.low, abs=0.003)
    assert estimate([0.0] * 49 + [0.125]).interval == pytest.approx((1 - nearly.high, 1 - nearly.low))


# The interval of a difference.


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 200))
def test_paired_interval_is_that_of_agresti_and_min(lost: int, won: int, same: int) -> None:
    """Half a pair is added to each cell of a table of pairs, then it is Wald's."""
    if not lost + won + same:
        return
    n, b, c = lost + won + same + 2, lost + 0.5, won + 0.5
    reach = 1.959963984540054 * ((b + c - (c - b) ** 2 / n) ** 0.5) / n
    low, high = paired_interval([-1.0] * lost + [1.0] * won + [0.0] * same)
    center = (c - b) / n
    assert (low, high) == pytest.approx((max(-1.0, center - reach), min(1.0, center + reach)))
    assert low < high


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_mcnemar_equals_that_of_statsmodels(lost: int, won: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

    expected = reference_mcnemar([[0, lost], [won, 0]], exact=True).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-9, abs=1e-300)


# pass@k.


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_equals_all_subsets_counted_one_by_one(n: int) -> None:
    for c in range(n + 1):
        values = [index < c for index in range(n)]
        for k in range(1, n + 1):
            assert pass_at(n, c, k) == pytest.approx(mean([any(subset) for subset in combinations(values, k)]))


def test_votes_are_reported_for_all_sizes_or_powers_of_two() -> None:
    assert [vote_sizes(samples) for samples in (1, 3, 12, 16)] == [[1], [1, 2, 3], [1, 2, 4, 8, 12], [1, 2, 4, 8, 16]]
