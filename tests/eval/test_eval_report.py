"""The report of an evaluation, its picture, and how far two quantizations are apart."""

import re
import sys
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import PYTHON

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.eval.estimates import Estimate, Interval, estimate, majorities, mean
from cerebrum_cli.eval.plot import plot_report
from cerebrum_cli.eval.questions import SKIPPED, Basis, Sample
from cerebrum_cli.eval.report import Report, report_object, summarize, votes_of
from cerebrum_cli.eval.report_tables import labeled_estimates
from cerebrum_cli.eval.running_score import EvalProgress, RunningScore
from cerebrum_cli.terminal.progress import BatchProgress
from cerebrum_cli.terminal.streams import Streams

EVAL = EvalProgress(24, 320, 3, 40, Estimate(0.5, Interval(0.2, 0.8)), 0.0, 0.25, 0)
PNG = b"\x89PNG\r\n\x1a\n"


def sample(id: int | str, number: int, answer: str | None, finish_reason: str = "stop", tokens: int = 10) -> Sample:
    """A scored reply; 7 is correct."""
    return Sample(id, number, "starter", 1, "", None, answer, "7", answer == "7", 0.5, finish_reason, tokens)


BASES: list[tuple[str, Basis]] = [("7", "stated"), ("7", "stated"), ("7", "guessed"), ("8", "guessed")]


def report_of(*run: Sample, samples: int = 1, seconds: float = 1.0) -> Report:
    return summarize("sums", run, samples, seconds)


@pytest.fixture
def votes() -> Report:
    """A report of 20 questions with 4 samples each, in no order."""
    answers = ["7777", "7788", "7789", "8899", "7898"]
    run = [sample(id, number, answers[id % 5][number]) for id in range(20) for number in range(4)]
    return report_of(*reversed(run), samples=4)


# The report.


def test_report_has_votes_and_pass_at_of_every_size(votes: Report) -> None:
    assert list(votes.maj) == list(votes.pass_at) == [1, 2, 3, 4]
    assert votes.maj[1].value == votes.pass_at[1].value == votes.accuracy.value == mean([1.0, 0.5, 0.5, 0.0, 0.25])
    assert votes.maj[4].value == mean([1.0, 1.0, 0.5, 0.0, 0.0])  # ties are split
    assert votes.pass_at[4].value == mean([1.0, 1.0, 1.0, 0.0, 1.0])
    assert all(one.value <= more.value for one, more in pairwise(votes.pass_at.values()))


def test_report_in_progress_votes_on_complete_questions_only() -> None:
    done = [sample(1, number, answer) for number, answer in enumerate("787")]
    found = report_of(*done, sample(2, 0, "7"), sample(2, 1, "7"), samples=3)
    assert (found.n, found.complete) == (2, 1)
    assert found.accuracy.value == mean([2 / 3, 1.0])
    votes = votes_of(done)
    assert {k: [each.value] for k, each in found.maj.items()} == majorities([votes])
    early = report_of(sample(2, 0, "7"), samples=3)
    assert (early.complete, early.maj, early.pass_at) == (0, {}, {})
    assert report_object(early)["maj"] == report_object(early)["pass_at"] == {}


def test_report_tells_wrong_unanswered_and_cut_off_apart() -> None:
    found = report_of(
        sample(1, 0, "7"),
        sample(2, 0, "8"),
        sample(3, 0, None),
        sample(4, 0, None, "length"),
        sample(5, 0, None, "context"),
        sample(6, 0, "7", "length"),  # it stated its answer before it was cut off
        sample(7, 0, "8", "length"),
        replace(sample(8, 0, None), correct=True),  # scored by its text
    )
    assert (found.accuracy.value, found.no_answer, found.cut_off) == (3 / 8, 1 / 8, 2 / 8)


