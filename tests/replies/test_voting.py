"""Majority votes: the tally of samples, its winner, when a vote is decided; votes of `ask`, on a scripted model."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import comb, factorial
from pathlib import Path
from typing import Any

import pytest
from asking import running_engine
from cases import rows
from command_line import Finished
from hypothesis import given, strategies as st
from installations import model_on
from scripted_backend import ScriptedBackend, ScriptedSampler
from scripted_command import backend_for, run_here
from templates import chosen_format

from cerebrum_cli.core.ask import AUTO, MAX_VOTES, Ask, Votes, parse_votes
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import GrammarError, UsageError
from cerebrum_cli.core.events import Event, FinishEvent, PromptEvent, TallyEvent
from cerebrum_cli.core.settings import fold
from cerebrum_cli.replies.concurrent_rows import vote_events
from cerebrum_cli.replies.interface import Model
from cerebrum_cli.replies.majority_vote import MajorityVote
from cerebrum_cli.replies.tally import Count, Program, Tally, comes_to, is_lead_certain

LETTERS = ("5", "7", "9", None)
answers = st.sampled_from(("5", "5.0", "five", "7", "7 apples", "9", "yes", None))
bounds = st.tuples(st.integers(1, 24), st.integers(1, 24)).map(sorted).map(lambda pair: Votes(pair[0], pair[1]))


def tally(*counted: str | None, votes: Votes | None = None) -> Tally:
    """Tally of these answers, one per sample."""
    result = Tally(votes or Votes(16, 16))
    for answer in counted:
        result = result.add(answer)
    return result


def tally_of(letters: str, votes: Votes | None = None) -> Tally:
    """Tally of answers of a letter each, of which a space is none."""
    return tally(*(None if letter == " " else letter for letter in letters), votes=votes)


def test_vote_keeps_different_equations_apart() -> None:
    circles = {"(x-1)^2+(y+2)^2=9": "x^2+y^2=9"}
    for first, second in {**circles, "2x+3y=6": "3x+2y=6", "xy=12": "12", "2Mg + O2 = 2MgO": "2"}.items():
        assert [count.count for count in tally(first, second, first, votes=Votes(3, 3)).counts] == [2, 1], first


def test_votes_parse_a_number_or_bounds() -> None:
    assert [parse_votes(text) for text in ("8", "1", "256")] == [Votes(8, 8), Votes(1, 1), Votes(256, 256)]
    adaptive = [parse_votes(text) for text in ("auto", "auto:2..5", "auto:4..4")]
    assert adaptive == [Votes(3, 16), Votes(2, 5), Votes(4, 4)]


INVALID = ("", "0", "-1", "257", "9999", "1" * 5000, "8.0", " 8", "8\n", "٨", "AUTO", "3..16", "many")
INVALID_BOUNDS = ("", "5", "5..3", "0..3", "3..257", "3-16")


@pytest.mark.parametrize("text", [*INVALID, *(f"auto:{bounds}" for bounds in INVALID_BOUNDS)])
def test_votes_refuse_other_text_with_the_valid_forms(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_votes(text)
    assert repr(text) in error.value.message
    assert f"1 to {MAX_VOTES}" in error.value.hint and "auto:3..16" in error.value.hint


def test_tally_counts_equivalent_answers_together() -> None:
    counted = tally("80", "7", "80 dollars", "80%", "80%", None)
    assert counted.counts == (Count("80%", 4, "80", replies=4), Count("7", 1, "7", replies=1))
    assert counted.winner == counted.counts[0]
    assert (counted.agreement, counted.samples) == (4 / 6, 6)
    assert [count.answer for count in tally("4/5", "0.8").counts] == ["4/5"]  # the first of equally frequent ones


def test_tally_breaks_ties_by_order() -> None:
    even = tally("7", "5", "5", "7")
    assert [count.answer for count in even.counts] == ["7", "5"]
    assert (even.winning_sample, even.counts[0]) == (0, Count("7", 2, "7", replies=2))


def test_tally_prefers_stated_answers_among_equally_many() -> None:
    guessed = tally("5", "5", "7")
    found = guessed.add("7", is_stated=True)
    assert ([count.answer for count in found.counts], found.tied) == (["7", "5"], ())
    assert [count.answer for count in found.add("5").counts] == ["5", "7"]


@pytest.mark.parametrize(
    ("counted", "tied"), [("", 0), ("5", 0), ("575", 0), ("5797", 0), ("5755 7", 0), ("57", 2), ("57795", 2)]
)
def test_tally_lists_the_tied_leaders(counted: str, tied: int) -> None:
    assert len(tally_of(counted).tied) == tied


def test_tally_samples_without_an_answer_never_win() -> None:
    assert tally(None, None, "5").winner == Count("5", 1, "5", replies=1)
    for none in (tally(None, None), Tally(AUTO)):
        assert (none.winner, none.winning_sample, none.agreement, none.counts) == (None, None, 0.0, ())
        assert not none.is_decided


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


@pytest.mark.slow
def test_vote_lead_is_certain_at_a_beta_posterior_of_nine_tenths() -> None:
    for leader, runner_up in product(range(41), repeat=2):
        terms = [comb(leader, k) * Fraction(-1, 2) ** k / (runner_up + k + 1) for k in range(leader + 1)]
        area = sum(terms) * Fraction(1, 2) ** (runner_up + 1)
        posterior = area * factorial(leader + runner_up + 1) / (factorial(leader) * factorial(runner_up))
        assert is_lead_certain(leader, runner_up) is (posterior >= Fraction(9, 10)), (leader, runner_up)


@pytest.mark.parametrize(
    ("counted", "votes", "missing"),
    [
        *(("", Votes(8, 8), 8), ("57", Votes(8, 8), 6), ("555", Votes(4, 4), 0), ("5 7", Votes(3, 3), 0)),
        *(("   ", Votes(2, 3), 0), ("579", Votes(2, 3), 0), ("55", Votes(2, 3), 0)),  # by the majority of the maximum
        *(("", AUTO, 3), ("5", AUTO, 2), ("555", AUTO, 0), ("557", AUTO, 3), ("   ", AUTO, 3), ("5 5 5", AUTO, 0)),
        *(("55557", AUTO, 1), ("555", Votes(4, 16), 1), ("55577799", Votes(3, 9), 1)),
    ],
)
def test_vote_starts_the_fewest_samples_that_could_decide(counted: str, votes: Votes, missing: int) -> None:
    found = tally_of(counted, votes)
    assert (found.missing_samples, found.is_decided) == (missing, missing == 0)


@given(bounds, st.lists(answers, min_size=24, max_size=24))
def test_vote_ends_within_its_maximum(votes: Votes, replies: list[str | None]) -> None:
    counted = Tally(votes)
    while missing := counted.missing_samples:
        assert not counted.is_decided and counted.samples + missing <= votes.maximum
        for answer in replies[counted.samples : counted.samples + missing]:
            counted = counted.add(answer)
    assert counted.is_decided and counted.samples >= min(votes.minimum, votes.maximum // 2 + 1)


# Samples with programs: two letters each, the answer of the reply and the output of its program; a dot is none.


def checked_tally(counted: str, votes: Votes) -> Tally:
    result = Tally(votes)
    for reply, output in zip(counted[::2], counted[1::2], strict=True):
        program = Program("", None if output == "." else output)
        result = result.add(None if reply == "." else reply, is_stated=True, program=program)
    return result


@pytest.mark.parametrize(
    ("counted", "winner", "count", "sample", "is_checked"),
    [
        *(("a.a.b.", "a", 2, 0, False), ("a.a.bb", "b", 1, 2, True), ("a.b.cb", "b", 2, 1, True)),
        *(("ab..", "a", 1, 0, False), ("acbc", "c", 2, 0, False), ("acbc..", "c", 2, 0, False)),
        *(("aabbb.", "b", 2, 1, True), ("aab.b.", "a", 1, 0, True), ("...b", "b", 1, 1, False)),
        *(("a.bbab", "b", 2, 1, True), ("abba", "a", 2, 0, True)),
    ],
)
def test_vote_counts_replies_and_programs_and_prefers_what_both_come_to(
    counted: str, winner: str, count: int, sample: int, is_checked: bool
) -> None:
    found = checked_tally(counted, Votes(8, 8, checks=True))
    won = found.winner
    assert won and (won.answer, won.count, found.winning_sample, won.is_checked) == (winner, count, sample, is_checked)


def test_vote_takes_the_output_of_a_program_as_the_reply_writes_it() -> None:
    found = Tally(Votes(4, 4, checks=True))
    outputs = {"$18.00": "18", "1/6": str(1 / 6), "5": "2.0000000000000004", "2": "x", "9": "None"}
    for answer, output in outputs.items():
        found = found.add(answer, program=Program("", output))
    counts = [("2", 1, 1), ("$18.00", 1, 1), ("1/6", 1, 1), ("x", 0, 1), ("5", 1, 0), ("9", 1, 0)]
    assert [(count.answer, count.replies, count.programs) for count in found.counts] == counts


@pytest.mark.slow
def test_vote_with_checks_is_decided_only_when_no_sample_can_change_the_winner() -> None:
    votes, samples = Votes(4, 4, checks=True), ["".join(pair) for pair in product("ab.", "ab.")]
    decided = 0
    for length in range(1, 4):
        for first in product(samples, repeat=length):
            counted = "".join(first)
            if checked_tally(counted, votes).is_decided:
                ends = [checked_tally(counted + "".join(rest), votes) for rest in product(samples, repeat=4 - length)]
                assert len({end.winner and end.winner.answer for end in ends}) == 1, counted
                assert not any(end.tied and end.winner for end in ends), counted
                decided += 1
    assert decided > 100


def test_vote_with_checks_stops_early_when_checked_samples_agree() -> None:
    votes = Votes(3, 16, checks=True)
    cases = ("aaaaaa", "a.a.a.", "a.a.a.aa", "aaaaaa.b", "aaaaaabb")
    assert [checked_tally(counted, votes).is_decided for counted in cases] == [True, False, True, False, False]
    missing = {"": 3, "a.a.a.": 3, "a.a.aa": 0, "aaaabb": 3}
    assert {counted: checked_tally(counted, votes).missing_samples for counted in missing} == missing


@pytest.mark.parametrize(("answer", "output", "agrees"), rows("program_outputs"))
def test_program_comes_to_an_answer(answer: str, output: str, agrees: bool) -> None:
    assert comes_to(output, answer) is agrees


# Votes on a model.

LONG = "".join(f"{chr(97 + n // 10)}{chr(107 + n % 10)}" for n in range(100))  # without a cycle


def reply(answer: object, before: str = "") -> str:
    return f"{before}The answer is {answer}."


Vote = Callable[..., tuple[Finished, ScriptedBackend]]


@pytest.fixture
def vote(tmp_path: Path, chatml_model: Path) -> Vote:
    """A function that asks with --seed 0, so that samples are in the order of the replies; also returns the model."""

    def ask(votes: str, replies: list[str], *options: str) -> tuple[Finished, ScriptedBackend]:
        script: dict[str, Any] = {"rows": {}, "seeds": replies, "backends": []}
        done = run_here(script, tmp_path, "ask", "q", "-m", chatml_model, "--seed", "0", "--votes", votes, *options)
        return done, script["backends"][-1]

    return ask


def test_vote_counts_a_failed_sample_as_one_without_an_answer(vote: Vote, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [reply(5), reply(4), reply(5), reply(4)]
    sample = ScriptedSampler.sample

    def rejecting(sampler: ScriptedSampler, row: int) -> int:
        if sampler.seed in failing:
            raise GrammarError("no token is allowed", "check the grammar")
        return sample(sampler, row)

    monkeypatch.setattr(ScriptedSampler, "sample", rejecting)
    failing = {0, 2}
    done, _ = vote("4", replies)
    assert (done.code, done.out) == (0, reply(4) + "\n")
    assert done.err == "note: 2 of 4 samples failed: no token is allowed\n      check the grammar\n"
    failing = {0, 1, 2, 3}
    done, _ = vote("4", replies)
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("no token is allowed\n hint: check the grammar\n")


def test_vote_stops_samples_that_cannot_change_the_outcome(vote: Vote) -> None:
    longest = reply(5, LONG * 10)
    done, backend = vote("5", [reply(4), reply(4), reply(4), longest, longest], "--json")
    early = done.object["votes"]
    assert [sample["seed"] for sample in early["samples"]] == [0, 1, 2]
    assert (early["sample_count"], early["agreement"], early["winner"]) == (3, 1.0, "4")
    assert len(backend.steps) < len(longest) / 4  # running samples are not completed


def events_of(
    replies: list[str], votes: str, on_tally: Callable[[Model], object] = lambda _: None
) -> tuple[MajorityVote, list[Event]]:
    """Run a vote on an engine, collect its events, and call `on_tally` for each TallyEvent."""
    running, seen = MajorityVote(parse_votes(votes)), list[Event]()
    backend = backend_for({"rows": {}, "seeds": replies}, running.tally.votes.maximum)
    request = Ask(Conversation().user("q"), fold({"seed": 0, "temperature": 0.7, "system": "S"}))
    with running_engine(backend) as engine:
        model = model_on(engine, chosen_format("cerebrum"))
        for event in vote_events(model, request, running):
            seen.append(event)
            if isinstance(event, TallyEvent):
                on_tally(model)
    return running, seen


def test_vote_yields_a_tally_event_per_change() -> None:
    _, seen = events_of([reply(4), reply(5, "zzz "), "no idea", reply(5, LONG)], "4")
    tallies = [event for event in seen if isinstance(event, TallyEvent)]
    assert tallies == [
        TallyEvent((("4", 1),), 1, 4, 4),  # "no idea" finishes first, and waits for the samples before it
        TallyEvent((("4", 1), ("5", 1)), 3, 4, 4),
        TallyEvent((("5", 2), ("4", 1)), 4, 4, 4),
    ]
    finished = [event.sequence.sample for event in seen if isinstance(event, FinishEvent)]
    assert sorted(finished) == [0, 1, 2, 3]
    assert any(isinstance(event, PromptEvent) for event in seen)


def test_cancelled_vote_keeps_its_tally() -> None:
    ended, seen = events_of([reply(4), *[reply(5, LONG)] * 4], "5", Model.cancel)
    assert (ended.tally.winner and ended.tally.winner.answer, ended.is_over, ended.running) == ("4", False, 0)
    assert ended.reply and ended.reply.text == reply(4)
    reasons = [event.reason for event in seen if isinstance(event, FinishEvent)]
    assert sorted(reasons) == ["cancelled"] * 4 + ["stop"]
