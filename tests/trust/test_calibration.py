"""Calibration: the map of probabilities, thresholds that keep a promise, and the stored form; shifted rows."""

import json
from collections.abc import Sequence
from math import nan
from random import Random

import cases
import numpy
import pytest
from hypothesis import given, settings, strategies as st

from benchmarks.trust import POPULATION, SEED, SHAPES
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.json_types import to_json
from cerebrum_cli.trust.calibration import (
    CONFIDENCE,
    Calibration,
    Threshold,
    Unreachable,
    calibrate,
    parse_calibration,
)
from cerebrum_cli.trust.score_map import ScoreMap
from cerebrum_cli.trust.shift import Shift, find_shift
from cerebrum_cli.trust.threshold import ScoredRow

YES_NO = ("yes", "no")
MADE_WITH = {"model": "tiny", "model file": "digest", "question": "Is it?"}


def decisions(rows: Sequence[tuple[float, int]]) -> Calibration:
    """Of rows with the probability of yes, and the position of the label."""
    return calibrate([(yes, 1 - yes) for yes, _ in rows], [label for _, label in rows], YES_NO, MADE_WITH)


def answers(*groups: tuple[float, int, int]) -> Calibration:
    """Of as many right and wrong answers with each probability, which choose the threshold."""
    rows: list[ScoredRow] = []
    for probability, right, wrong in groups:
        rows += [ScoredRow(probability, True)] * right + [ScoredRow(probability, False)] * wrong
    return calibration_with(rows)


