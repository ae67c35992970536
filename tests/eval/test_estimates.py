"""Estimates of an evaluation against brute force, scipy, statsmodels, and standard errors that lm-eval published."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from random import Random

import numpy
import pytest
import scipy  # which imports its parts when they are used
from hypothesis import given, strategies as st

from cerebrum_cli.core.ask import Votes
from cerebrum_cli.eval.estimates import (
    Estimate,
    QuestionVotes,
    estimate,
    majorities,
    mean,
    pass_at,
    standard_error,
    wilson,
)
from cerebrum_cli.replies.majority_vote import MajorityVote
from cerebrum_cli.replies.tally import SampleAnswer, Tally

# Tables of the model card of CollectiveCognition-v1-Mistral-7B, printed by lm-eval: metric, value, standard error.
# The sizes are those of the splits lm-eval scores: TruthfulQA, ARC test, HellaSwag validation, AGIEval's AQuA-RAT.
CARD = """
mc1                 817    .3794 .0170
arc_challenge       1172   .5401 .0146    .5572 .0145
hellaswag           10042  .6459 .0048    .8297 .0038
aqua_rat            254    .1890 .0246    .2047 .0254
"""
ROWS = [(name, int(n), [float(each) for each in values]) for name, n, *values in map(str.split, CARD.split("\n")[1:-1])]

scores = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), min_size=1, max_size=50)
shares = st.floats(0, 1)


def vote(form: str | None, is_stated: bool = False, computed: str | None = None) -> SampleAnswer:
    return SampleAnswer(form, form, is_stated, computed, computed)


def vote_on(tally: Tally) -> MajorityVote:
    vote = MajorityVote(tally.votes)
    vote.tally = tally
    return vote


def counted(votes: Sequence[SampleAnswer]) -> QuestionVotes:
    """Votes on a question whose right answer is "right"."""
    forms = dict.fromkeys([None, *(vote.form for vote in votes), *(vote.computed_form for vote in votes)])
    return QuestionVotes(vote_on(Tally(Votes(1, len(votes)), tuple(votes))), {form: form == "right" for form in forms})


def random_votes(random: Random, samples: int) -> list[SampleAnswer]:
    """Votes among a few forms, one of which is right."""
    votes = []
    for _ in range(samples):
        form = random.choice(["right", "right", "a", "b", "c", None])
        votes.append(vote(form, random.random() < 0.5))
    return votes


def share_right(votes: Sequence[SampleAnswer]) -> float:
    """Count a vote in the plainest way: of its leading answers, the share that are correct."""
    standings = {}
    for vote in votes:
        same = [each for each in votes if each.form == vote.form]
        if vote.form is not None:
            standings[vote.form] = (len(same), sum(each.is_stated for each in same))
    leading = [form == "right" for form, standing in standings.items() if standing == max(standings.values())]
    return mean(leading) if leading else 0.0


# Standard errors and intervals.


def independent(scores: Sequence[float]) -> Estimate:
    return estimate(scores, range(len(scores)))


def plain_error(scores: Sequence[float]) -> float:
    return standard_error(scores, range(len(scores)))


@pytest.mark.parametrize(("name", "n", "values"), ROWS, ids=[row[0] for row in ROWS])
def test_standard_error_is_that_of_the_published_tables(name: str, n: int, values: list[float]) -> None:
    for value, published in zip(values[::2], values[1::2], strict=True):
        correct = round(value * n)
        values = [1.0] * correct + [0.0] * (n - correct)
        assert round(mean(values), 4) == value
        assert round(plain_error(values), 4) == published


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_error_of_equal_clusters_equals_that_of_statsmodels(count: int, size: int, data: st.DataObject) -> None:
    from statsmodels.regression.linear_model import OLS

    clusters = [index % count for index in range(count * size)]
    scored = data.draw(st.lists(st.floats(0, 1), min_size=len(clusters), max_size=len(clusters)))
    if count == 1:
        assert standard_error(scored, clusters) == 0.0
    else:  # the mean is a regression on nothing but a constant
        fit = OLS(scored, numpy.ones(len(scored))).fit(cov_type="cluster", cov_kwds={"groups": numpy.array(clusters)})
        assert standard_error(scored, clusters) == pytest.approx(float(fit.bse[0]), abs=1e-9)


@given(scores)
def test_standard_error_of_single_clusters_is_the_plain_one(values: list[float]) -> None:
    assert plain_error(values) == pytest.approx(scipy.stats.sem(values) if len(values) > 1 else 0.0, abs=1e-12)


@given(st.integers(1, 2000), st.data())
def test_wilson_equals_that_of_statsmodels(n: int, data: st.DataObject) -> None:
    from statsmodels.stats.proportion import proportion_confint

    correct = data.draw(st.integers(0, n))
    assert wilson(correct / n, n) == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)


@given(scores)
def test_interval_contains_the_mean_within_0_and_1(values: list[float]) -> None:
    low, high = independent(values).interval
    assert 0 <= low <= mean(values) <= high <= 1
    assert low < high


def test_interval_of_single_samples_is_wilsons() -> None:
    values = [1.0] * 110 + [0.0] * 90
    assert list(independent(values).interval) == pytest.approx(wilson(0.55, 199), abs=3e-4)  # SE divides by n - 1
    assert list(independent([0.0, 1.0] * 100).interval) == pytest.approx(wilson(0.5, 199), abs=1e-9)
    assert independent(values).value == 0.55


@pytest.mark.parametrize("questions", [10, 30, 100])
def test_interval_covers_a_share_with_few_errors(questions: int) -> None:
    """Exact, by the binomial distribution. Where 0.17 errors are expected, Wilson's interval covers only 84%."""
    counts = numpy.arange(questions + 1)
    bounds = numpy.array([independent([0.0] * (questions - c) + [1.0] * c).interval for c in counts])
    for errors in (0.02, 0.05, 0.1, 0.17, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        for truth in (errors / questions, 1 - errors / questions):
            is_covered = (bounds[:, 0] <= truth) & (truth <= bounds[:, 1])
            assert scipy.stats.binom.pmf(counts, questions, truth)[is_covered].sum() > 0.92


def test_interval_of_equal_scores_has_a_width() -> None:
    assert independent([0.0] * 30).interval == wilson(0.0, 30) == pytest.approx((0.0, 0.1135), abs=1e-4)
    assert independent([1.0] * 30).interval == pytest.approx((0.8865, 1.0), abs=1e-4)
    assert (independent([0.0] * 30).interval.low, independent([1.0] * 30).interval.high) == (0.0, 1.0)
    tenths = independent([0.1] * 30).interval  # although 0.1 times 30 is not quite 3
    assert list(tenths) == pytest.approx([wilson(0.1 - 0.4 / 30, 30).low, wilson(0.1, 30).high])
    assert independent([0.0]).interval == wilson(0.0, 1)
    assert independent([1.0]).interval == wilson(1.0, 1)


def test_interval_of_equal_scores_counts_clusters() -> None:
    """Ten texts that a model understands or does not: with n = questions, the truth would often be outside."""
    clusters = [index // 10 for index in range(100)]
    assert estimate([0.0] * 100, clusters).interval == wilson(0.0, 10)
    assert estimate([0.0, 1.0] * 50, clusters).interval == wilson(0.5, 10)  # each cluster has the same mean


def test_interval_of_nearly_equal_scores_is_near_that_of_equal_ones() -> None:
    equal, nearly = independent([1.0] * 50).interval, independent([1.0] * 49 + [0.875]).interval
    assert nearly.low == pytest.approx(equal.low, abs=0.003)
    assert independent([0.0] * 49 + [0.125]).interval == pytest.approx((1 - nearly.high, 1 - nearly.low))
    clusters = [index // 5 for index in range(50)]
    assert estimate([1.0] * 49 + [0.875], clusters).interval.low == pytest.approx(wilson(1.0, 10).low, abs=0.005)


@pytest.mark.parametrize("sizes", [(53, 21, 14, 11, 9, 7, 6, *[4] * 18), (*[40] * 5, *[1] * 100)])
def test_interval_covers_the_accuracy_in_unequal_clusters(sizes: tuple[int, ...]) -> None:
    """Scores of 0 and 1, of questions whose difficulty depends on their cluster. With 1.96, 91 % are covered."""
    random, covered = numpy.random.default_rng(1), 0
    names = [name for name, size in enumerate(sizes) for _ in range(size)]
    for _ in range(600):
        easiness = random.normal(0, 1.5, len(sizes))[names] + random.normal(0, 1, len(names))
        low, high = estimate((random.random(len(names)) < 1 / (1 + numpy.exp(-easiness))).tolist(), names).interval
        covered += low <= 0.5 <= high
    assert covered >= 0.94 * 600


# Votes and pass@k.


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 8])
def test_majority_equals_all_subsets_counted_one_by_one(samples: int) -> None:
    random = Random(samples)
    questions = [random_votes(random, samples) for _ in range(100)]
    found = majorities(list(map(counted, questions)))
    assert list(found) == list(range(1, samples + 1))
    for k, shares in found.items():
        expected = [mean([share_right(subset) for subset in combinations(question, k)]) for question in questions]
        assert shares == pytest.approx(expected, abs=1e-12)


def test_majority_of_many_samples_counts_seeded_subsets() -> None:
    """The subsets are nested, so that the curve over k is smooth, and the same in every version."""
    random, questions = Random(18), [random_votes(Random(seed), 16) for seed in range(5)]
    keys = [[random.random() for _ in range(16)] for _ in range(1000)]
    orders = [sorted(range(16), key=each.__getitem__) for each in keys]
    shares = majorities(list(map(counted, questions)))
    for k in (4, 8):
        subsets = [sorted(order[:k]) for order in orders]
        expected = [
            mean([share_right([question[index] for index in each]) for each in subsets]) for question in questions
        ]
        assert shares[k] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("votes", "share"),
    [
        ([vote("a"), vote("right")], 0.5),
        ([vote("a"), vote("right"), vote("a"), vote("right")], 0.5),
        ([vote(None), vote("right")], 1.0),
        ([vote("a"), vote("right", is_stated=True)], 1.0),
    ],
)
def test_majority_splits_ties(votes: list[SampleAnswer], share: float) -> None:
    assert majorities([counted(votes)])[len(votes)] == [share]


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_majority_is_the_mean_of_winners_over_all_orders_of_samples(samples: int) -> None:
    """The winners are those of a tally."""
    random = Random(samples)
    for _ in range(40):
        votes = random_votes(random, samples)
        for index in range(samples * random.randrange(2)):  # with programs, too
            votes[index] = replace(votes[index], computed_form=random.choice([None, "right", "a"]))
        for k, shares in majorities([counted(votes)]).items():
            leaders = [counted(order).vote.tally.winner for order in permutations(votes, k)]
            assert shares == pytest.approx([mean([bool(won and won.form == "right") for won in leaders])])


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_majority_of_two_that_differ_is_the_mean_of_both(correct: list[bool]) -> None:
    tally = Tally(Votes(1, 4), tuple(vote(str(index)) for index in range(4)))
    forms = {None: False} | {str(index): is_correct for index, is_correct in enumerate(correct)}
    assert majorities([QuestionVotes(vote_on(tally), forms)])[2] == pytest.approx([mean(correct)])


def test_majority_without_an_answer_is_wrong() -> None:
    silent = [vote(None)] * 3
    assert counted(silent).vote.tally.winner is None
    assert majorities([counted(silent)])[2] == [0.0]
    assert majorities([counted([*silent, vote("right")])])[4] == [1.0]  # one vote wins
    questions = [random_votes(Random(seed), 8) for seed in range(50)]
    expected = [mean([vote.form == "right" for vote in question]) for question in questions]
    assert majorities(list(map(counted, questions)))[1] == expected


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_equals_all_subsets_counted_one_by_one(n: int) -> None:
    for c in range(n + 1):
        values = [index < c for index in range(n)]
        for k in range(1, n + 1):
            assert pass_at(n, c, k) == pytest.approx(mean([any(subset) for subset in combinations(values, k)]))
