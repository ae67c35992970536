"""Majority votes: the tally of samples, its winner, and when a vote is decided."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product
from math import comb, factorial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerebrum_cli.answers.vote import AUTO, MAX_VOTES, Count, Tally, Votes, is_lead_certain, parse_votes
from cerebrum_cli.core.errors import UsageError

LETTERS = ("5", "7", "9", None)
answers = st.sampled_from(("5", "5.0", "five", "7", "7 apples", "9", "yes", None))
samples = st.lists(st.tuples(answers, st.floats(0, 1)), max_size=12)
bounds = st.tuples(st.integers(1, 24), st.integers(1, 24)).map(sorted).map(lambda pair: Votes(*pair))


def tally(*counted: str | None, votes: Votes | None = None, probability: float = 0.5) -> Tally:
    """Tally of these answers, one per sample."""
    result = Tally(votes or Votes(16, 16))
    for sample, answer in enumerate(counted):
        result = result.add(sample, answer, probability)
    return result


@pytest.mark.parametrize(
    ("text", "votes"),
    [
        *(("8", Votes(8, 8)), ("1", Votes(1, 1)), ("256", Votes(256, 256))),
        *(("auto", Votes(3, 16)), ("auto:2..5", Votes(2, 5)), ("auto:4..4", Votes(4, 4))),
    ],
)
def test_votes_parse_a_number_or_bounds(text: str, votes: Votes) -> None:
    assert parse_votes(text) == votes


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-1", "257", "9999", "1" * 5000, "8.0", " 8", "٨", "auto:", "auto:5", "auto:5..3", "auto:0..3"),
        *("auto:3..257", "auto:3-16", "AUTO", "3..16", "many", "8\n"),
    ],
)
def test_votes_refuse_other_text_with_the_valid_forms(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_votes(text)
    assert repr(text) in error.value.message
    assert f"1 to {MAX_VOTES}" in error.value.hint and "auto:3..16" in error.value.hint


def test_tally_counts_equivalent_answers_together() -> None:
    counted = tally("80", "7", "80 dollars", "80%", "80%", None)
    assert counted.counts == (Count("80%", 4, 2.0, "80"), Count("7", 1, 0.5, "7"))
    assert counted.winner == counted.counts[0]
    assert (counted.agreement, counted.samples) == (4 / 6, 6)
    assert [count.answer for count in tally("4/5", "0.8").counts] == ["4/5"]  # the first of equally frequent ones


def test_tally_breaks_ties_by_probability_then_order() -> None:
    even = Tally(Votes(4, 4)).add(0, "5", 0.2).add(1, "7", 0.3)
    assert [count.answer for count in even.counts] == ["5", "7"]  # nothing agrees
    assert [count.answer for count in even.add(2, "7", 0.1).add(3, "5", 0.1).counts] == ["7", "5"]
    assert [count.answer for count in tally("5", "7", "7", "5").counts] == ["5", "7"]


def test_tally_shows_the_first_sample_with_the_winning_answer() -> None:
    counted = Tally(Votes(4, 4)).add(0, "7", 0.9).add(1, "5", 0.2).add(2, "5.0", 0.6).add(3, "five", 0.6)
    assert counted.winning_sample == 1


def test_tally_lists_the_samples_of_tied_leaders() -> None:
    assert tally("5", "7", "9", "7.0", None, "five").tied_samples == [0, 1, 3, 5]
    assert [tally(*each).tied_samples for each in ([], [None], ["5"], ["5", "7"], ["5", "7", "5"])] == [[]] * 5
    untied = tally("5", "7", "5", "7").with_probabilities({0: 0.2, 1: 0.3, 2: 0.0, 3: 0.0})
    assert (untied.winning_sample, untied.counts[0]) == (1, Count("7", 2, 0.3, "7"))


def test_tally_samples_without_an_answer_never_win() -> None:
    assert tally(None, None, "5").winner == Count("5", 1, 0.5, "5")
    none = tally(None, None)
    assert (none.winner, none.winning_sample, none.agreement, none.counts, none.samples) == (None, None, 0.0, (), 2)
    empty = Tally(AUTO)
    assert (empty.winner, empty.winning_sample, empty.agreement, empty.is_decided) == (None, None, 0.0, False)


def test_tally_refuses_a_sample_twice() -> None:
    with pytest.raises(ValueError, match="sample 1"):
        tally("5", "7").add(1, "5", 0.5)


@given(samples, st.randoms(use_true_random=False))
def test_tally_does_not_depend_on_the_order_of_samples(counted: list[tuple[str | None, float]], rng: Random) -> None:
    in_order = list(enumerate(counted))
    shuffled = sorted(in_order, key=lambda _: rng.random())
    one, other = Tally(AUTO), Tally(AUTO)
    for sample, (answer, probability) in in_order:
        one = one.add(sample, answer, probability)
    for sample, (answer, probability) in shuffled:
        other = other.add(sample, answer, probability)
    assert one == other
    assert (one.counts, one.winning_sample, one.agreement) == (other.counts, other.winning_sample, other.agreement)


@given(samples)
def test_tally_lists_each_answer_once_by_rank(counted: list[tuple[str | None, float]]) -> None:
    result = Tally(AUTO)
    for sample, (answer, probability) in enumerate(counted):
        result = result.add(sample, answer, probability)
    assert sum(count.count for count in result.counts) == sum(answer is not None for answer, _ in counted)
    assert len({count.form for count in result.counts}) == len(result.counts)
    ranks = [(-count.count, -count.probability_sum * (count.count > 1)) for count in result.counts]
    assert ranks == sorted(ranks)


def is_settled(counted: tuple[str | None, ...], remaining: int) -> bool:
    """Whether one answer leads alone in every possible continuation."""
    leaders = set()
    for rest in product((*LETTERS, "11"), repeat=remaining):
        counts = Counter(answer for answer in (*counted, *rest) if answer is not None).most_common(2)
        if not counts or (len(counts) > 1 and counts[0][1] == counts[1][1]):
            return False
        leaders.add(counts[0][0])
    return len(leaders) == 1


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_vote_fixed_is_decided_when_no_sample_can_change_the_winner(number: int) -> None:
    for length in range(number):
        for counted in product(LETTERS, repeat=length):
            is_decided = tally(*counted, votes=Votes(number, number)).is_decided
            assert is_decided is is_settled(counted, number - length), counted


def test_vote_needs_enough_samples_with_one_answer() -> None:
    needed = Votes(4, 4).needing(3)
    assert tally("5", "5", "7", "7", votes=needed).winner is None
    assert tally("5", "5", "7", "5", votes=needed).winner == Count("5", 3, 1.5, "5")
    assert [tally(*each, votes=needed).is_decided for each in (("5", "5"), ("5", "7"), ("5", "7", "9"))] == [
        *(False, False),
        True,  # no answer can have three votes
    ]
    assert [tally(*each).tied_answers for each in ([], ["5"], ["5", "7"], ["5", "7", "5"])] == [0, 0, 2, 0]


@pytest.mark.parametrize("counted", [("5", None, "7"), (None, None, None), ("5", "7", "9")])
def test_vote_is_decided_when_all_samples_are_counted(counted: tuple[str | None, ...]) -> None:
    assert tally(*counted, votes=Votes(3, 3)).is_decided
    assert tally(*counted, votes=Votes(2, 3)).is_decided


@pytest.mark.slow
def test_vote_lead_is_certain_at_a_beta_posterior_of_nine_tenths() -> None:
    for leader, runner_up in product(range(41), repeat=2):
        area = sum(
            comb(leader, k) * (-1) ** k * Fraction(1, 2) ** (runner_up + k + 1) / (runner_up + k + 1)
            for k in range(leader + 1)
        )
        posterior = area * factorial(leader + runner_up + 1) / (factorial(leader) * factorial(runner_up))
        assert is_lead_certain(leader, runner_up) is (posterior >= Fraction(9, 10)), (leader, runner_up)


def test_vote_adaptive_waits_for_its_minimum_of_answers() -> None:
    assert tally("5", "5", "5", votes=Votes(3, 16)).is_decided
    assert not tally("5", "5", "5", votes=Votes(4, 16)).is_decided
    assert tally("5", None, "5", None, "5", votes=Votes(3, 16)).is_decided
    assert not tally(None, None, None, votes=Votes(3, 16)).is_decided
    assert not tally("5", "5", "5", "5", "7", votes=Votes(3, 16)).is_decided
    assert tally("5", "5", votes=Votes(2, 3)).is_decided  # by the majority of the maximum


def test_vote_fixed_starts_all_samples_immediately() -> None:
    assert [tally(votes=Votes(8, 8)).missing_samples(running) for running in (0, 3, 8, 9)] == [8, 5, 0, 0]
    assert tally("5", "7", votes=Votes(8, 8)).missing_samples(1) == 5
    assert tally(*"555", votes=Votes(4, 4)).missing_samples(0) == 0


def test_vote_adaptive_starts_the_fewest_samples_that_could_decide() -> None:
    assert [Tally(AUTO).missing_samples(running) for running in (0, 2, 3)] == [3, 1, 0]
    assert tally("5", votes=AUTO).missing_samples(2) == 0
    assert tally(*"555", votes=AUTO).missing_samples(0) == 0
    assert [tally(*"557", votes=AUTO).missing_samples(running) for running in (0, 1, 3)] == [3, 2, 0]
    assert tally(None, None, None, votes=AUTO).missing_samples(0) == 3
    assert tally(*"55577799", votes=Votes(3, 9)).missing_samples(0) == 1


@given(bounds, st.lists(answers, min_size=24, max_size=24), st.data())
def test_vote_ends_within_its_maximum(votes: Votes, replies: list[str | None], data: st.DataObject) -> None:
    counted, running, started = Tally(votes), list[int](), 0
    while not counted.is_decided:
        missing = counted.missing_samples(len(running))
        running += range(started, started + missing)
        started += missing
        assert running and started <= votes.maximum
        sample = running.pop(data.draw(st.integers(0, len(running) - 1)))
        counted = counted.add(sample, replies[sample], 0.5)
    assert counted.missing_samples(len(running)) == 0
    assert counted.samples >= min(votes.minimum, votes.maximum // 2 + 1)


@given(bounds, st.lists(answers, max_size=24))
def test_vote_missing_samples_are_the_fewest_that_could_decide(votes: Votes, replies: list[str | None]) -> None:
    counted = tally(*replies[: votes.maximum], votes=votes)
    if counted.samples < votes.minimum or counted.is_decided:
        return
    leader = counted.winner.answer if counted.winner else "5"
    missing = counted.missing_samples(0)
    for more in range(1, missing + 1):
        counted = counted.add(counted.samples, leader, 0.5)
        assert counted.is_decided is (more == missing)
