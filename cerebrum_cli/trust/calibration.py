"""What labelled rows show about answers: their calibrated probabilities, and which to decide for a wanted error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import ceil, isfinite
from random import Random
from typing import Any

from cerebrum_cli.core.errors import DAMAGE, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, from_json
from cerebrum_cli.core.text import Texts, format_count
from cerebrum_cli.trust.score_map import ScoreMap, fit_map
from cerebrum_cli.trust.threshold import ScoredRow, find_threshold, rows_needed, smallest_error

VERSION = 1  # of the JSON object
CONFIDENCE = 0.9
WANTED_ERRORS = (0.01, 0.02, 0.05, 0.1)
FITTING = 3  # one row in this many fits the map, the others choose thresholds
LEAST_MORE = 10  # suggest at least a tenth of the labelled rows: these missed the threshold by bad luck
SEED = 0
HOW_TO_MAKE = "make one from labelled rows: --label COLUMN --calibrate FILE"


@frozen
class Threshold:
    """Of the rows whose answer is at least as probable, at most the share `error` is wrong, with this confidence.

    `share_decided` is the share of labelled rows that it decides.
    """

    error: float
    confidence: float
    probability: float
    share_decided: float


@frozen
class Unreachable:
    """Why no threshold keeps the wanted error: too few labelled rows, or answers that are too often wrong.

    `rows` are labelled. `smallest_error` is the smallest of several larger ones that has a threshold; `more_rows` is
    about how many more labelled rows would do. Each is None if there is none within reason.
    """

    error: float
    rows: int
    smallest_error: float | None
    more_rows: int | None

    def __str__(self) -> str:
        labelled = f"with {format_count(self.rows, 'labelled row')}"
        if self.smallest_error is None:
            problem = f"{labelled}, no error can be promised"
        else:
            problem = f"{labelled}, the smallest error that can be promised is {self.smallest_error:.0%}"
        if self.more_rows is None:
            return f"{problem}; even the surest answers are too often wrong for {100 * self.error:.3g}%"
        return f"{problem}; for {100 * self.error:.3g}%, label about {self.more_rows:,} more"


@frozen
class Calibration:
    """A map of the probabilities of choices, and labelled rows with calibrated probabilities that choose thresholds.

    `made_with` is what the probabilities depend on, by readable names. Of `labelled` rows, those that fitted the map
    choose no threshold.
    """

    made_with: JsonObject
    choices: Texts
    map: ScoreMap
    labelled: int
    rows: tuple[ScoredRow, ...]

    def probabilities(self, probabilities: Sequence[float]) -> tuple[float, ...]:
        """Calibrated probabilities of the choices of a decision; the answer is the likeliest of them."""
        return self.map.apply(probabilities)

    def threshold(self, error: float, confidence: float = CONFIDENCE) -> Threshold | Unreachable:
        """From which probability on answers are decided, so that at most the share `error` of them is wrong.

        It holds with this confidence, for rows like the labelled ones, and for an error chosen without looking at
        what the labelled rows allow. Raises UsageError for an error or a confidence that is not between 0 and 1.
        """
        for name, value in (("error", error), ("confidence", confidence)):
            if not 0 < value < 1:
                raise UsageError.invalid(name, value, "between 0 and 1")
        if found := find_threshold(self.rows, error, confidence):
            return Threshold(error, confidence, found.probability, found.rows / len(self.rows))
        smallest = smallest_error(self.rows, error, confidence)
        needed = rows_needed(self.rows, error, confidence)
        more = None
        if needed is not None:
            needed = ceil(needed * FITTING / (FITTING - 1))
            more = max(ceil(self.labelled / LEAST_MORE), needed - self.labelled)
        return Unreachable(error, self.labelled, smallest, more)

    @property
    def promises(self) -> Mapping[float, float | None]:
        """The share of labelled rows decided for each of WANTED_ERRORS, with CONFIDENCE; None without a threshold."""
        groups = {error: find_threshold(self.rows, error, CONFIDENCE) for error in WANTED_ERRORS}
        return {error: group and group.rows / len(self.rows) for error, group in groups.items()}

    @property
    def object(self) -> JsonDict:
        """The calibration as a JSON object."""
        return {"version": VERSION, **asdict(self)}


def calibrate(
    probabilities: Sequence[Sequence[float]], labels: Sequence[int], choices: Texts, made_with: JsonObject
) -> Calibration:
    """Calibrate decisions among these choices, by the probabilities of labelled rows and the positions of their labels.

    A third of the rows, drawn by position, fits the map. Raises UsageError without rows, and for an invalid row.
    """
    if not labels:
        raise UsageError("no labelled rows to calibrate with", "label some rows")
    count = len(choices)
    for number, (row, label) in enumerate(zip(probabilities, labels, strict=True), 1):
        _require(len(row) == count and 0 <= label < count, number, "other choices")
        _require(all(map(_is_share, row)), number, "a probability that is not from 0 to 1")
    order = list(range(len(labels)))
    Random(SEED).shuffle(order)
    fitting, others = order[: len(order) // FITTING], order[len(order) // FITTING :]
    score_map = fit_map([probabilities[row] for row in fitting], [labels[row] for row in fitting], count)
    scored = tuple(_scored(score_map, probabilities[row], labels[row]) for row in others)
    return Calibration(made_with, choices, score_map, len(labels), scored)


def parse_calibration(text: str, where: str) -> Calibration:
    """Read a calibration from its JSON text; errors begin with `where`. Raises UsageError for any other text."""
    try:
        value = json.loads(text)
        if (version := value.pop("version")) != VERSION:
            raise ValueError(f"version {version!r}, not {VERSION}")
        rows = tuple(ScoredRow(*row) for row in value.pop("rows"))
        calibration = from_json(Calibration, {**value, "rows": ()})
        calibration = replace(calibration, rows=rows)
        _check(calibration)
    except DAMAGE as error:
        problem = f"{where}: not a calibration ({type(error).__name__}: {error})"
        raise UsageError(problem, HOW_TO_MAKE) from error
    return calibration


def _check(calibration: Calibration) -> None:
    """Raises ValueError for values that no calibration has."""
    count = len(calibration.choices)
    checks = {
        "map": calibration.map.weight > 0 and len(calibration.map.biases) == count,
        "labelled": calibration.labelled >= len(calibration.rows) > 0,
        "rows": all(_is_share(row.probability) and isinstance(row.is_right, bool) for row in calibration.rows),
    }
    if invalid := [name for name, is_valid in checks.items() if not is_valid]:
        raise ValueError(f"invalid {invalid[0]}")


def _scored(score_map: ScoreMap, probabilities: Sequence[float], label: int) -> ScoredRow:
    mapped = score_map.apply(probabilities)
    return ScoredRow(max(mapped), mapped.index(max(mapped)) == label)


def _require(is_valid: bool, number: int, problem: str) -> None:
    if not is_valid:
        raise UsageError(f"labelled row {number} has {problem}", "calibrate with answers to one question")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value) and 0 <= value <= 1
