"""Estimates and comparisons of evaluations, against brute force and statsmodels, and figures of labelled decisions."""

from itertools import combinations
from math import log

import pytest
from cases import rows
from hypothesis import given, strategies as st

from cerebrum_cli.eval.comparison import Changes, Comparison, compare, conclusion
from cerebrum_cli.eval.decisions import DecisionFigures, decision_figures
from cerebrum_cli.eval.estimates import estimate, mcnemar, mean, paired_interval, pass_at, vote_sizes, wilson
from cerebrum_cli.eval.questions import ScoredQuestion, ScoredSample
from cerebrum_cli.eval.run_rows import RunRow, read_row

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


def test_compare_of_several_samples_uses_their_averages() -> None:
    a, b = [row("7", "8", "8", "8")] * 40, [row("7", "7", "8", "8")] * 40
    found = compare(a, b)
    assert (found.difference, found.is_significant, changes(found).flips) == (0.25, True, 40)
    assert changes(found).wrong_to_right == 40  # of two answers with as many votes, the first wins
    without = compare(a, b, votes=False)
    assert (without.difference, without.is_significant, without.changes) == (0.25, True, None)


@pytest.mark.parametrize(("counts", "words"), rows("conclusions"))
def test_conclusion_names_the_better_run(counts: tuple[int, int, int, int], words: str) -> None:
    assert conclusion(compare(*pair(*counts)), "A", "B").startswith(words)


KNOWN = {"id": 1, "prompt": "?", "answer": "yes", "error": None, "key": "1.1.0123456789abcdef0123"}


def decided(label: str, yes: float, first_word: str = "") -> RunRow:
    given = {"reference": label, "probability of yes": yes, "probability of no": 1 - yes, "first_word": first_word}
    return read_row({**KNOWN, **given})


def figures(*rows: RunRow) -> DecisionFigures:
    found = decision_figures(rows)
    assert found
    return found


def test_log_loss_confusions_and_errors_by_sureness() -> None:
    found = figures(decided("yes", 0.9), decided("no", 0.8), decided("no", 0.3), decided("yes", 0.6))
    assert found.log_loss == pytest.approx(-(log(0.9) + log(0.2) + log(0.7) + log(0.6)) / 4)
    assert found.confusions == {("yes", "yes"): 2, ("no", "yes"): 1, ("no", "no"): 1}
    assert found.errors == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert (found.share_decided(0.05), found.share_decided(0.25)) == (0.25, 1.0)


def test_rows_that_are_equally_sure_are_decided_together() -> None:
    given = (("yes", 0.9), ("yes", 0.7), ("no", 0.7), ("yes", 0.7), ("no", 0.6))
    found = figures(*(decided(*each) for each in given))
    assert found.errors == pytest.approx([0, 1 / 4, 1 / 4, 1 / 4, 2 / 5])
    assert (found.share_decided(0.1), found.share_decided(0.25)) == (0.2, 0.8)


def test_choice_that_is_hardly_ever_given_makes_a_result_one_sided() -> None:
    rows = [decided("yes", 0.1)] * 9 + [decided("no", 0.1)] * 10
    assert [*figures(*rows, decided("yes", 0.9)).warnings] == ["one-sided: yes for 1 of 20 rows; it is right for 10"]
    assert [*figures(*rows, *[decided("yes", 0.9)] * 4).warnings] == []


def test_first_word_that_is_right_more_often_is_a_warning() -> None:
    warning = "the model's first word to the question as written is right more often: 2 of 2"
    assert [*figures(decided("no", 0.6, "no"), decided("yes", 0.6, "yes")).warnings] == [warning]
    assert [*figures(decided("no", 0.6, "yes"), decided("yes", 0.6, "yes")).warnings] == []


def test_rows_without_probabilities_have_no_figures() -> None:
    assert decision_figures([read_row({**KNOWN, "reference": "yes"})]) is None
