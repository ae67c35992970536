"""Estimates and comparisons against brute force and statsmodels; the score, the report and its picture."""

import sys
from dataclasses import replace
from itertools import combinations, pairwise
from math import log
from pathlib import Path
from typing import Any

import pytest
from cases import rows
from command_line import PYTHON
from hypothesis import given, strategies as st

from cerebrum_cli.core.ask import Votes
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.eval.answered import Answered, Sample, Verdict, read_answered
from cerebrum_cli.eval.comparison import Changes, Comparison, compare, conclusion
from cerebrum_cli.eval.decisions import DecisionFigures, decision_figures
from cerebrum_cli.eval.estimates import estimate, mcnemar, mean, paired_interval, pass_at, vote_sizes
from cerebrum_cli.eval.plot import draw_report, require_picture, write_picture
from cerebrum_cli.eval.report import Report, summarize, vote_results
from cerebrum_cli.eval.scores import score
from cerebrum_cli.replies.tally import Program, Tally

ROW = {"id": 1, "prompt": "3 + 4?", "error": None}
SOURCE = 12345


def sample(answer: str | None, finish_reason: str = "stop") -> Verdict:
    """The score of a reply; 7 is correct."""
    return Verdict(answer, answer == "7", True, Sample(answer or "", finish_reason))


def row(*verdicts: Verdict, tokens: int = 10) -> Answered:
    samples = tuple(verdict.sample for verdict in verdicts if verdict.sample)
    return Answered(1, SOURCE, ("7",), samples=samples, completion_tokens=tokens, verdicts=verdicts)


def finished(text: str, **values: object) -> Answered:
    """The row of an object that asks for a sum, as the loop writes it."""
    object = {"text": text, "finish_reason": "stop", "votes": None, "completion_tokens": 9, "reference": "7"}
    return read_answered({**ROW, **object, **values}, SOURCE)


def decided(label: str, yes: float, first_word: str = "", **values: object) -> Answered:
    """The row of an object that was labelled, as `decide` writes it."""
    given = {"reference": label, "probability of yes": yes, "probability of no": 1 - yes, "first_word": first_word}
    return read_answered({**ROW, "answer": "yes", **given, **values}, SOURCE)


scores = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), min_size=1, max_size=50)


@given(st.integers(1, 2000), st.data())
def test_interval_of_single_samples_is_wilsons_as_in_statsmodels(n: int, data: st.DataObject) -> None:
    from statsmodels.stats.proportion import proportion_confint

    correct = data.draw(st.integers(0, n))
    found = estimate([1.0] * correct + [0.0] * (n - correct))
    assert found.interval == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)
    assert found.value == correct / n


@given(scores)
def test_interval_contains_the_mean_within_0_and_1(values: list[float]) -> None:
    low, high = estimate(values).interval
    assert 0 <= low <= mean(values) <= high <= 1
    assert low < high


def test_interval_of_nearly_equal_scores_is_near_that_of_equal_ones() -> None:
    equal, nearly = estimate([1.0] * 50).interval, estimate([1.0] * 49 + [0.875]).interval
    assert nearly.low == pytest.approx(equal.low, abs=0.003)
    assert estimate([0.0] * 49 + [0.125]).interval == pytest.approx((1 - nearly.high, 1 - nearly.low))


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


@pytest.mark.parametrize("n", [1, 4, 7])
def test_pass_at_equals_all_subsets_counted_one_by_one(n: int) -> None:
    for c in range(n + 1):
        values = [index < c for index in range(n)]
        for k in range(1, n + 1):
            assert pass_at(n, c, k) == pytest.approx(mean([any(subset) for subset in combinations(values, k)]))


def test_votes_are_reported_for_all_sizes_or_powers_of_two() -> None:
    assert [vote_sizes(samples) for samples in (1, 3, 12, 16)] == [[1], [1, 2, 3], [1, 2, 4, 8, 12], [1, 2, 4, 8, 16]]


RIGHT, WRONG, OTHER, SILENT = (row(sample(answer)) for answer in ("7", "8", "9", None))


def pair(both: int, lost: int, won: int, neither: int = 0) -> tuple[list[Answered], list[Answered]]:
    """Two runs of single samples: questions both have right, only the first, only the second, neither."""
    a = [RIGHT] * (both + lost) + [WRONG] * (won + neither)
    b = [RIGHT] * both + [WRONG] * lost + [RIGHT] * won + [WRONG] * neither
    return a, b


def changes(found: Comparison) -> Changes:
    assert found.changes
    return found.changes


def test_compare_counts_changes_and_flips() -> None:
    spelled = row(replace(sample("7"), answer="VII"))  # another form of a right answer is no flip
    a = [*[RIGHT] * 5, RIGHT, WRONG, WRONG, WRONG, WRONG, SILENT, WRONG, RIGHT]
    b = [*[RIGHT] * 5, WRONG, RIGHT, RIGHT, WRONG, OTHER, SILENT, SILENT, spelled]
    found = compare(a, b)
    assert (found.n, changes(found)) == (13, Changes(1, 2, mcnemar(1, 2), 5))
    assert (found.accuracy_a, found.accuracy_b) == pytest.approx((7 / 13, 8 / 13))
    assert found.difference == pytest.approx(1 / 13)
    assert not found.is_significant


def test_single_samples_differ_if_interval_and_mcnemar_agree() -> None:
    assert compare(*pair(20, 0, 6, 4)).is_significant
    five = compare(*pair(20, 0, 5, 5))
    assert five.interval.low > 0 and changes(five).p_value == 0.0625 and not five.is_significant


