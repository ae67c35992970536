"""Comparison of two runs, and its conclusion in words."""

from math import comb

import pytest

from cerebrum_cli.eval.comparison import Changes, Comparison, compare, conclusion
from cerebrum_cli.eval.estimates import mcnemar
from cerebrum_cli.eval.questions import ScoredQuestion, ScoredSample


def row(*answers: str | None) -> ScoredQuestion:
    """A question, whose right answer is 7."""
    samples = tuple(ScoredSample(answer, answer == "7", True, "stop", None) for answer in answers)
    return ScoredQuestion(1, "d", "7", samples, 10, 0)


RIGHT, WRONG, OTHER, SILENT = row("7"), row("8"), row("9"), row(None)


def pair(both: int, lost: int, won: int, neither: int = 0) -> tuple[list[ScoredQuestion], list[ScoredQuestion]]:
    """Two runs of single samples: questions both have right, only the first, only the second, neither."""
    a = [RIGHT] * (both + lost) + [WRONG] * (won + neither)
    b = [RIGHT] * both + [WRONG] * lost + [RIGHT] * won + [WRONG] * neither
    return a, b


def changes(found: Comparison) -> Changes:
    assert found.changes
    return found.changes


def test_compare_counts_changes_and_flips() -> None:
    half = row("7.0")  # another spelling of a right answer is no flip
    a = [*[RIGHT] * 5, RIGHT, WRONG, WRONG, WRONG, WRONG, SILENT, WRONG, RIGHT]
    b = [*[RIGHT] * 5, WRONG, RIGHT, RIGHT, WRONG, OTHER, SILENT, SILENT, half]
    found = compare(a, [*b[:-1], RIGHT])
    assert (found.n, changes(found)) == (13, Changes(1, 2, mcnemar(1, 2), 5))
    assert (found.accuracy_a, found.accuracy_b) == pytest.approx((7 / 13, 8 / 13))
    assert found.difference == pytest.approx(1 / 13)
    assert not found.is_significant


def test_single_samples_differ_if_interval_and_mcnemar_agree() -> None:
    assert compare(*pair(20, 0, 6, 4)).is_significant
    five = compare(*pair(20, 0, 5, 5))
    assert five.interval.low > 0 and changes(five).p_value == 0.0625 and not five.is_significant


def test_equal_runs_differ_significantly_in_at_most_five_percent_of_cases() -> None:
    """Of all results of 60 questions, of which a fifth change."""
    share = 0.0
    for changes, won in ((total, won) for total in range(35) for won in range(total + 1)):
        if compare(*pair(60 - changes, changes - won, won)).is_significant:
            share += comb(60, changes) * 0.2**changes * 0.8 ** (60 - changes) * comb(changes, won) / 2**changes
    assert 0.02 < share < 0.05


def test_compare_of_several_samples_uses_their_averages() -> None:
    a, b = [row("7", "8", "8", "8")] * 40, [row("7", "7", "8", "8")] * 40
    found = compare(a, b)
    assert (found.difference, found.is_significant, changes(found).flips) == (0.25, True, 40)
    assert changes(found).wrong_to_right == 40  # of two answers with as many votes, the first wins
    without = compare(a, b, votes=False)
    assert (without.difference, without.is_significant, without.changes) == (0.25, True, None)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (
            (20, 0, 20, 0),
            "B is 50.0 percentage points more accurate than A (95% interval: 31.8 to 63.4); the difference",
        ),
        (
            (20, 20, 0, 0),
            "A is 50.0 percentage points more accurate than B (95% interval: 31.8 to 63.4); the difference",
        ),
        ((20, 1, 2, 0), "no significant difference: B is 4.3 percentage points ahead (95% interval: -11.6 to 19.6)"),
        ((20, 2, 2, 0), "no significant difference: the accuracies are equal (95% interval: -16.9 to 16.9)"),
    ],
)
def test_conclusion_names_the_better_run(counts: tuple[int, int, int, int], words: str) -> None:
    assert conclusion(compare(*pair(*counts)), "A", "B").startswith(words)
