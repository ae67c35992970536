"""How good labelled decisions are: calibration, log loss, confusions, and errors against the share decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import fsum, log
from typing import TYPE_CHECKING, Protocol

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import Texts
from cerebrum_cli.terminal.tables import print_table
from cerebrum_cli.trust.calibration import (
    CONFIDENCE,
    WANTED_ERRORS,
    LabelledDecision,
    calibrate,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cerebrum_cli.terminal.streams import Streams

PROBABILITIES = "probabilities"  # key of a labelled row
LEAST = 1e-6  # probability of a label, as results have six decimals
BINS = 10
DRAWS = 1000  # simulated, for the noise floor
COMPARED_ERROR = 0.05  # of two runs
MOST_COLUMNS = 8  # of a confusion table; with more choices, the most frequent confusions are listed


class Labelled(Protocol):
    """A decided row of a run."""

    @property
    def model(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def answer(self) -> str | None: ...
    @property
    def probabilities(self) -> Mapping[str, float]: ...


@frozen
class LabelledRow:
    """A row of a run; without a decision, it has no probabilities."""

    model: str
    reference: str
    answer: str | None
    probabilities: Mapping[str, float]


@frozen
class Measures:
    """Measures of `n` labelled decisions.

    - `log_loss`: mean of -log of the probability of the label
    - `calibration_error`: mean distance of accuracy and mean probability, over ten groups of rows of similar
      probability (expected calibration error)
    - `noise_floor`: what that would be on average if all probabilities were right: it is not 0, as rows are few
    - `confusions`: the number of rows by label and answer
    - `errors`: the share of wrong answers among the surest 1, 2, ... n rows
    - `promised`: the share of rows for which each error can be promised if these rows calibrate; none if rows have
      choices of their own
    """

    n: int
    model: str
    log_loss: float
    calibration_error: float
    noise_floor: float
    confusions: Mapping[tuple[str, str], int]
    errors: Sequence[float]
    promised: Mapping[float, float | None]

    @property
    def names(self) -> Texts:
        """The labels and answers, the most frequent labels first."""
        labels = Counter[str]()
        for (label, answer), count in self.confusions.items():
            labels[label] += count
            labels[answer] += 0
        return tuple(name for name, _ in labels.most_common())

    def share_decided(self, error: float) -> float:
        """The largest share of rows, the surest, of which at most this share is wrong; measured, not promised."""
        numbers = [number for number, found in enumerate(self.errors, 1) if found <= error]
        return max(numbers, default=0) / self.n

    @property
    def object(self) -> JsonDict:
        confusions = [
            {"label": label, "answer": answer, "rows": count} for (label, answer), count in self.confusions.items()
        ]
        return {
            "log_loss": self.log_loss,
            "calibration_error": self.calibration_error,
            "noise_floor": self.noise_floor,
            "confusions": confusions,
            "share_decided": {f"{error:g}": self.share_decided(error) for error in WANTED_ERRORS},
            "share_promised": {f"{error:g}": share for error, share in self.promised.items()},
        }

    def compare(self, other: Measures, names: Sequence[str]) -> str:
        """How many rows two runs would decide at one wanted error, each calibrated by its labels."""
        first, second = (
            f"{share_text(measures.promised.get(COMPARED_ERROR))} of the rows by {name}"
            for measures, name in zip((self, other), names, strict=True)
        )
        return f"decided at {COMPARED_ERROR:.0%} error ({CONFIDENCE:.0%} confidence): {first}, {second}"

    def print(self, streams: Streams) -> None:
        streams.answer("\n")
        rows = [
            ("log loss", f"{self.log_loss:.3f}"),
            ("calibration error", f"{self.calibration_error:.3f}"),
            ("its noise floor", f"{self.noise_floor:.3f}"),
        ]
        print_table(streams, ("decisions", "value"), rows)
        streams.answer("\n")
        shares = [
            (f"{error:.0%}", f"{self.share_decided(error):.2f}", share_text(promised))
            for error, promised in self.promised.items()
        ]
        print_table(streams, ("wanted error", "decided here", f"promised with {CONFIDENCE:.0%} confidence"), shares)
        streams.answer("\n")
        names = self.names
        if len(names) <= MOST_COLUMNS:
            counts = [[label, *(self.confusions.get((label, answer), 0) for answer in names)] for label in names]
            print_table(streams, ("label \\ answer", *names), counts)
            return
        wrong = [(*pair, count) for pair, count in self.confusions.items() if pair[0] != pair[1]]
        wrong.sort(key=lambda confusion: -confusion[2])
        print_table(streams, ("label", "answer", "rows"), wrong[: 2 * MOST_COLUMNS])

    def draw(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4.2), layout="constrained")
        axes = figure.subplots()
        shares = [number / self.n for number in range(1, self.n + 1)]
        axes.plot(shares, self.errors, "k-", linewidth=1.5, label="these rows")
        promised = [(share, error) for error, share in self.promised.items() if share is not None]
        if promised:
            axes.plot(*zip(*promised, strict=True), "bo", label=f"promised with {CONFIDENCE:.0%} confidence")
            axes.legend(loc="upper left", frameon=False)
        axes.set(xlabel="share decided, the surest first", ylabel="error among them", xlim=(0, 1.02))
        axes.set_ylim(0, 1.05 * max(0.1, *self.errors))
        axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"{self.model}, {self.n} rows", fontsize="medium", parse_math=False, wrap=True)
        return figure


def share_text(share: float | None) -> str:
    return "none" if share is None else f"{share:.2f}"


def labelled_rows(model: str, objects: Iterable[JsonObject]) -> list[LabelledRow]:
    """The rows of a run with these objects."""
    return [
        LabelledRow(model, object.get("reference", ""), object.get("answer"), object.get(PROBABILITIES, {}))
        for object in objects
    ]


def run_measures(model: str, objects: Iterable[JsonObject]) -> Measures | None:
    """Measures of a run with these objects."""
    return measures_of(labelled_rows(model, objects))


def measures_of(samples: Sequence[Labelled]) -> Measures | None:
    """Measures of a run; None if its answers have no probabilities."""
    decided = [sample for sample in samples if sample.probabilities]
    if not decided:
        return None
    names = decided[0].probabilities.keys()
    have_same = all(sample.probabilities.keys() == names for sample in decided)
    surest = [max(sample.probabilities.values()) for sample in decided]
    correct = [sample.answer == sample.reference for sample in decided]
    losses = [-log(max(LEAST, sample.probabilities.get(sample.reference, 0.0))) for sample in decided]
    confusions = Counter((sample.reference, sample.answer or "") for sample in decided)
    promised: Mapping[float, float | None] = {}
    if have_same:
        choices = tuple(names)
        promised = calibrate(labelled_decisions(decided, choices), choices, {}).promises
    return Measures(
        n=len(decided),
        model=samples[0].model,
        log_loss=fsum(losses) / len(losses),
        calibration_error=calibration_error(surest, correct),
        noise_floor=noise_floor(surest),
        confusions=confusions,
        errors=errors_by_sureness(surest, correct),
        promised=promised,
    )


def labelled_decisions(rows: Sequence[Labelled], choices: Texts) -> list[LabelledDecision]:
    """Labelled rows with the same choices, as they calibrate."""
    return [
        LabelledDecision([row.probabilities[name] for name in choices], choices.index(row.reference)) for row in rows
    ]


def errors_by_sureness(probabilities: Sequence[float], correct: Sequence[bool]) -> list[float]:
    """The share of wrong answers among the surest 1, 2, ... rows; those as sure as another are taken with it."""
    rows = sorted(zip(probabilities, correct, strict=True), key=lambda row: -row[0])
    errors: list[float] = []
    wrong = 0
    for _, group in groupby(rows, key=lambda row: row[0]):
        found = [is_right for _, is_right in group]
        wrong += found.count(False)
        errors += [wrong / (len(errors) + len(found))] * len(found)
    return errors


def calibration_error(probabilities: Sequence[float], correct: Sequence[bool]) -> float:
    """Expected calibration error of answers with these probabilities, in groups of equal size."""
    rows = sorted(zip(probabilities, correct, strict=True), key=lambda row: row[0])
    n = len(rows)
    distance = 0.0
    for number in range(BINS):
        group = rows[number * n // BINS : (number + 1) * n // BINS]
        distance += abs(fsum(probability - is_right for probability, is_right in group))
    return distance / n


def noise_floor(probabilities: Sequence[float]) -> float:
    """The mean calibration error if each answer were right as often as its probability says."""
    import numpy

    numbers = numpy.random.default_rng(0)
    expected = numpy.sort(probabilities)
    n = len(expected)
    starts = sorted({number * n // BINS for number in range(BINS)})
    draws = []
    for _ in range(DRAWS):
        correct = numbers.random(n) < expected
        draws.append(numpy.abs(numpy.add.reduceat(expected - correct, starts)).sum() / n)
    return float(numpy.mean(draws))
