"""Figures of labelled decisions: log loss, confusions, and how many rows could be decided at a wanted error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import fsum, log
from typing import TYPE_CHECKING

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import Texts
from cerebrum_cli.eval.answered import Answered
from cerebrum_cli.eval.estimates import Estimate, wilson
from cerebrum_cli.terminal.tables import print_table
from cerebrum_cli.trust.calibration import CONFIDENCE, WANTED_ERRORS, Calibration, calibrate

if TYPE_CHECKING:
    from cerebrum_cli.terminal.streams import Streams

LEAST = 1e-6  # probability of a label, as results have six decimals
COMPARED_ERROR = 0.05  # of two runs
RARELY, LEAST_LABELS = 0.25, 5  # a choice of at least 5 labels is rare if it is given for under a quarter of them
MOST_COLUMNS = 8  # of a confusion table; with more choices, the most frequent confusions are listed


@frozen
class DecisionFigures:
    """Figures of `n` labelled decisions.

    - `log_loss`: mean of -log of the probability of the label
    - `confusions`: the number of rows by label and answer
    - `first_words_right`: the number of rows that the model's first word decides rightly, asked as the user wrote it
    - `errors`: the share of wrong answers among the surest 1, 2, ... n rows
    - `promised`: the share of rows for which each error can be promised if these rows calibrate; none if rows have
      choices of their own
    """

    n: int
    log_loss: float
    confusions: Mapping[tuple[str, str], int]
    first_words_right: int
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
    def right(self) -> int:
        return sum(count for (label, answer), count in self.confusions.items() if label == answer)

    @property
    def accuracy(self) -> Estimate:
        share = self.right / self.n
        return Estimate(share, wilson(share, self.n))

    @property
    def warnings(self) -> Iterator[str]:
        """Yield a line on better first words, and on each choice that is given far more rarely than it is right."""
        if self.first_words_right > self.right:
            share = f"{self.first_words_right} of {self.n}"
            yield f"the model's first word to the question as written is right more often: {share}"
        labels, answers = Counter[str](), Counter[str]()
        for (label, answer), count in self.confusions.items():
            labels[label] += count
            answers[answer] += count
        for name, right in labels.most_common(MOST_COLUMNS):
            if right >= LEAST_LABELS and answers[name] < RARELY * right:
                yield f"one-sided: {name} for {answers[name]} of {self.n} rows; it is right for {right}"

    @property
    def object(self) -> JsonDict:
        confusions = [
            {"label": label, "answer": answer, "rows": count} for (label, answer), count in self.confusions.items()
        ]
        accuracy = self.accuracy
        return {
            "n": self.n,
            "accuracy": accuracy.value,
            "interval": accuracy.interval,
            "log_loss": self.log_loss,
            "confusions": confusions,
            "share_decided": {f"{error:g}": self.share_decided(error) for error in WANTED_ERRORS},
            "share_promised": {f"{error:g}": share for error, share in self.promised.items()},
        }

    def compare(self, other: DecisionFigures, names: Sequence[str]) -> str:
        """How many rows two runs would decide at one wanted error, each calibrated by its labels."""
        first, second = (
            f"{share_text(figures.promised.get(COMPARED_ERROR))} of the rows by {name}"
            for figures, name in zip((self, other), names, strict=True)
        )
        return f"decided at {COMPARED_ERROR:.0%} error ({CONFIDENCE:.0%} confidence): {first}, {second}"

    def print(self, streams: Streams) -> None:
        shares = [
            (f"{error:.0%}", f"{self.share_decided(error):.2f}", share_text(self.promised.get(error)))
            for error in WANTED_ERRORS
        ]
        headings = ("wanted error", "decided here", f"promised with {CONFIDENCE:.0%} confidence")
        print_table(streams, headings, shares, numbers=headings)
        streams.answer("\n")
        names = self.names
        if len(names) <= MOST_COLUMNS:
            counts = [[label, *(self.confusions.get((label, answer), 0) for answer in names)] for label in names]
            print_table(streams, ("label \\ answer", *names), counts, numbers=names)
            return
        wrong = [(*pair, count) for pair, count in self.confusions.items() if pair[0] != pair[1]]
        wrong.sort(key=lambda confusion: -confusion[2])
        print_table(streams, ("label", "answer", "rows"), wrong[: 2 * MOST_COLUMNS], numbers=("rows",))


def decision_figures(rows: Sequence[Answered]) -> DecisionFigures:
    """Figures of scored decisions, at least one."""
    losses = [-log(max(LEAST, (row.probabilities or {}).get(row.reference, 0.0))) for row in rows]
    names = names_of(rows)
    return DecisionFigures(
        n=len(rows),
        log_loss=fsum(losses) / len(losses),
        confusions=Counter((row.reference, row.likeliest) for row in rows),
        first_words_right=sum(row.first_word == row.reference for row in rows),
        errors=errors_by_sureness(rows),
        promised=calibration_of(rows, names, {}).promises if names else {},
    )


def names_of(rows: Sequence[Answered]) -> Texts:
    """The names of the choices of decisions; none if they differ."""
    first = rows[0].probabilities or {}
    return tuple(first) if all(first.keys() == (row.probabilities or {}).keys() for row in rows) else ()


def calibration_of(rows: Sequence[Answered], names: Texts, made_with: JsonObject) -> Calibration:
    """The calibration by decisions among choices with these names. Raises UsageError without any."""
    probabilities = [[row.probabilities[name] for name in names] for row in rows if row.probabilities]
    return calibrate(probabilities, [names.index(row.reference) for row in rows], names, made_with)


def errors_by_sureness(rows: Sequence[Answered]) -> list[float]:
    """The share of wrong answers among the surest 1, 2, ... rows; those as sure as another are taken with it."""
    errors: list[float] = []
    wrong = 0
    for _, group in groupby(sorted(rows, key=lambda row: -row.probability), key=lambda row: row.probability):
        found = [row.likeliest in row.references for row in group]
        wrong += found.count(False)
        errors += [wrong / (len(errors) + len(found))] * len(found)
    return errors


def share_text(share: float | None) -> str:
    return "none" if share is None else f"{share:.2f}"
