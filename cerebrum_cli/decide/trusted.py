"""Decisions that a calibration makes probable enough: which rows are decided, and what is promised of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cerebrum_cli.core.decision import PLACES, Decision
from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import Texts
from cerebrum_cli.trust.calibration import CalibrationKey
from cerebrum_cli.trust.stored import StoredCalibrations, Wanted, wanted

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.decide.measures import Labelled


@frozen
class Trust:
    """Calibrates decisions, and decides the rows whose answer reaches the threshold; without one, all rows.

    Without a calibration, probabilities are the model's own. Rows get the name of the `model` if there are two.
    """

    wanted: Wanted | None
    model: str = ""

    def calibrated(self, decision: Decision) -> Decision:
        """A decision with calibrated probabilities."""
        if self.wanted is None:
            return decision
        rounded = [round(probability, PLACES) for probability in decision.probabilities]  # as those of labelled rows
        probabilities = self.wanted.calibration.probabilities(rounded)
        decision = replace(decision, probabilities=probabilities)
        self.wanted.seen.add(decision.probability, decision.names.index(decision.answer))
        return decision

    def require(self, choices: Texts) -> None:
        """Raise UsageError for a row with choices that a calibration lacks."""
        if self.wanted and choices != self.wanted.calibration.key.choices:
            raise UsageError("the row has choices of its own, for which there is no calibration")

    def values(self, decision: Decision) -> JsonDict:
        """What a row says of a decision besides: no answer if it is not decided."""
        values: JsonDict = {}
        if "decided" in self.keys:
            is_decided = self.wanted is None or self.wanted.decides(decision.probability)
            values = {"decided": is_decided} if is_decided else {"answer": None, "decided": False}
        if self.model:
            values["model"] = self.model
        return values

    @property
    def keys(self) -> Texts:
        """The keys of `values` besides the answer."""
        if self.model:
            return "decided", "model"
        return ("decided",) if self.wanted and self.wanted.threshold else ()

    @property
    def fingerprint(self) -> JsonDict:
        return self.wanted.fingerprint if self.wanted else {}


def find_trust(app: App, key: Callable[[], CalibrationKey], options: DecideOptions) -> Trust | None:
    """What options want of a calibration; None without. Raises UsageError, also if no threshold keeps the error."""
    found = find_wanted(app, key, options)
    if found is None or found.threshold is None:
        for name in ("then", "then_endpoint"):
            if getattr(options, name):
                problem = f"{flag(name)} requires --calibration and --max-error"
                raise UsageError(problem, "say which share of wrong answers is acceptable")
    return Trust(found) if found else None


def find_wanted(app: App, key: Callable[[], CalibrationKey], options: DecideOptions) -> Wanted | None:
    """The calibration for what `key` gives, with its threshold; None without options. Raises UsageError."""
    if options.calibration is None:
        for name in ("max_error", "confidence", "force"):
            if getattr(options, name):
                hint = "make one from labelled rows: --label COLUMN --calibrate NAME"
                raise UsageError(f"{flag(name)} requires --calibration", hint)
        return None
    if options.confidence is not None and options.max_error is None:
        raise UsageError("--confidence requires --max-error", "say which share of wrong answers is acceptable")
    stored = StoredCalibrations.of_user(app.data_directory)
    calibration, warning = stored.require(options.calibration, key(), options.force)
    if warning:
        app.streams.note(NoticeEvent(warning))
    return wanted(calibration, options.max_error, options.confidence, is_forced=bool(warning))


def second_trust(app: App, key: CalibrationKey, model: str, options: DecideOptions) -> Trust:
    """The same for the second model: without a calibration of its own, it decides all rows that are left to it."""
    assert options.calibration
    calibration = StoredCalibrations.of_user(app.data_directory).find(options.calibration, key)
    if calibration is None:
        app.streams.note(
            NoticeEvent(f"calibration {options.calibration} has no rows of {model}: all its answers are taken")
        )
        return Trust(None, model)
    try:
        return Trust(wanted(calibration, options.max_error, options.confidence), model)
    except UsageError as error:
        error.message = f"{model}: {error.message}"
        raise


def measured(found: Wanted, samples: Sequence[Labelled]) -> str:
    """How many labelled rows a threshold decides, and how many of these are wrong."""
    assert found.threshold
    least = round(found.threshold.probability, PLACES)
    sure = [row for row in samples if row.probabilities and max(row.probabilities.values()) >= least]
    wrong = sum(row.answer != row.reference for row in sure)
    share = f" ({wrong / len(sure):.1%})" if sure else ""
    return f"{len(sure):,} of {len(samples):,} rows decided, {wrong:,} of them wrong{share}{found.promise()}"
