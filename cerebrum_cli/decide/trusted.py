"""Decisions that a calibration makes probable enough: which rows are decided, and what is promised of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cerebrum_cli.core.decision import PLACES, Decision
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject, to_json
from cerebrum_cli.core.text import Texts, text_digest
from cerebrum_cli.trust.calibration import CONFIDENCE, Calibration, Threshold, Unreachable
from cerebrum_cli.trust.calibration_file import load_calibration
from cerebrum_cli.trust.shift import find_shift


@frozen
class Trust:
    """Calibrates decisions, and decides the rows whose answer reaches the threshold; without one, all rows."""

    calibration: Calibration
    threshold: Threshold | None

    def calibrated(self, decision: Decision) -> Decision:
        """A decision with calibrated probabilities."""
        rounded = [round(probability, PLACES) for probability in decision.probabilities]  # as those of labelled rows
        return replace(decision, probabilities=self.calibration.probabilities(rounded))

    @property
    def keys(self) -> Texts:
        """The keys of `values` besides the answer."""
        return ("decided",) if self.threshold else ()

    def values(self, decision: Decision) -> JsonDict:
        """Extra keys of a decided row: its `decided` flag, and no answer below the threshold."""
        if self.threshold is None:
            return {}
        is_decided = decision.probability >= self.threshold.probability
        return {"decided": True} if is_decided else {"answer": None, "decided": False}

    @property
    def promise(self) -> str:
        """What is promised of the decided rows."""
        if self.threshold is None:
            return ""
        error, confidence = 100 * self.threshold.error, 100 * self.threshold.confidence
        return f"of those at most {error:.3g}% are wrong ({confidence:.4g}% confidence)"

    def notice_of_shift(self, probabilities: Sequence[float]) -> str:
        """What to know if the answers of new rows have other probabilities than those of the labelled rows."""
        shift = find_shift([row.probability for row in self.calibration.rows], probabilities)
        if shift is None:
            return ""
        means = f"mean probability {shift.new_mean:.2f}, of the labelled rows {shift.labelled_mean:.2f}"
        return f"the rows differ from the labelled ones ({means}): what is promised may not hold for them"

    @property
    def fingerprint(self) -> JsonDict:
        """What decides with which probability, by readable names."""
        return {
            "calibration": text_digest(to_json(self.calibration.object)),
            "max_error": self.threshold and self.threshold.error,
            "confidence": self.threshold and self.threshold.confidence,
        }


def load_trust(path: Path, made_with: JsonObject, error: float | None, confidence: float | None) -> Trust:
    """The calibration of a file, with the threshold for an error, if one is given.

    Raises UsageError, also for a calibration of something else, and if no threshold keeps the error.
    """
    calibration = load_calibration(path, made_with)
    if error is None:
        return Trust(calibration, None)
    threshold = calibration.threshold(error, confidence or CONFIDENCE)
    if isinstance(threshold, Unreachable):
        raise UsageError(str(threshold), "raise --max-error, label more rows, or use a better model")
    return Trust(calibration, threshold)


def final_notes(trust: Trust, probabilities: Sequence[float], decided: int, total: int) -> Iterator[str]:
    """What is reported at the end: how many rows are decided, what is promised, and whether that may not hold."""
    if trust.threshold:
        yield f"{decided:,} of {total:,} rows decided" + (f"; {trust.promise}" if decided else "")
    if notice := trust.notice_of_shift(probabilities):
        yield notice