def calibration_with(rows: Sequence[ScoredRow]) -> Calibration:
    return Calibration(MADE_WITH, YES_NO, ScoreMap.none(2), len(rows) * 3 // 2, tuple(rows))


@pytest.mark.slow
@pytest.mark.parametrize(("error", "confidence"), [(0.05, 0.9), (0.01, 0.95), (0.1, 0.99), (0.5, 0.8)])
def test_threshold_passes_as_the_bound_of_clopper_and_pearson(error: float, confidence: float) -> None:
    from scipy.stats import beta, binom

    for size in (1, 7, 45, 46, 230, 500):
        most = int(binom.ppf(1 - confidence, size, error))
        for wrong in range(max(0, most - 2), min(size, most + 3)):
            bound = beta.ppf(confidence, wrong + 1, size - wrong)
            found = answers((1.0, size - wrong, wrong)).threshold(error, confidence)
            assert isinstance(found, Threshold) == (bound <= error), (size, wrong)


SURE, NEARLY, LIKELY, EVEN = 1.0, 0.875, 0.75, 0.5


@pytest.mark.parametrize(
    ("case", "groups", "probability", "share"),
    [
        ("equal rows together", [(SURE, 60, 0), (NEARLY, 60, 2), (LIKELY, 40, 1), (EVEN, 10, 27)], LIKELY, 163 / 200),
        ("up to the first test that fails", [(SURE, 200, 0), (NEARLY, 50, 20), (LIKELY, 930, 0)], SURE, 1 / 6),
        # The surest 45 of 1,000 rows could pass a test, but a single wrong label among them would end all.
        ("tests begin with a share of the rows", [(SURE, 50, 1), (NEARLY, 949, 0)], NEARLY, 1),
    ],
)
def test_threshold_decides(case: str, groups: list[tuple[float, int, int]], probability: float, share: float) -> None:
    assert answers(*groups).threshold(0.05) == Threshold(0.05, CONFIDENCE, probability, share), case


@pytest.mark.parametrize(("groups", "problem"), cases.rows("unreachable_errors"))
def test_unreachable_names_the_smallest_error_and_the_rows_to_label(
    groups: list[tuple[float, int, int]], problem: str
) -> None:
    found = answers(*groups).threshold(0.05)
    assert isinstance(found, Unreachable) and str(found) == problem


def test_promises_are_none_where_an_error_cannot_be_promised() -> None:
    assert answers((SURE, 100, 0), (EVEN, 50, 50)).promises == {0.01: None, 0.02: None, 0.05: 0.5, 0.1: 0.5}
    assert answers((SURE, 240, 0)).promises == {0.01: 1.0, 0.02: 1.0, 0.05: 1.0, 0.1: 1.0}


@pytest.mark.parametrize(("error", "confidence"), [(0.0, 0.9), (1.0, 0.9), (0.05, 1.0), (nan, 0.9), (0.05, nan)])
def test_threshold_rejects_an_error_or_confidence_beyond_its_range(error: float, confidence: float) -> None:
    with pytest.raises(UsageError, match=r"invalid (error|confidence)"):
        answers((1.0, 10, 0)).threshold(error, confidence)


def biased_rows(count: int) -> list[tuple[float, int]]:
    """Rows whose yes is too unlikely: even the right answer yes is often below one half."""
    random = Random(1)
    rows = []
    for _ in range(count):
        label = random.randrange(2)
        logit = random.gauss(2 if label == 0 else -2, 1.2) - 3
        yes = 1 / (1 + 2.718281828**-logit)
        rows.append((yes, label))
    return rows


def test_map_removes_a_bias_and_changes_answers() -> None:
    rows = biased_rows(300)
    calibration = decisions(rows)
    before = sum((yes < 0.5) == bool(label) for yes, label in rows)
    after = 0
    for yes, label in rows:
        probabilities = calibration.probabilities((yes, 1 - yes))
        assert sum(probabilities) == pytest.approx(1)
        after += probabilities.index(max(probabilities)) == label
    assert before < 240 and after > 280
    assert calibration.map.biases[0] > 1


def test_map_is_none_where_probabilities_are_right() -> None:
    random = Random(2)
    rows = [(yes, int(random.random() > yes)) for yes in (random.random() for _ in range(400))]
    assert decisions(rows).probabilities((0.3, 0.7)) == pytest.approx((0.3, 0.7))


def test_calibration_with_a_choice_that_no_label_names() -> None:
    random = Random(4)
    rows, labels = [], []
    for _ in range(150):
        first = random.random()
        rows.append((0.7 * first, 0.7 * (1 - first), 0.3))
        labels.append(int(random.random() > first))
    calibration = calibrate(rows, labels, ("a", "b", "c"), {})
    assert 0 < calibration.probabilities((0.4, 0.3, 0.3))[2] < 0.3


def test_calibration_rejects_invalid_rows() -> None:
    for invalid in (nan, -0.1, 1.5):
        with pytest.raises(UsageError, match="labelled row 2 has a probability that is not from 0 to 1"):
            decisions([(0.5, 0), (invalid, 0)])
    with pytest.raises(UsageError, match="labelled row 1 has other choices"):
        decisions([(0.5, 2)])
    with pytest.raises(UsageError, match="labelled row 1 has other choices"):
        calibrate([(0.2, 0.3, 0.5)], [0], YES_NO, {})
    with pytest.raises(UsageError, match="no labelled rows"):
        decisions([])


@pytest.mark.parametrize(("path", "new"), cases.rows("damaged_calibrations"))
def test_damaged_calibration_is_one_error(path: list[str | int], new: object) -> None:
    value = part = json.loads(to_json(decisions(biased_rows(30)).object))
    *folders, last = path
    for name in folders:
        part = part[name]
    part[last] = new
    with pytest.raises(UsageError, match=r"^refunds\.json: not a calibration \(") as error:
        parse_calibration(json.dumps(value), "refunds.json")
    assert "--calibrate" in str(error.value.hint)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"model": "x"}', '"text"', "[" * 100_000])
def test_foreign_file_is_not_a_calibration(text: str) -> None:
    with pytest.raises(UsageError, match=r"refunds\.json: not a calibration"):
        parse_calibration(text, "refunds.json")


probabilities = st.sampled_from((0.0, 0.125, 0.5, 0.75, 0.875, 1.0)) | st.floats(0, 1)
scored_rows = st.lists(st.builds(ScoredRow, probabilities, st.booleans()), min_size=1, max_size=120)


