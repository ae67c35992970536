"""Whether new rows differ from labelled ones."""

import numpy
import pytest
from scipy.stats import binom

from cerebrum_cli.trust.calibration import CalibrationKey, LabelledDecision, calibrate_decisions
from cerebrum_cli.trust.shift import SeenRows


def seen(*groups: tuple[float, str | None, int]) -> SeenRows:
    """As many rows with each probability and answer."""
    rows = SeenRows()
    for probability, choice, count in groups:
        for _ in range(count):
            rows.add(probability, choice)
    return rows


def test_shift_of_the_mean_probability() -> None:
    labelled = seen((0.9, None, 80), (0.6, None, 20))
    found = seen((0.9, None, 500), (0.6, None, 500)).shift_from(labelled)
    assert found is not None and found.what == "probability"
    assert (found.labelled_mean, found.new_mean) == pytest.approx((0.84, 0.75))
    assert found.p_value <= 0.005
    assert seen((0.9, None, 800), (0.6, None, 200)).shift_from(labelled) is None


def test_shift_of_the_shares_of_choices() -> None:
    labelled = seen((0.9, "yes", 70), (0.9, "no", 30))
    found = seen((0.9, "yes", 300), (0.9, "no", 700)).shift_from(labelled)
    assert found is not None and found.what == "choices"
    assert seen((0.9, "yes", 690), (0.9, "no", 310)).shift_from(labelled) is None


def test_shift_to_a_choice_that_was_never_labelled() -> None:
    labelled = seen((0.9, "yes", 70), (0.9, "no", 30))
    found = seen((0.9, "yes", 40), (0.9, "other", 60)).shift_from(labelled)
    assert found is not None and found.what == "choices"


@pytest.mark.parametrize("few", [seen(), seen((0.2, "no", 1)), seen((0.2, "no", 2))])
def test_too_few_rows_do_not_differ(few: SeenRows) -> None:
    labelled = seen((0.9, "yes", 7), (0.8, "no", 3))
    assert few.shift_from(labelled) is None
    assert labelled.shift_from(few) is None


def test_rows_that_are_all_alike_do_not_differ() -> None:
    assert seen((0.9, "yes", 500)).shift_from(seen((0.9, "yes", 50))) is None


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [5, 40])
def test_rows_alike_rarely_seem_to_differ(labelled: int) -> None:
    """At most 1% of draws; the answers of both kinds of rows are skewed."""
    random = numpy.random.default_rng(1)
    draws, alarms = 200, 0
    for _ in range(draws):
        both = []
        for count in (labelled, 3 * labelled):
            rows = SeenRows()
            for probability, choice in zip(random.beta(8, 1, count), random.geometric(0.6, count), strict=True):
                rows.add(float(probability), int(choice))
            both.append(rows)
        alarms += both[1].shift_from(both[0]) is not None
    assert alarms <= binom.ppf(0.999, draws, 0.01)


def test_calibration_compares_with_the_rows_that_did_not_fit_its_map() -> None:
    key = CalibrationKey("digest", "Is it?", ("yes", "no"), "")
    rows = [LabelledDecision((0.9, 0.1), 0), LabelledDecision((0.2, 0.8), 1)] * 90
    calibration = calibrate_decisions(rows, key, "2026-11-28")
    new = SeenRows()
    for _ in range(200):
        new.add(max(calibration.probabilities((0.2, 0.8))), 1)
    found = new.shift_from(calibration.seen)
    assert found is not None
    assert len(calibration.rows) == 120