def test_compare_of_several_samples_uses_their_averages() -> None:
    a, b = [row(*map(sample, "7888"))] * 40, [row(*map(sample, "7788"))] * 40
    found = compare(a, b)
    assert (found.difference, found.is_significant, changes(found).flips) == (0.25, True, 40)
    assert changes(found).wrong_to_right == 40  # of two answers with as many votes, the first wins
    without = compare(a, b, votes=False)
    assert (without.difference, without.is_significant, without.changes) == (0.25, True, None)


@pytest.mark.parametrize(("counts", "words"), rows("conclusions"))
def test_conclusion_names_the_better_run(counts: tuple[int, int, int, int], words: str) -> None:
    assert conclusion(compare(*pair(*counts)), "A", "B").startswith(words)


def figures(*rows: Answered) -> DecisionFigures:
    return decision_figures(rows)


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
    rare, others = [decided("yes", 0.1)], [decided("no", 0.1)] * 10
    assert [*figures(*rare * 5, *others).warnings] == ["one-sided: yes for 0 of 15 rows; it is right for 5"]
    assert [*figures(*rare * 4, *others).warnings] == []
    assert [*figures(*rare * 9, *others, *[decided("yes", 0.9)] * 4).warnings] == []


def test_first_word_that_is_right_more_often_is_a_warning() -> None:
    warning = "the model's first word to the question as written is right more often: 2 of 2"
    assert [*figures(decided("no", 0.6, "no"), decided("yes", 0.6, "yes")).warnings] == [warning]
    assert [*figures(decided("no", 0.6, "yes"), decided("yes", 0.6, "yes")).warnings] == []


@pytest.fixture
def votes() -> Report:
    """A report of 20 questions with 4 samples each."""
    answers = ["7777", "7788", "7789", "8899", "7898"]
    return summarize([row(*map(sample, answers[number % 5]), tokens=40) for number in range(20)], 4)


def test_score_is_of_all_samples_that_were_generated() -> None:
    samples = [{"text": "The answer is 7.", "finish_reason": "stop"}, {"text": "Well,", "finish_reason": "length"}]
    refused = finished("", finish_reason=None, error={"type": "invalid_json", "message": "not JSON"})
    no_json = finished("{", finish_reason="length", error={"type": "incomplete_output", "message": "truncated"})
    rows = score([finished("It is 8."), refused, finished("", votes={"samples": samples}), no_json], "answer")
    assert [[each.answer for each in row.verdicts] for row in rows] == [["8"], ["7", None], [None]]
    assert [[each.is_correct for each in row.verdicts] for row in rows] == [[False], [True, False], [False]]
    assert [each.is_truncated for row in rows for each in row.verdicts] == [False, False, True, True]
    assert {(row.source, row.tokens) for row in rows} == {(SOURCE, 9)}


def test_any_of_several_right_answers_is_right() -> None:
    texts = ("It is 7.", "It is seven.", "It is 8.")
    found = [finished(text, reference=["7", "seven"]) for text in texts]
    for match in ("answer", "math"):
        assert [row.accuracy for row in score(found, match)] == [1.0, 1.0, 0.0]
    assert [row.accuracy for row in score([finished("seven", reference=["7", "seven"])], "exact")] == [1.0]
    assert found[0].reference == "7 or seven"


def test_score_of_decisions_compares_answers() -> None:
    failed: dict[str, Any] = {"answer": None, "error": {"type": "invalid_request", "message": "empty"}}
    asked = (decided("yes", 0.9), decided("yes", 0.9, answer=None), decided("no", 0.9), decided("yes", 0.9, **failed))
    rows = score(asked, "choice")
    assert [row.accuracy for row in rows] == [1.0, 1.0, 0.0]  # one that is left undecided has a likeliest choice, too


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
    tally, verdicts = Tally(Votes(8, 8, checks=True)), list[Verdict]()
    for reply, output in zip(case[::2], case[1::2], strict=True):
        answer, printed = (None if letter == "." else letter for letter in (reply, output))
        tally = tally.add(answer, answer is not None, Program("", printed))
        sample = Sample("", "stop", "", printed)
        verdicts.append(Verdict(answer, answer == "a", answer is not None, sample))
    scored = Answered(1, SOURCE, ("a",), verdicts=tuple(verdicts))
    won = vote_results(scored)[len(verdicts)]
    assert won.form == (tally.winner and tally.winner.form)
    assert (won.is_checked, won.is_correct) == (bool(tally.winner and tally.winner.is_checked), won.form == "a")


@pytest.mark.slow
def test_plot_takes_any_report_with_votes_and_writes_the_type_of_its_suffix(votes: Report, tmp_path: Path) -> None:
    title = f"$x$ and 日本語: {'a long name ' * 20}"  # no formula, and glyphs that the font lacks
    write_picture(tmp_path / "plot.png", draw_report(votes, title))
    write_picture(tmp_path / "plot.SVG", draw_report(replace(votes, votes=votes.votes[:1]), title))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (tmp_path / "plot.SVG").read_bytes().startswith(b"<?xml")
    with pytest.raises(UsageError, match="no votes to plot"):
        draw_report(replace(votes, votes=()), title)


def test_plot_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it cannot be imported
    with pytest.raises(UsageError, match="matplotlib") as error:
        require_picture(tmp_path / "plot.png")
    assert error.value.hint == f'{PYTHON} -m pip install "cerebrum-cli[eval]"'
