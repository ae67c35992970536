"""The score and the report of finished rows, and its picture."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import PYTHON

from cerebrum_cli.core.ask import Votes
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.eval.estimates import estimate, mean
from cerebrum_cli.eval.plot import draw_report, require_picture, write_picture
from cerebrum_cli.eval.questions import ScoredQuestion, ScoredSample
from cerebrum_cli.eval.report import Report, summarize, vote_results
from cerebrum_cli.eval.run_rows import RunRow, read_row
from cerebrum_cli.eval.score import score
from cerebrum_cli.replies.tally import Program, Tally

PNG = b"\x89PNG\r\n\x1a\n"


def sample(answer: str | None, finish_reason: str = "stop", output: str | None = None) -> ScoredSample:
    """A scored reply; 7 is correct."""
    program = None if output is None else Program("", output)
    return ScoredSample(answer, answer == "7", True, finish_reason, program)


def row(*samples: ScoredSample, tokens: int = 10) -> ScoredQuestion:
    return ScoredQuestion(1, "d", "7", samples, tokens, 5 * len(samples))


@pytest.fixture
def votes() -> Report:
    """A report of 20 questions with 4 samples each."""
    answers = ["7777", "7788", "7789", "8899", "7898"]
    return summarize([row(*map(sample, answers[number % 5]), tokens=40) for number in range(20)], 4)


# The score.


def finished(text: str, **values: object) -> RunRow:
    """The object of a row that asks for a sum, as the loop writes it."""
    key = "1.1.0123456789abcdef0123"
    object = {"id": 1, "prompt": "3 + 4?", "text": text, "finish_reason": "stop", "votes": None, "error": None}
    return read_row({**object, "completion_tokens": 9, "reference": "7", "key": key, **values})


def test_score_is_of_all_samples_that_were_generated() -> None:
    samples = [{"text": "The answer is 7.", "finish_reason": "stop"}, {"text": "Well,", "finish_reason": "length"}]
    refused = finished("", finish_reason=None, error={"type": "invalid_json", "message": "not JSON"})
    no_json = finished("{", finish_reason="length", error={"type": "incomplete_output", "message": "truncated"})
    rows = score([finished("It is 8."), refused, finished("", votes={"samples": samples}), no_json], "answer")
    assert [[each.answer for each in row.samples] for row in rows] == [["8"], ["7", None], [None]]
    assert [[each.is_correct for each in row.samples] for row in rows] == [[False], [True, False], [False]]
    assert [each.is_truncated for row in rows for each in row.samples] == [False, False, True, True]
    assert {(row.digest, row.tokens) for row in rows} == {("0123456789abcdef0123", 9)}


def test_score_of_decisions_compares_answers() -> None:
    decided: JsonDict = {"id": 1, "prompt": "?", "answer": "yes", "probability": 0.9, "error": None}
    decided |= {"probability of yes": 0.9, "probability of no": 0.1, "reference": "yes"}
    decided["key"] = "1.1.0123456789abcdef0123"
    failed = {"answer": None, "error": {"type": "invalid_request", "message": "empty"}}
    rows = score(
        [read_row(decided | others) for others in ({}, {"answer": None}, {"reference": "no"}, failed)], "exact"
    )
    assert [row.accuracy for row in rows] == [1.0, 1.0, 0.0]  # one that is left undecided has a likeliest choice, too


# The report.


def test_report_has_votes_and_pass_at_of_every_size(votes: Report) -> None:
    maj = {vote.samples: vote.accuracy.value for vote in votes.votes}
    assert list(maj) == list(votes.pass_at) == [1, 2, 3, 4]
    assert votes.accuracy.value == votes.pass_at[1].value == mean([1.0, 0.5, 0.5, 0.0, 0.25])
    assert (maj[1], maj[4]) == (0.8, 0.6)  # of the first samples; the first answer wins a tie
    assert votes.pass_at[4].value == mean([1.0, 1.0, 1.0, 0.0, 1.0])
    assert all(one.value <= more.value for one, more in pairwise(votes.pass_at.values()))
    assert [vote.tokens for vote in votes.votes] == [10, 20, 30, 40]


def test_report_in_progress_votes_on_complete_questions_only() -> None:
    found = summarize([row(*map(sample, "787")), row(sample("7"), sample("7"))], 3)
    assert (found.n, found.accuracy.value) == (2, mean([2 / 3, 1.0]))
    assert [vote.accuracy for vote in found.votes] == [estimate([1.0])] * 3
    early = summarize([row(sample("7"))], 3)
    assert (early.votes, early.pass_at) == ((), {})


def test_report_tells_wrong_unanswered_and_truncated_apart() -> None:
    samples = [sample("7"), sample("8"), sample(None), sample(None, "length"), sample(None, "context")]
    samples += [sample("7", "length"), sample("8", "length")]  # they stated their answers before
    samples.append(replace(sample(None), is_correct=True))  # scored by its text
    found = summarize(list(map(row, samples)), 1)
    assert (found.accuracy.value, found.no_answer, found.truncated) == (3 / 8, 1 / 8, 2 / 8)


def test_repetition_votes_for_nothing() -> None:
    rows = row(sample("8", "repetition"), sample("8", "repetition"), sample("7"))
    assert [result.is_correct for result in vote_results(rows).values()] == [False, False, True]
    assert vote_results(row(sample("7", "repetition")))[1].is_correct


CASES = ("a.a.b.", "a.a.bb", "a.b.cb", "ab..", "acbc", "aabbb.", "...b", "abba", "aabb", "a.b.bbaa", "....", "abbccd")


@pytest.mark.parametrize("case", CASES)
def test_vote_of_a_run_wins_as_the_vote_of_a_command(case: str) -> None:
    tally, samples = Tally(Votes(8, 8, checks=True)), list[ScoredSample]()
    for reply, output in zip(case[::2], case[1::2], strict=True):
        answer, printed = (None if letter == "." else letter for letter in (reply, output))
        tally = tally.add(answer, answer is not None, Program("", printed))
        samples.append(ScoredSample(answer, answer == "a", answer is not None, "stop", Program("", printed)))
    scored = ScoredQuestion(1, "d", "a", tuple(samples), 10, 0)
    won = vote_results(scored)[len(samples)]
    assert won.form == (tally.winner and tally.winner.form)
    assert (won.is_checked, won.is_correct) == (bool(tally.winner and tally.winner.is_checked), won.form == "a")


def test_votes_count_tokens_of_replies_and_programs() -> None:
    rows = [
        row(sample("7", output="7"), sample("8"), tokens=20),
        row(sample("8", output="7"), sample("8", output="8"), tokens=20),
    ]
    costs = [
        (cost.kind, cost.samples, cost.accuracy.value, cost.tokens) for cost in summarize(rows, 2, checks=True).votes
    ]
    assert costs == [("maj", 1, 0.5, 10), ("maj", 2, 0.5, 20), ("checked", 1, 0.5, 15), ("checked", 2, 0.5, 30)]


# The picture.


@pytest.mark.slow
def test_plot_takes_any_report_and_writes_the_type_of_its_suffix(votes: Report, tmp_path: Path) -> None:
    title = f"$x$ and 日本語: {'a long name ' * 20}"  # no formula, and glyphs that the font lacks
    write_picture(tmp_path / "plot.png", draw_report(votes, title))
    write_picture(tmp_path / "plot.SVG", draw_report(replace(votes, votes=votes.votes[:1]), title))
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    assert (tmp_path / "plot.SVG").read_bytes().startswith(b"<?xml")


@pytest.mark.slow
def test_plot_refuses_what_it_cannot_draw(votes: Report, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no votes to plot"):
        draw_report(replace(votes, votes=()), "run")
    with pytest.raises(UsageError, match="missing does not exist"):
        require_picture(tmp_path / "missing" / "plot.png")


def test_plot_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it cannot be imported
    with pytest.raises(UsageError, match="matplotlib") as error:
        require_picture(tmp_path / "plot.png")
    assert error.value.hint == f'{PYTHON} -m pip install "cerebrum-cli[eval]"'
