"""Comparison of two runs against brute force, scipy and statsmodels, and its conclusion in words."""

from collections.abc import Sequence
from dataclasses import replace
from math import comb, sqrt
from random import Random

import numpy
import pytest
import scipy  # which imports its parts when they are used
from hypothesis import given, strategies as st

from cerebrum_cli.eval.comparison import (
    QuestionResult,
    compare,
    conclusion,
    mcnemar,
    paired_interval,
    question_results,
    smallest_difference,
)
from cerebrum_cli.eval.estimates import (
    Interval,
    cluster_quantile,
    degrees_of_freedom,
    standard_error,
    student_t,
    wilson,
)
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import group_by_question

RIGHT = QuestionResult(1.0, "right", True, 0)
WRONG, OTHER, SILENT = (QuestionResult(0.0, form, False, 0) for form in ("wrong", "other", None))


def run(*groups: tuple[int, QuestionResult]) -> list[QuestionResult]:
    """Results of numbered questions, from counts."""
    kinds = [kind for count, kind in groups for _ in range(count)]
    return [replace(kind, cluster=index) for index, kind in enumerate(kinds)]


def pair(both: int, lost: int, won: int, neither: int = 0) -> tuple[list[QuestionResult], list[QuestionResult]]:
    """Two runs of single samples: questions both have right, only the first, only the second, neither."""
    a = run((both + lost, RIGHT), (won + neither, WRONG))
    b = run((both, RIGHT), (lost, WRONG), (won, RIGHT), (neither, WRONG))
    return a, b


def sample(id: int, number: int, answer: str | None, correct: bool, cluster: str | None = None) -> Sample:
    """A scored reply."""
    return Sample(id, number, "model", 0, "", None, answer, "7", correct, 0.5, "stop", 10, cluster=cluster)


# McNemar's test.


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_mcnemar_equals_that_of_statsmodels(lost: int, won: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar

    expected = reference_mcnemar([[0, lost], [won, 0]], exact=True).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-9, abs=1e-300)


# The interval of a difference.


def interval_of(differences: Sequence[float]) -> Interval:
    return paired_interval(differences, range(len(differences)))


@pytest.mark.parametrize("freedom", [*range(1, 12), 2.25, 7.31, 30, 99.5, 1000])
def test_student_t_equals_that_of_scipy(freedom: float) -> None:
    assert student_t(freedom, 0.95) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-7)
    assert student_t(5000, 0.95) == pytest.approx(1.96044, abs=1e-5)


def test_paired_interval_equals_that_of_scipy() -> None:
    values = numpy.random.default_rng(2).choice([-1.0, 0.0, 0.0, 0.0, 1.0, 1.0], 60).tolist()
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval_of(values) == pytest.approx((expected.low, expected.high))


def test_paired_interval_takes_clusters_as_wholes() -> None:
    values = numpy.random.default_rng(4).normal(0, 0.3, 60).tolist()
    repeated, clusters = [each for each in values for _ in range(5)], [index for index in range(60) for _ in range(5)]
    assert paired_interval(repeated, clusters) == pytest.approx(interval_of(values), abs=1e-12)
    plain, whole = interval_of(repeated), interval_of(values)
    assert plain.high - plain.low < 0.6 * (whole.high - whole.low)


