"""Figures of labelled decisions."""

from math import log

import pytest

from cerebrum_cli.eval.decisions import DecisionFigures, decision_figures
from cerebrum_cli.eval.run_rows import RunRow, read_row

KNOWN = {"id": 1, "prompt": "?", "answer": "yes", "error": None, "key": "1.1.0123456789abcdef0123"}


def row(label: str, yes: float, first_word: str = "") -> RunRow:
    given = {"reference": label, "probability of yes": yes, "probability of no": 1 - yes, "first_word": first_word}
    return read_row({**KNOWN, **given})


def figures(*rows: RunRow) -> DecisionFigures:
    found = decision_figures(rows)
    assert found
    return found


def test_log_loss_confusions_and_errors_by_sureness() -> None:
    found = figures(row("yes", 0.9), row("no", 0.8), row("no", 0.3), row("yes", 0.6))
    assert found.log_loss == pytest.approx(-(log(0.9) + log(0.2) + log(0.7) + log(0.6)) / 4)
    assert found.confusions == {("yes", "yes"): 2, ("no", "yes"): 1, ("no", "no"): 1}
    assert found.errors == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert (found.share_decided(0.05), found.share_decided(0.25)) == (0.25, 1.0)


def test_rows_that_are_equally_sure_are_decided_together() -> None:
    found = figures(row("yes", 0.9), row("yes", 0.7), row("no", 0.7), row("yes", 0.7), row("no", 0.6))
    assert found.errors == pytest.approx([0, 1 / 4, 1 / 4, 1 / 4, 2 / 5])
    assert (found.share_decided(0.1), found.share_decided(0.25)) == (0.2, 0.8)


def test_choice_that_is_hardly_ever_given_makes_a_result_one_sided() -> None:
    rows = [row("yes", 0.1)] * 9 + [row("no", 0.1)] * 10
    assert [*figures(*rows, row("yes", 0.9)).warnings] == ["one-sided: yes for 1 of 20 rows; it is right for 10"]
    assert [*figures(*rows, *[row("yes", 0.9)] * 4).warnings] == []


def test_first_word_that_is_right_more_often_is_a_warning() -> None:
    warning = "the model's first word to the question as written is right more often: 2 of 2"
    assert [*figures(row("no", 0.6, "no"), row("yes", 0.6, "yes")).warnings] == [warning]
    assert [*figures(row("no", 0.6, "yes"), row("yes", 0.6, "yes")).warnings] == []


def test_rows_without_probabilities_have_no_figures() -> None:
    assert decision_figures([read_row({**KNOWN, "reference": "yes"})]) is None