@pytest.mark.slow
@settings(derandomize=True, max_examples=60, deadline=None)
@given(scored_rows, st.sampled_from((0.05, 0.1, 0.3)))
def test_threshold_holds_for_the_labelled_rows_themselves(rows: list[ScoredRow], error: float) -> None:
    """Of those that it decides, no more are wrong than the wanted share; and their order does not matter."""
    found = calibration_with(rows).threshold(error)
    if isinstance(found, Threshold):
        decided = [row.is_right for row in rows if row.probability >= found.probability]
        assert decided.count(False) <= error * len(decided)
        assert found.share_decided == len(decided) / len(rows)
    else:
        assert found.smallest_error is None or found.smallest_error > error


decided_rows = st.tuples(probabilities, st.integers(0, 1))
alike = st.builds(lambda row, count: [row] * count, decided_rows, st.sampled_from((1, 2, 30, 200)))


@settings(derandomize=True, max_examples=40, deadline=None)
@given(alike | st.lists(decided_rows, min_size=1, max_size=90))
def test_any_decisions_can_be_calibrated_and_stored(rows: list[tuple[float, int]]) -> None:
    calibration = decisions(rows)
    assert parse_calibration(to_json(calibration.object), "x") == calibration
    assert calibration.labelled == len(rows)
    calibration.threshold(0.05)
    for yes, _ in {*rows}:
        calibrated = calibration.probabilities((yes, 1 - yes))
        assert sum(calibrated) == pytest.approx(1) and min(calibrated) > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["strong", "ties: votes of 8", "useless"])
def test_promised_error_is_kept_in_most_draws(shape: str) -> None:
    """A small version of benchmarks/trust.py, at 10% error: exceeded in at most 10% of the draws, and noise."""
    from scipy.stats import binom

    draws, error = 100, 0.1
    population = SHAPES[shape](numpy.random.default_rng(SEED))
    random = numpy.random.default_rng(5)
    broken = decided = 0.0
    for _ in range(draws):
        calibration = population.calibrate(random.choice(POPULATION, 200))
        threshold = calibration.threshold(error)
        if isinstance(threshold, Threshold):
            share, wrong = population.scored(calibration.map).decided_and_error(threshold.probability)
            broken += wrong > error
            decided += share / draws
    assert broken <= binom.ppf(0.999, draws, 0.1)
    if shape == "useless":
        assert decided < 0.01
    else:
        assert decided > 0.5


LABELLED = [0.9] * 80 + [0.6] * 20


def test_shift_of_the_mean_probability() -> None:
    found = find_shift(LABELLED, [0.9] * 500 + [0.6] * 500)
    assert isinstance(found, Shift)
    assert (found.labelled_mean, found.new_mean) == pytest.approx((0.84, 0.75))
    assert find_shift(LABELLED, [0.9] * 800 + [0.6] * 200) is None


@pytest.mark.parametrize(
    ("labelled", "new", "is_shift"),
    [
        (LABELLED, [0.2] * 29, False),
        ([0.2] * 29, LABELLED, False),
        (LABELLED, [], False),
        ([0.9] * 500, [0.900001] * 50, False),
        ([0.9] * 500, [0.8] * 50, True),
    ],
)
def test_rows_differ_if_they_are_enough_and_not_all_alike(
    labelled: list[float], new: list[float], is_shift: bool
) -> None:
    assert (find_shift(labelled, new) is not None) is is_shift


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [5, 40])
def test_rows_alike_rarely_seem_to_differ(labelled: int) -> None:
    """At most 1% of draws; the probabilities of both kinds of rows are skewed."""
    from scipy.stats import binom

    random = numpy.random.default_rng(1)
    draws, alarms = 200, 0
    for _ in range(draws):
        both = [random.beta(8, 1, count).tolist() for count in (labelled, 3 * labelled)]
        alarms += find_shift(*both) is not None
    assert alarms <= binom.ppf(0.999, draws, 0.01)