def named(*sizes: int) -> list[int]:
    return [name for name, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("sizes", [(4, 4, 4), (60, 4, 4, 4), (30, *[1] * 40), (1, 2, 4, 8, 16)])
def test_clusters_have_the_error_and_freedom_of_bell_and_mccaffrey(sizes: tuple[int, ...]) -> None:
    """The standard error is unbiased for independent scores: the quadratic form e'Ae of normal ones gives both."""
    n = sum(sizes)
    centered = numpy.eye(n) - 1 / n
    form = numpy.zeros((n, n))
    for name, size in enumerate(sizes):
        total = centered[numpy.array(named(*sizes)) == name].sum(axis=0)
        form += numpy.outer(total, total) / (1 - size / n)
    freedom = numpy.trace(form) ** 2 / numpy.trace(form @ form)
    assert degrees_of_freedom(named(*sizes)) == pytest.approx(freedom, rel=1e-6)
    scores = numpy.random.default_rng(n).normal(0, 1, n)
    assert standard_error(scores.tolist(), named(*sizes)) == pytest.approx(sqrt(scores @ form @ scores) / n)


@pytest.mark.parametrize("sizes", [(60, *[4] * 29), (30, *[1] * 60), (10,) * 5, (*[40] * 5, *[1] * 100)])
def test_equal_runs_of_unequal_clusters_differ_in_about_5_percent(sizes: tuple[int, ...]) -> None:
    generator, excluded, clusters = numpy.random.default_rng(3), 0, numpy.array(named(*sizes))
    for _ in range(1000):
        differences = generator.normal(0, 0.15, len(sizes))[clusters] + generator.normal(0, 0.3, len(clusters))
        low, high = paired_interval(differences.tolist(), clusters.tolist())
        excluded += not low <= 0 <= high
    assert 30 <= excluded <= 70


@pytest.mark.parametrize("correlation", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    "sizes", [(*[40] * 5, *[1] * 100), (109, 44, 29, *[5] * 40), (60, *[4] * 20), (2, 2, 1, 1, 1, 1)]
)
def test_difference_in_unequal_clusters_is_significant_in_at_most_6_percent(
    sizes: tuple[int, ...], correlation: float
) -> None:
    """However much the questions of a cluster have in common; with the error of CR2, of normal differences."""
    random, size, n = numpy.random.default_rng(5), numpy.array(sizes), sum(sizes)
    variance = size * (1 - correlation + size * correlation)
    totals = random.normal(0, numpy.sqrt(variance), (20_000, len(sizes)))
    sums = totals.sum(axis=1)
    errors = numpy.sqrt(((totals - size * sums[:, None] / n) ** 2 / (1 - size / n)).sum(axis=1))
    assert (abs(sums) > cluster_quantile(named(*sizes)) * errors).mean() < 0.055


@pytest.mark.parametrize(("sizes", "worth"), [((60, 4, 4, 4), "2.27"), ((60, *[4] * 14), "4.29"), ((30,) * 4, "4")])
def test_clusters_that_tell_too_little_show_nothing(sizes: tuple[int, ...], worth: str) -> None:
    names = named(*sizes)
    a = [replace(WRONG, accuracy=0.01 * (index % 7), cluster=name) for index, name in enumerate(names)]
    found = compare(a, [replace(each, accuracy=0.9) for each in a])
    assert found.interval.low > 0.5 and not found.is_significant and found.p_value is None
    assert conclusion(found, "Q4", "Q8") == (
        f"no significant difference: the clusters, equivalent to {worth} of equal size, are too few to detect any"
    )


@pytest.mark.parametrize("clusters", [2, 3, 8, 20])
def test_interval_of_few_clusters_excludes_the_truth_in_about_5_percent(clusters: int) -> None:
    generator, excluded = numpy.random.default_rng(7), 0
    names = [name for name in range(clusters) for _ in range(3)]
    for _ in range(1000):
        effects = generator.normal(0, 0.2, clusters)
        differences = [effects[name] + generator.normal(0, 0.1) for name in names]
        low, high = paired_interval(differences, names)
        excluded += not low <= 0 <= high
    assert 25 <= excluded <= 75


def test_paired_interval_of_equal_runs_has_a_width() -> None:
    reach = wilson(0.0, 30).high
    assert interval_of([0.0] * 30) == (-reach, reach)
    assert interval_of([0.5] * 30) == (0.5 - reach, 0.5 + reach)
    assert paired_interval([0.0] * 30, ["one text"] * 30) == (-wilson(0.0, 1).high, wilson(0.0, 1).high)
    assert interval_of([1.0]) == (1 - wilson(0.0, 1).high, 1.0)


# The smallest difference that would have been shown.


@given(st.integers(6, 100_000), st.floats(0.001, 1))
def test_smallest_difference_solves_its_equation(n: int, disagreement: float) -> None:
    found = smallest_difference(n, disagreement)
    assert found is not None
    needed = 1.959963984540054 * sqrt(disagreement) + 0.8416212335729143 * sqrt(max(0.0, disagreement - found**2))
    assert sqrt(n) * found == pytest.approx(needed, rel=1e-6)


def test_smallest_difference_of_runs_that_agree_is_not_zero() -> None:
    """Without a single disagreement, six changes of 200 were still needed for McNemar's test."""
    agreeing = compare(*pair(150, 0, 0, 50)).smallest_difference
    assert agreeing is not None and 6 / 200 <= agreeing < 0.04
    assert compare(*pair(1, 2, 2)).smallest_difference is None


def test_smallest_difference_grows_with_clusters() -> None:
    a, b = pair(100, 20, 20, 60)
    independent = compare(a, b).smallest_difference
    texts = [replace(each, cluster=index // 10) for index, each in enumerate(a)]
    clustered = compare(texts, b).smallest_difference
    assert independent == pytest.approx(smallest_difference(200, 0.2), rel=0.01)
    assert independent and clustered and clustered > 1.5 * independent


# Runs.


def test_compare_counts_changes_and_flips() -> None:
    percent = QuestionResult(1.0, "3/5", True, 0)  # another spelling of a right answer is no flip
    a = run((5, RIGHT), (1, RIGHT), (2, WRONG), (1, WRONG), (1, WRONG), (1, SILENT), (1, WRONG), (1, RIGHT))
    b = run((5, RIGHT), (1, WRONG), (2, RIGHT), (1, WRONG), (1, OTHER), (1, SILENT), (1, SILENT), (1, percent))
    found = compare(a, b)
    assert (found.n, found.right_to_wrong, found.wrong_to_right, found.flips) == (13, 1, 2, 5)
    assert (found.accuracy_a, found.accuracy_b) == pytest.approx((7 / 13, 8 / 13))
    assert found.difference == pytest.approx(1 / 13)
    assert found.p_value == mcnemar(1, 2) == 1.0
    assert not found.is_significant


def test_compare_goes_by_the_interval() -> None:
    """Four changes of ten, all to the better, are outside the interval; three are not."""
    found = compare(*pair(3, 0, 4, 3))
    assert found.interval.low > 0 and found.p_value == 0.125 and found.is_significant
    fewer = compare(*pair(4, 0, 3, 3))
    assert fewer.interval.low < 0 and not fewer.is_significant


def test_equal_runs_differ_significantly_in_five_percent_of_cases() -> None:
    """Of all results of 60 questions, of which a fifth change, one in 20 is significant."""
    share = 0.0
    for changes, won in ((total, won) for total in range(35) for won in range(total + 1)):
        if compare(*pair(60 - changes, changes - won, won)).is_significant:
            share += comb(60, changes) * 0.2**changes * 0.8 ** (60 - changes) * comb(changes, won) / 2**changes
    assert 0.04 < share < 0.055


def test_sequential_interval_holds_at_every_look() -> None:
    """Equal runs of up to 200 questions, compared after every 20."""
    random = Random(46)
    excluded = {"interval": 0, "sequential_interval": 0}
    for _ in range(60):
        answers = [random.choice(((RIGHT, WRONG), (WRONG, RIGHT), (RIGHT, RIGHT))) for _ in range(200)]
        a, b = ([replace(pair[side], cluster=number) for number, pair in enumerate(answers)] for side in (0, 1))
        looks = [compare(a[:n], b[:n]) for n in range(20, 201, 20)]
        for name in excluded:
            intervals = [getattr(look, name) for look in looks]
            excluded[name] += any(not interval.low <= 0 <= interval.high for interval in intervals)
    assert excluded["interval"] > 8 and excluded["sequential_interval"] <= 3


def test_compare_of_several_samples_uses_their_averages() -> None:
    a = [QuestionResult(0.25 + 0.01 * (index % 5), "wrong", False, index) for index in range(40)]
    b = [replace(each, accuracy=each.accuracy + 0.1 + 0.02 * (index % 3)) for index, each in enumerate(a)]
    found = compare(a, b)
    assert (found.right_to_wrong, found.wrong_to_right, found.flips, found.p_value) == (0, 0, 0, 1.0)
    assert found.is_significant and found.interval.low > 0.1


def test_compare_of_fewer_than_six_questions_shows_nothing() -> None:
    a = [QuestionResult(0.2 + 0.01 * index, "wrong", False, index) for index in range(5)]
    found = compare(a, [replace(each, accuracy=0.9) for each in a])
    assert found.interval.low > 0.6
    assert not found.is_significant and found.smallest_difference is None


def test_outcomes_vote_and_average_the_samples_of_a_question() -> None:
    first = [sample(1, 2, "8", False), sample(1, 0, "7", True), sample(1, 1, "7", True)]
    samples = [*first, sample(2, 0, None, False), sample(3, 0, "8", False, "text")]
    assert question_results(group_by_question(samples)) == {
        1: QuestionResult(2 / 3, "7", True, (1,)),
        2: QuestionResult(0.0, None, False, (2,)),
        3: QuestionResult(0.0, "8", False, "text"),
    }
    plain = question_results({id: [sample(id, 0, "7", True)] for id in (4, 9)})
    assert [each.cluster for each in plain.values()] == [(4,), (9,)]


# In words and as JSON.


def test_conclusion_names_the_better_run_first() -> None:
    a, b = pair(100, 10, 30, 60)
    low, high = compare(a, b).interval
    figures = f"10.0 percentage points more accurate than %s (95%% interval: {100 * low:.1f} to {100 * high:.1f})"
    for runs, better, worse in (((a, b), "Q8", "Q4"), ((b, a), "Q4", "Q8")):
        stated = f"{better} is {figures % worse}; the difference is statistically significant"
        assert conclusion(compare(*runs), "Q4", "Q8") == stated


def test_conclusion_states_what_would_show() -> None:
    found = compare(*pair(100, 12, 14, 74))
    assert conclusion(found, "Q4", "Q8") == (
        "no significant difference: Q8 is 1.0 percentage points ahead"
        f" (95% interval: {100 * found.interval.low:.1f} to {100 * found.interval.high:.1f});"
        " with 200 questions, a difference of about 7.1 percentage points would be detected in about 80% of cases"
    )
    equal = conclusion(compare(*pair(100, 12, 12, 76)), "Q4", "Q8")
    assert equal.startswith("no significant difference: the accuracies are equal; with 200 questions, a difference")
    few = conclusion(compare(*pair(1, 1, 2)), "Q4", "Q8")
    assert few == "no significant difference: 4 questions are too few to detect any"
