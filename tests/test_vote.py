"""A vote has the winner its chains make, whichever finishes first, and stops when no more are needed."""

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
chains = st.lists(st.tuples(answers, st.floats(0, 1)), max_size=12)
bounds = st.tuples(st.integers(1, 24), st.integers(1, 24)).map(sorted).map(lambda pair: Votes(*pair))


def ballot(*cast: str | None, votes: Votes | None = None, probability: float = 0.5) -> Tally:
    """Return a ballot with these answers, by samples in this order."""
    result = Tally(votes or Votes(16, 16))
    for sample, answer in enumerate(cast):
        result = result.add(sample, answer, probability)
    return result


@pytest.mark.parametrize(
    ("text", "votes", "adaptive"),
    [
        *(("8", Votes(8, 8), False), ("1", Votes(1, 1), False), ("256", Votes(256, 256), False)),
        *(("auto", Votes(3, 16), True), ("auto:2..5", Votes(2, 5), True), ("auto:4..4", Votes(4, 4), False)),
    ],
)
def test_votes_are_a_number_or_bounds(text: str, votes: Votes, adaptive: bool) -> None:
    assert parse_votes(text) == votes
    assert votes.is_adaptive is adaptive


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "-1", "257", "9999", "1" * 5000, "8.0", " 8", "٨", "auto:", "auto:5", "auto:5..3", "auto:0..3"),
        *("auto:3..257", "auto:3-16", "AUTO", "3..16", "many", "8\n"),
    ],
)
def test_other_votes_are_refused_with_what_is_possible(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_votes(text)
    assert repr(text) in error.value.message
    assert f"1 to {MAX_VOTES}" in error.value.hint and "auto:3..16" in error.value.hint


def test_answers_that_mean_the_same_are_counted_together_and_shown_as_written_most() -> None:
    cast = ballot("80%", "7", "4/5", "0.8", "0.8", None)
    assert cast.counts == (Count("0.8", 4, 2.0, "4/5"), Count("7", 1, 0.5, "7"))
    assert cast.winner == cast.counts[0]
    assert cast.agreement == 4 / 6
    assert cast.samples == 6


def test_of_ways_to_write_it_equally_often_the_first_is_shown() -> None:
    assert [count.answer for count in ballot("80%", "0.8").counts] == ["80%"]


def test_equal_counts_go_to_the_more_probable_and_then_to_the_first() -> None:
    even = Tally(Votes(4, 4)).add(0, "5", 0.2).add(1, "7", 0.3)
    assert [count.answer for count in even.counts] == ["7", "5"]
    assert [count.answer for count in ballot("5", "7").counts] == ["5", "7"]


def test_the_sample_to_show_is_the_winners_most_probable_and_of_equals_the_first() -> None:
    cast = Tally(Votes(4, 4)).add(0, "5", 0.2).add(1, "7", 0.9).add(2, "5.0", 0.6).add(3, "five", 0.6)
    assert cast.winning_sample == 2


def test_chains_without_an_answer_never_win() -> None:
    assert ballot(None, None, "5").winner == Count("5", 1, 0.5, "5")
    none = ballot(None, None)
    assert (none.winner, none.winning_sample, none.agreement, none.counts, none.samples) == (None, None, 0.0, (), 2)


def test_an_empty_ballot_has_no_winner_and_is_not_decided() -> None:
    empty = Tally(AUTO)
    assert (empty.winner, empty.winning_sample, empty.agreement, empty.is_decided) == (None, None, 0.0, False)


def test_a_sample_is_cast_once() -> None:
    with pytest.raises(ValueError, match="sample 1"):
        ballot("5", "7").add(1, "5", 0.5)


def test_a_ballot_stays_as_it_is_when_a_chain_is_cast() -> None:
    first = ballot("5")
    assert first.add(1, "7", 0.5) != first == ballot("5")


@given(chains, st.randoms(use_true_random=False))
def test_the_outcome_is_the_same_whichever_chain_finishes_first(
    cast: list[tuple[str | None, float]], rng: Random
) -> None:
    in_order = list(enumerate(cast))
    shuffled = sorted(in_order, key=lambda _: rng.random())
    one, other = Tally(AUTO), Tally(AUTO)
    for sample, (answer, probability) in in_order:
        one = one.add(sample, answer, probability)
    for sample, (answer, probability) in shuffled:
        other = other.add(sample, answer, probability)
    assert one == other
    assert (one.counts, one.winning_sample, one.agreement) == (other.counts, other.winning_sample, other.agreement)


@given(chains)
def test_the_tally_holds_every_answer_once_and_the_best_first(cast: list[tuple[str | None, float]]) -> None:
    result = Tally(AUTO)
    for sample, (answer, probability) in enumerate(cast):
        result = result.add(sample, answer, probability)
    assert sum(count.count for count in result.counts) == sum(answer is not None for answer, _ in cast)
    assert len({count.form for count in result.counts}) == len(result.counts)
    ranks = [(-count.count, -count.probability_sum) for count in result.counts]
    assert ranks == sorted(ranks)


def is_settled(cast: tuple[str | None, ...], out: int) -> bool:
    """Tell, by trying every way it may go on, whether one answer leads alone in all of them."""
    leaders = set()
    for rest in product((*LETTERS, "11"), repeat=out):
        counts = Counter(answer for answer in (*cast, *rest) if answer is not None).most_common(2)
        if not counts or (len(counts) > 1 and counts[0][1] == counts[1][1]):
            return False
        leaders.add(counts[0][0])
    return len(leaders) == 1


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_fixed_number_is_decided_exactly_when_no_chain_can_change_the_winner(number: int) -> None:
    for length in range(number):
        for cast in product(LETTERS, repeat=length):
            assert ballot(*cast, votes=Votes(number, number)).is_decided is is_settled(cast, number - length), cast


@pytest.mark.parametrize("cast", [("5", None, "7"), (None, None, None), ("5", "7", "9")])
def test_a_ballot_with_all_its_chains_is_decided_however_they_split(cast: tuple[str | None, ...]) -> None:
    assert ballot(*cast, votes=Votes(3, 3)).is_decided
    assert ballot(*cast, votes=Votes(2, 3)).is_decided


@pytest.mark.parametrize(
    ("leader", "runner_up", "sure"),
    [
        (2, 0, False),
        (3, 0, True),
        (4, 1, False),
        (5, 1, True),
        (6, 2, True),
        (5, 2, False),
        (0, 0, False),
        (4, 4, False),
    ],
)
def test_a_lead_is_sure_at_nine_tenths(leader: int, runner_up: int, sure: bool) -> None:
    assert is_lead_certain(leader, runner_up) is sure


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_lead_is_as_sure_as_the_integral_of_its_beta_density_says(leader: int, runner_up: int) -> None:
    area = sum(
        comb(leader, k) * (-1) ** k * Fraction(1, 2) ** (runner_up + k + 1) / (runner_up + k + 1)
        for k in range(leader + 1)
    )
    posterior = area * factorial(leader + runner_up + 1) / (factorial(leader) * factorial(runner_up))
    assert is_lead_certain(leader, runner_up) is (posterior >= Fraction(9, 10))


def test_an_adaptive_vote_waits_for_its_least_and_counts_no_chain_without_an_answer() -> None:
    assert ballot("5", "5", "5", votes=Votes(3, 16)).is_decided
    assert not ballot("5", "5", "5", votes=Votes(4, 16)).is_decided
    assert ballot("5", None, "5", None, "5", votes=Votes(3, 16)).is_decided
    assert not ballot(None, None, None, votes=Votes(3, 16)).is_decided
    assert not ballot("5", "5", "5", "5", "7", votes=Votes(3, 16)).is_decided


def test_a_majority_of_the_most_decides_an_adaptive_vote_too() -> None:
    assert ballot("5", "5", votes=Votes(2, 3)).is_decided


def test_a_fixed_number_is_wanted_at_once() -> None:
    assert [ballot(votes=Votes(8, 8)).missing_samples(running) for running in (0, 3, 8, 9)] == [8, 5, 0, 0]
    assert ballot("5", "7", votes=Votes(8, 8)).missing_samples(1) == 5
    assert ballot(*"555", votes=Votes(4, 4)).missing_samples(0) == 0


def test_an_adaptive_vote_wants_its_least_and_then_as_few_as_could_decide_it() -> None:
    assert [Tally(AUTO).missing_samples(running) for running in (0, 2, 3)] == [3, 1, 0]
    assert ballot("5", votes=AUTO).missing_samples(2) == 0
    assert ballot(*"555", votes=AUTO).missing_samples(0) == 0
    assert [ballot(*"557", votes=AUTO).missing_samples(running) for running in (0, 1, 3)] == [3, 2, 0]
    assert ballot(None, None, None, votes=AUTO).missing_samples(0) == 3
    assert ballot(*"55577799", votes=Votes(3, 9)).missing_samples(0) == 1


@given(bounds, st.lists(answers, min_size=24, max_size=24), st.data())
def test_a_vote_ends_and_never_runs_more_than_its_most(
    votes: Votes, said: list[str | None], data: st.DataObject
) -> None:
    cast, running, started = Tally(votes), list[int](), 0
    while not cast.is_decided:
        wanted = cast.missing_samples(len(running))
        running += range(started, started + wanted)
        started += wanted
        assert running and started <= votes.maximum
        sample = running.pop(data.draw(st.integers(0, len(running) - 1)))
        cast = cast.add(sample, said[sample], 0.5)
    assert cast.missing_samples(len(running)) == 0
    assert cast.samples >= min(votes.minimum, votes.maximum // 2 + 1)


@given(bounds, st.lists(answers, max_size=24))
def test_what_is_wanted_is_the_least_that_could_decide_it(votes: Votes, said: list[str | None]) -> None:
    cast = ballot(*said[: votes.maximum], votes=votes)
    if cast.samples < votes.minimum or cast.is_decided:
        return
    leader = cast.winner.answer if cast.winner else "5"
    wanted = cast.missing_samples(0)
    for more in range(1, wanted + 1):
        cast = cast.add(cast.samples, leader, 0.5)
        assert cast.is_decided is (more == wanted)


def test_the_largest_vote_is_counted_in_a_moment() -> None:
    cast = ballot(*(("5", "7") * 100), votes=Votes(3, MAX_VOTES))
    assert 0 < cast.missing_samples(0) < 30
