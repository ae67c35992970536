"""The number of sequences that talk at once grows while that says more tokens a second, and then stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.engine.pace import FIRST, STEPS, Pace

MOST = 8 * FIRST


def limits(pace: Pace, seconds: Callable[[int], float], steps: int = 100) -> list[int]:
    """Return the limits a pace has, one after another, while full steps take as long as `seconds` says."""
    limits = [pace.limit]
    for _ in range(steps):
        pace.record(pace.limit, seconds(pace.limit))
        if pace.limit != limits[-1]:
            limits.append(pace.limit)
    return limits


def alike(rows: int) -> float:
    """Tell how long a step takes where more sequences cost nothing."""
    return 1.0


def crowded(best: int) -> Callable[[int], float]:
    """Return how long steps take where more than `best` sequences say half as many tokens a second together."""
    return lambda rows: 1.0 if rows <= best else 2.0 * rows / best


def test_what_is_not_measured_is_all_there_is_at_once() -> None:
    assert limits(Pace(MOST, measured=False), crowded(1)) == [MOST]


@pytest.mark.parametrize("most", [1, 7, FIRST])
def test_few_all_talk_at_once(most: int) -> None:
    assert limits(Pace(most, measured=True), crowded(1)) == [most]


def test_it_doubles_as_long_as_more_say_more() -> None:
    assert limits(Pace(MOST, measured=True), alike) == [FIRST, 2 * FIRST, 4 * FIRST, MOST]
    assert limits(Pace(2 * FIRST + 8, measured=True), alike) == [FIRST, 2 * FIRST, 2 * FIRST + 8]


@pytest.mark.parametrize("best", [FIRST, 2 * FIRST, 4 * FIRST])
def test_it_goes_back_to_what_was_faster_and_stays_there(best: int) -> None:
    pace = Pace(MOST, measured=True)
    assert limits(pace, crowded(best))[-2:] == [2 * best, best]
    assert limits(pace, alike) == [best]


def test_the_first_step_of_a_number_and_steps_of_fewer_are_not_measured() -> None:
    pace = Pace(2 * FIRST, measured=True)
    pace.record(FIRST, 1e-9)  # it would be the fastest of all
    for _ in range(50):
        pace.record(FIRST - 1, 1e-9)
    for _ in range(STEPS - 1):
        assert pace.limit == FIRST
        pace.record(FIRST, 1.0)
    assert pace.limit == 2 * FIRST
    for seconds in (1000.0, *[1.0] * (STEPS - 1)):
        pace.record(2 * FIRST, seconds)
    assert pace.limit == 2 * FIRST


def test_a_step_that_something_else_held_up_changes_nothing() -> None:
    pace = Pace(MOST, measured=True)
    for step in range(4 * STEPS):
        pace.record(pace.limit, 1.0 if step % STEPS == 1 else 50.0)
    assert pace.limit == MOST


@given(st.integers(1, 256), st.lists(st.floats(1e-6, 1e3), max_size=200))
def test_the_limit_is_one_that_can_be_and_comes_to_rest(most: int, times: list[float]) -> None:
    pace = Pace(most, measured=True)
    for seconds in times:
        pace.record(pace.limit, seconds)
        assert 1 <= pace.limit <= most
    limits(pace, alike)
    assert len(limits(pace, crowded(1))) == 1
