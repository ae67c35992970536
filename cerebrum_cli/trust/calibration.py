"""What labelled rows show about answers: their calibrated probabilities, and which to decide for a wanted error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from math import ceil, isfinite
from random import Random
from typing import Any, NamedTuple

from cerebrum_cli.core.errors import DAMAGE, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, from_json
from cerebrum_cli.core.text import Texts, format_count
from cerebrum_cli.trust.score_map import ScoreMap, fit_map
from cerebrum_cli.trust.shift import SeenRows
from cerebrum_cli.trust.threshold import ScoredRow, find_threshold, rows_needed, smallest_error

VERSION = 1  # of the JSON object
CONFIDENCE = 0.9
WANTED_ERRORS = (0.01, 0.02, 0.05, 0.1)
COMPARED_ERROR = 0.05  # of two runs
FITTING = 3  # one row in this many fits the map, the others choose thresholds
LEAST_MORE = 10  # a suggestion is at least one row for so many labelled ones: these missed the threshold by bad luck
SEED = 0


class LabelledDecision(NamedTuple):
    """The probabilities of the choices, and the position of the right one."""

    probabilities: Sequence[float]
    label: int


@frozen
class CalibrationKey:
    """What a calibration holds for: a model by its digest, a question, its choices, and settings as text."""

    model: str
    question: str
    choices: Texts
    settings: str

    def differences(self, other: CalibrationKey) -> Texts:
        """The names of the fields that differ."""
        names = [field.name for field in fields(self)]
        return tuple(name for name in names if getattr(self, name) != getattr(other, name))


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
    confidence: float
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
class Promises:
    """The share of labelled rows decided for each of WANTED_ERRORS, with CONFIDENCE; None where it has no threshold.

    There are no `shares` if rows have choices of their own.
    """

    shares: Mapping[float, float | None]

    @property
    def are_none(self) -> bool:
        """Whether nothing can be promised."""
        return not any(self.shares.values())

    @property
    def object(self) -> JsonDict:
        return {f"{error:g}": share for error, share in self.shares.items()}

    @property
    def texts(self) -> Mapping[float, str]:
        """The shares as text."""
        return {error: "none" if share is None else f"{share:.2f}" for error, share in self.shares.items()}

    def compare(self, other: Promises, names: Sequence[str]) -> str:
        """How many rows two runs with these names would decide at one error, each calibrated by its labels."""
        first, second = (
            f"{promises.texts.get(COMPARED_ERROR, 'none')} of the rows by {name}"
            for promises, name in zip((self, other), names, strict=True)
        )
        return f"decided at {COMPARED_ERROR:.0%} error ({CONFIDENCE:.0%} confidence): {first}, {second}"


@frozen
class Calibration:
    """A map of probabilities, and labelled rows with calibrated probabilities that choose thresholds.

    Of `labelled` rows, those that fitted the map choose no threshold.
    """

    key: CalibrationKey
    date: str
    map: ScoreMap
    labelled: int
    rows: tuple[ScoredRow, ...]

    @property
    def seen(self) -> SeenRows:
        """The rows that new ones are compared with."""
        seen = SeenRows()
        for row in self.rows:
            seen.add(row.probability, row.choice)
        return seen

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
        return Unreachable(error, confidence, self.labelled, smallest, more)

    @property
    def promises(self) -> Promises:
        shares: dict[float, float | None] = {}
        for error in WANTED_ERRORS:
            found = find_threshold(self.rows, error, CONFIDENCE)
            shares[error] = found.rows / len(self.rows) if found else None
        return Promises(shares)

    @property
    def object(self) -> JsonDict:
        """The calibration as a JSON object."""
        return {
            "version": VERSION,
            "key": asdict(self.key),
            "date": self.date,
            "map": asdict(self.map),
            "labelled": self.labelled,
            "rows": self.rows,
        }


def calibrate_decisions(rows: Sequence[LabelledDecision], key: CalibrationKey, date: str) -> Calibration:
    """Calibrate decisions among the choices of a key. Raises UsageError without rows, and for an invalid row.

    A third of the rows, drawn by position, fits the map.
    """
    if not rows:
        raise UsageError("no labelled rows to calibrate with", "label some rows")
    count = len(key.choices)
    for number, row in enumerate(rows, 1):
        _require(len(row.probabilities) == count and 0 <= row.label < count, number, "other choices")
        _require(all(map(_is_share, row.probabilities)), number, "a probability that is not from 0 to 1")
    order = list(range(len(rows)))
    Random(SEED).shuffle(order)
    fitting = [rows[position] for position in order[: len(rows) // FITTING]]
    score_map = fit_map([row.probabilities for row in fitting], [row.label for row in fitting], count)
    scored = tuple(_scored(score_map, rows[position]) for position in order[len(fitting) :])
    return Calibration(key, date, score_map, len(rows), scored)


def read_calibration(text: str, where: str) -> Calibration:
    """Read a calibration from its JSON text; errors begin with `where`. Raises UsageError for any other text."""
    try:
        value = json.loads(text)
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']!r}, not {VERSION}")
        key, score_map = value["key"], value["map"]
        calibration = Calibration(
            from_json(CalibrationKey, key | {"choices": tuple(key["choices"])}),
            value["date"],
            from_json(ScoreMap, {"weight": score_map["weight"], "biases": tuple(score_map["biases"])}),
            value["labelled"],
            tuple(ScoredRow(*row) for row in value["rows"]),
        )
        _check(calibration)
    except DAMAGE as error:
        problem = f"{where}: not a calibration ({type(error).__name__}: {error})"
        raise UsageError(problem, "calibrate again with --calibrate") from error
    return calibration


def _check(calibration: Calibration) -> None:
    """Raises ValueError for values that no calibration has."""
    choices = len(calibration.key.choices)
    numbers = calibration.map.biases
    checks = {
        "date": isinstance(calibration.date, str),
        "choices": all(isinstance(name, str) for name in calibration.key.choices),
        "map": calibration.map.weight > 0 and len(numbers) == choices and all(map(_is_number, numbers)),
        "labelled": type(calibration.labelled) is int and calibration.labelled >= len(calibration.rows),
        "rows": len(calibration.rows) > 0,
    }
    for row in calibration.rows:
        checks["rows"] &= _is_share(row.probability) and isinstance(row.is_right, bool)
        checks["rows"] &= row.choice is None or (type(row.choice) is int and 0 <= row.choice < choices)
    if invalid := [name for name, is_valid in checks.items() if not is_valid]:
        raise ValueError(f"invalid {invalid[0]}")


def _scored(score_map: ScoreMap, row: LabelledDecision) -> ScoredRow:
    probabilities = score_map.apply(row.probabilities)
    probability = max(probabilities)
    choice = probabilities.index(probability)
    return ScoredRow(probability, bool(choice == row.label), choice)


def _require(is_valid: bool, number: int, problem: str) -> None:
    if not is_valid:
        raise UsageError(f"labelled row {number} has {problem}", "calibrate with answers of one run")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and isfinite(value)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1