def test_report_without_guesses_counts_them_as_wrong() -> None:
    run = [replace(sample(id, 0, answer), basis=basis) for id, (answer, basis) in enumerate(BASES)]
    found = report_of(*run)
    assert (found.accuracy.value, found.guessed) == (3 / 4, 2 / 4)
    assert found.without_guesses == estimate([1.0, 1.0, 0.0, 0.0], range(4))
    assert report_object(found)["accuracy_without_guesses"] == 0.5
    assert "accuracy, guesses as wrong" in dict(labeled_estimates(found))
    stated = report_of(*run[:2])
    assert stated.without_guesses == stated.accuracy
    assert "accuracy, guesses as wrong" not in dict(labeled_estimates(stated))
    assert "accuracy_without_guesses" not in report_object(report_of(sample(1, 0, "7")))


# The score of a run in progress.


def accuracy_of(score: RunningScore) -> float:
    assert score.event.estimate
    return score.event.estimate.value


def test_score_counts_questions_with_all_their_samples() -> None:
    score = RunningScore(questions=3, samples=2)
    assert score.event == EvalProgress(0, 6, 0, 3, None, 0.0, 0.0, 0)
    for id, number, answer in ((1, 1, "7"), (2, 0, "7"), (2, 1, "8")):
        score.add(sample(id, number, answer))
    assert (score.done, score.event.total, score.questions, accuracy_of(score)) == (3, 6, 1, 0.5)
    score.add(sample(1, 0, "7"))
    assert (score.questions, accuracy_of(score)) == (2, 0.75)
    assert score.event == EvalProgress(4, 6, 2, 3, estimate([0.5, 1.0], [1, 2]), 0.0, 0.0, 0)


@pytest.mark.parametrize(("columns", "bar"), [(120, "━+"), (70, "")])
def test_eval_line_has_a_bar_where_there_is_room(columns: int, bar: str) -> None:
    progress = BatchProgress(Streams(StringIO(), StringIO(), None, False, False, False), draws=False)
    for event in (replace(EVAL, done=0), EVAL):
        progress.emit(event)
    drawn = "".join(text for text, _ in progress.render(columns))
    assert re.fullmatch(r" 3/40 0:00 left accuracy 0\.500 \(0\.200 to 0\.800\), 25% truncated " + bar, drawn)
    assert len(drawn) <= columns


def test_score_shares_excludes_skipped_samples() -> None:
    score = RunningScore(questions=5, samples=1)
    for each in (sample(1, 0, "7"), sample(2, 0, None), sample(3, 0, None, "length"), sample(4, 0, None, SKIPPED)):
        score.add(each)
    assert (score.done, score.skipped, score.questions, accuracy_of(score)) == (4, 1, 4, 1 / 3)
    assert (score.event.no_answer, score.event.cut_off) == (1 / 3, 1 / 3)
    score.add(replace(sample(5, 0, None), correct=True))  # scored by its text
    assert score.event.no_answer == 1 / 4


# The picture.


@pytest.mark.slow
def test_plot_takes_any_report_and_writes_the_type_of_its_suffix(votes: Report, tmp_path: Path) -> None:
    odd = replace(votes, model="$x$ and 日本語", tokens_per_answer=0.0, chance=0.25, task="a long name " * 20)
    plot_report(odd, tmp_path / "plot.png")  # no formula, and glyphs that the font lacks
    plot_report(replace(odd, maj={1: votes.maj[1]}), tmp_path / "plot.SVG")
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    assert (tmp_path / "plot.SVG").read_bytes().startswith(b"<?xml")


@pytest.mark.slow
def test_plot_refuses_what_it_cannot_draw(votes: Report, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unsupported image format") as error:
        plot_report(votes, tmp_path / "plot.jpg")
    assert ".png or .svg" in error.value.hint
    with pytest.raises(UsageError, match="no votes to plot") as error:
        plot_report(replace(votes, maj={}), tmp_path / "plot.png")
    with pytest.raises(CerebrumError, match="No such file"):
        plot_report(votes, tmp_path / "missing" / "plot.png")


def test_plot_without_matplotlib_names_the_extra(
    votes: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import of it raises ModuleNotFoundError
    with pytest.raises(UsageError, match="matplotlib") as error:
        plot_report(votes, tmp_path / "plot.png")
    assert error.value.hint == f'{PYTHON} -m pip install "cerebrum-cli[eval]"'
    assert list(tmp_path.iterdir()) == []
