"""Measures of labelled decisions."""

from dataclasses import dataclass
from math import log

import pytest

from cerebrum_cli.decide.measures import Measures, calibration_error, measures_of, noise_floor


@dataclass(frozen=True, slots=True)
class Row:
    reference: str
    answer: str | None
    probabilities: dict[str, float]
    model: str = "tiny"


def row(label: str, yes: float) -> Row:
    return Row(label, "yes" if yes >= 0.5 else "no", {"yes": yes, "no": 1 - yes})


def measured(*rows: Row) -> Measures:
    measures = measures_of(rows)
    assert measures
    return measures


def test_log_loss_confusions_and_errors_by_sureness() -> None:
    found = measured(row("yes", 0.9), row("no", 0.8), row("no", 0.3), row("yes", 0.6))
    assert found.log_loss == pytest.approx(-(log(0.9) + log(0.2) + log(0.7) + log(0.6)) / 4)
    assert found.confusions == {("yes", "yes"): 2, ("no", "yes"): 1, ("no", "no"): 1}
    assert found.errors == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert (found.share_decided(0.05), found.share_decided(0.25)) == (0.25, 1.0)


def test_rows_that_are_equally_sure_are_decided_together() -> None:
    found = measured(row("yes", 0.9), row("yes", 0.7), row("no", 0.7), row("yes", 0.7), row("no", 0.6))
    assert found.errors == pytest.approx([0, 1 / 4, 1 / 4, 1 / 4, 2 / 5])
    assert (found.share_decided(0.1), found.share_decided(0.25)) == (0.2, 0.8)


def test_runs_without_probabilities_have_no_measures() -> None:
    assert measures_of([Row("yes", "yes", {})]) is None


def test_calibration_error_of_groups() -> None:
    assert calibration_error([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0.18)  # each row is a group
    probabilities = [0.6] * 50 + [0.9] * 50
    correct = [number % 5 < 3 for number in range(50)] + [number % 10 < 9 for number in range(50)]
    assert calibration_error(probabilities[::-1], correct[::-1]) == calibration_error(probabilities, correct)
    assert calibration_error(probabilities, correct) < 0.1
    assert calibration_error(probabilities, [False] * 100) == pytest.approx(0.75)


def test_noise_floor_falls_with_the_number_of_rows() -> None:
    floors = [noise_floor([0.7] * count) for count in (20, 200, 2000)]
    assert floors == sorted(floors, reverse=True)
    assert floors[0] > 0.1 and floors[2] < 0.05
    assert noise_floor([1.0] * 50) == 0
