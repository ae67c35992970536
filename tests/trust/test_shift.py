"""Whether new rows differ from labelled ones."""

import numpy
import pytest
from scipy.stats import binom

from cerebrum_cli.trust.shift import Shift, find_shift

LABELLED = [0.9] * 80 + [0.6] * 20


def test_shift_of_the_mean_probability() -> None:
    found = find_shift(LABELLED, [0.9] * 500 + [0.6] * 500)
    assert isinstance(found, Shift)
    assert (found.labelled_mean, found.new_mean) == pytest.approx((0.84, 0.75))
    assert find_shift(LABELLED, [0.9] * 800 + [0.6] * 200) is None


@pytest.mark.parametrize("few", [[], [0.2], [0.2] * 29])
def test_too_few_rows_do_not_differ(few: list[float]) -> None:
    assert find_shift(LABELLED, few) is None
    assert find_shift(few, LABELLED) is None


def test_rows_that_are_all_alike_do_not_differ() -> None:
    assert find_shift([0.9] * 500, [0.900001] * 50) is None
    assert find_shift([0.9] * 500, [0.8] * 50) is not None


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [5, 40])
def test_rows_alike_rarely_seem_to_differ(labelled: int) -> None:
    """At most 1% of draws; the probabilities of both kinds of rows are skewed."""
    random = numpy.random.default_rng(1)
    draws, alarms = 200, 0
    for _ in range(draws):
        both = [random.beta(8, 1, count).tolist() for count in (labelled, 3 * labelled)]
        alarms += find_shift(*both) is not None
    assert alarms <= binom.ppf(0.999, draws, 0.01)
