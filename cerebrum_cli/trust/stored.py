"""The stored calibrations of a user: under each name one for each model, question, choices and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, field
from pathlib import Path

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import atomic_write, read_text, translate_os_errors
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.text import Texts, did_you_mean, format_names, text_digest
from cerebrum_cli.trust.calibration import (
    CONFIDENCE,
    Calibration,
    CalibrationKey,
    Threshold,
    Unreachable,
    read_calibration,
)
from cerebrum_cli.trust.shift import SeenRows

# Names of a fingerprint: of the model, of the question, of rows or kept apart, and of samples, which seeds tell apart.
OF_MODEL = ("model", "model file", "adapter", "engine")
OF_QUESTION = ("template", "prompt", "prompt values", "question", "choices", "score")
NOT_KEPT = ("columns", "include input", "input format", "seed")
MAX_BYTES = 100_000_000  # of a file; a labelled row takes 30
DIGITS = 12  # of a digest
OTHER = {  # how a field of a key differs
    "model": "another model",
    "question": "another question",
    "choices": "other choices",
    "settings": "other settings",
}
NAME = re.compile(r"[^\W_][\w.-]{0,99}")


@frozen
class Wanted:
    """A calibration, and the threshold for a wanted error, if there is one; `seen` counts what they decide."""

    calibration: Calibration
    threshold: Threshold | None
    is_forced: bool = False
    seen: SeenRows = field(default_factory=SeenRows)

    def decides(self, probability: float) -> bool:
        """Whether a calibrated probability is high enough to decide a row."""
        return self.threshold is None or probability >= self.threshold.probability

    def promise(self, model: str = "") -> str:
        """What is promised of the rows that a model decides, as the end of a sentence; nothing if it is forced."""
        if self.threshold is None or self.is_forced:
            return "; nothing is promised of them"
        error, confidence = 100 * self.threshold.error, 100 * self.threshold.confidence
        by = f" by {model}" if model else ""
        return f"; of those{by} at most {error:.3g}% are wrong ({confidence:.4g}% confidence)"

    def outcome(self, decided: int, total: int, model: str = "") -> Iterator[str]:
        """What is reported at the end: how many rows are decided, what is promised, and whether that may not hold."""
        if self.threshold:
            yield f"{decided:,} of {total:,} rows decided{self.promise(model)}"
        if shift := self.seen.shift_from(self.calibration.seen):
            means = f"mean probability {shift.new_mean:.2f}, of the labelled rows {shift.labelled_mean:.2f}"
            found = means if shift.what == "probability" else "their answers have other shares"
            yield f"the rows differ from the labelled ones ({found}): what is promised may not hold for them"

    @property
    def fingerprint(self) -> JsonDict:
        """What decides with which probability, by readable names."""
        return {
            "calibration": text_digest(to_json(self.calibration.object)),
            "error of the decided": self.threshold and self.threshold.error,
            "confidence": self.threshold and self.threshold.confidence,
        }


def key_of(fingerprint: JsonObject, choices: Texts = ()) -> CalibrationKey:
    """What a calibration holds for, by a fingerprint of its answers. Votes have no choices."""

    def part(names: Iterable[str]) -> str:
        return to_json({name: fingerprint[name] for name in names if fingerprint.get(name) is not None})

    settings = [name for name in fingerprint if name not in OF_MODEL + OF_QUESTION + NOT_KEPT]
    return CalibrationKey(part(OF_MODEL), part(OF_QUESTION), choices, part(sorted(settings)))


@frozen
class StoredCalibrations:
    """A directory with a folder for each name, and a file for each calibration in it."""

    directory: Path

    @classmethod
    def of_user(cls, data_directory: Path) -> StoredCalibrations:
        return cls(data_directory / "calibrations")

    def folder(self, name: str) -> Path:
        """Where the calibrations of a name are. Raises UsageError for what cannot be a name."""
        if not NAME.fullmatch(name):
            raise UsageError.invalid("calibration", name, "a name of letters, digits, dots and hyphens")
        return self.directory / name

    def save(self, name: str, calibration: Calibration) -> None:
        """Save a calibration; it replaces the one with the same key. Raises UsageError."""
        file = self._file(name, calibration.key)
        with translate_os_errors(UsageError, file, ", then run the same command again"):
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, to_json(calibration.object).encode())

    def find(self, name: str, key: CalibrationKey) -> Calibration | None:
        """The calibration of a name for a key; None without it. Raises UsageError for one that is damaged."""
        file = self._file(name, key)
        return read_calibration(read_text(file, MAX_BYTES), str(file)) if file.exists() else None

    def _file(self, name: str, key: CalibrationKey) -> Path:
        return self.folder(name) / f"{text_digest(to_json(asdict(key)))[:DIGITS]}.json"

    def require(self, name: str, key: CalibrationKey, is_forced: bool) -> tuple[Calibration, str]:
        """The calibration of a name for a key, or for another if it `is_forced` and has these choices; a warning.

        Raises UsageError.
        """
        if found := self.find(name, key):
            return found, ""
        found = self.nearest(name, key)
        others = key.differences(found.key)
        problem = f"calibration {name} was made with {' and '.join(OTHER[name] for name in others)}"
        if "choices" in others:
            raise UsageError(problem, "calibrate for these with --calibrate")
        if not is_forced:
            raise UsageError(problem, "calibrate for this with --calibrate, or add --force to use it")
        return found, f"{problem}: its promise may not hold"

    def nearest(self, name: str, key: CalibrationKey) -> Calibration:
        """The calibration of a name that differs least from a key, the latest of several. Raises UsageError."""
        found = max(self._all(name), key=lambda found: (-len(key.differences(found.key)), found.date), default=None)
        if found is None:
            raise UsageError(f"the calibrations named {name!r} are damaged", "calibrate again with --calibrate")
        return found

    def _all(self, name: str) -> Iterator[Calibration]:
        files = sorted(self.folder(name).glob("*.json"))
        if not files:
            names = sorted(folder.name for folder in self.directory.glob("*") if any(folder.glob("*.json")))
            hint = f"{did_you_mean(name, names)}the calibrations are: {format_names(names)}" if names else ""
            hint = hint or f"make it from labelled rows: --label COLUMN --calibrate {name}"
            raise UsageError(f"no calibration named {name!r}", hint)
        for file in files:
            with suppress(UsageError):  # of one that is damaged
                yield read_calibration(read_text(file, MAX_BYTES), str(file))


def wanted(calibration: Calibration, error: float | None, confidence: float | None, is_forced: bool = False) -> Wanted:
    """A calibration with the threshold for an error, if one is given. Raises UsageError if no threshold keeps it."""
    if error is None:
        return Wanted(calibration, None, is_forced)
    threshold = calibration.threshold(error, confidence or CONFIDENCE)
    if isinstance(threshold, Unreachable):
        raise UsageError(str(threshold), "raise --max-error, label more rows, or use a better model")
    return Wanted(calibration, threshold, is_forced)
