"""The promised error, by simulation: python -m benchmarks.trust [--draws N] [--shapes NAME...] [--compare | --maps]

For each shape of scores and each number of labelled rows, rows are drawn from a population whose true errors are known.
A calibration of them chooses the threshold for at most 5 % errors with 90 % confidence. Printed are

- broken: the share of draws in which more than 5 % of the decided rows of the population are wrong; at most 0.10
- none: the share of draws in which no threshold keeps the promise
- decided: the mean share of rows decided
- hindsight: the share that the best threshold decides, with the map that 20,000 labelled rows fit

`--compare` shows what else could choose the threshold: rows that did not fit the map (ours), each row with the map that
the other four fifths fitted, and the rows that fitted it. `--maps` shows the change of the log loss of new rows by maps
that few rows fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

import numpy

from benchmarks.harness import argument_parser
from cerebrum_cli.trust.calibration import (
    Calibration,
    calibrate,
)
from cerebrum_cli.trust.score_map import LEAST, ScoreMap, fit_map
from cerebrum_cli.trust.threshold import ScoredRow, find_threshold

ERROR, CONFIDENCE = 0.05, 0.9
POPULATION = 20_000
LABELLED = (50, 200, 1000)
SEED = 87
FOLDS = 5


class Population(NamedTuple):
    """Rows with the probabilities of their choices, and the right one."""

    probabilities: Any
    labels: Any

    def calibrate(self, rows: Any) -> Calibration:
        probabilities, labels = self.probabilities[rows].tolist(), self.labels[rows].tolist()
        choices = tuple(map(str, range(self.probabilities.shape[1])))
        return calibrate(probabilities, labels, choices, {})

    def scored(self, score_map: ScoreMap) -> Scored:
        """The answers of all rows."""
        mapped = self.mapped(score_map)
        answers = mapped.argmax(axis=1)
        return Scored(mapped[numpy.arange(len(mapped)), answers], answers == self.labels)

    def mapped(self, score_map: ScoreMap) -> Any:
        logits = score_map.weight * numpy.log(numpy.maximum(self.probabilities, LEAST)) + numpy.array(score_map.biases)
        shares = numpy.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    def log_loss(self, score_map: ScoreMap) -> float:
        mapped = self.mapped(score_map)
        return float(-numpy.log(mapped[numpy.arange(len(mapped)), self.labels]).mean())


class Scored(NamedTuple):
    probabilities: Any
    is_right: Any

    def decided_and_error(self, lowest: float | None) -> tuple[float, float]:
        """The share of rows at least as probable, and the share of wrong ones among them."""
        if lowest is None:
            return 0.0, 0.0
        decided = self.probabilities >= lowest - 1e-12  # other arithmetic rounds otherwise
        return float(decided.mean()), float(1 - self.is_right[decided].mean()) if decided.any() else 0.0

    def hindsight(self) -> float:
        order = numpy.argsort(-self.probabilities, kind="stable")
        ordered = self.probabilities[order]
        errors = numpy.cumsum(~self.is_right[order]) / numpy.arange(1, len(order) + 1)
        is_last = numpy.append(ordered[1:] != ordered[:-1], True)
        kept = numpy.flatnonzero(is_last & (errors <= ERROR))
        return float(kept[-1] + 1) / len(order) if len(kept) else 0.0


def choices(
    random: Any,
    count: int,
    strength: float,
    sharpness: float = 1.0,
    bias: Sequence[float] = (),
    frequencies: Sequence[float] = (),
) -> Population:
    """Normal evidence for each choice, `strength` higher for the right one, as probabilities.

    With a sharpness of 1 and no bias they are the true ones if all choices are equally frequent.
    """
    labels = random.choice(count, POPULATION, p=frequencies or None)
    evidence = random.normal(size=(POPULATION, count))
    evidence[numpy.arange(POPULATION), labels] += strength
    logits = evidence * strength * sharpness + numpy.array(bias or [0.0] * count)
    shares = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    return Population(numpy.maximum(shares / shares.sum(axis=1, keepdims=True), LEAST), labels)


def useless(random: Any) -> Population:
    found = choices(random, 3, 1.0)
    return Population(found.probabilities, random.permutation(found.labels))


def ties(random: Any) -> Population:
    """Shares of 8 samples; questions differ in how often a sample is right."""
    labels = random.choice(2, POPULATION)
    right = random.binomial(8, random.beta(3.0, 0.4, POPULATION)) / 8
    shares = numpy.column_stack([right, 1 - right])
    return Population(numpy.where(labels[:, None] == 0, shares, shares[:, ::-1]), labels)


def surest_wrong(random: Any) -> Population:
    """One row in 30 is as sure as can be, and wrong in two of three cases."""
    found = choices(random, 2, 2.2)
    probabilities, labels = found.probabilities.copy(), found.labels.copy()
    trap = random.random(POPULATION) < 1 / 30
    probabilities[trap] = (0.999, 0.001)
    labels[trap] = random.random(int(trap.sum())) < 2 / 3
    return Population(probabilities, labels)


def wrong_labels(random: Any) -> Population:
    """The labels of one row in 40 are wrong."""
    found = choices(random, 2, 2.2)
    is_wrong = random.random(POPULATION) < 1 / 40
    return Population(found.probabilities, numpy.where(is_wrong, 1 - found.labels, found.labels))


SHAPES: Mapping[str, Callable[[Any], Population]] = {
    "strong": lambda random: choices(random, 2, 1.9),
    "weak": lambda random: choices(random, 4, 1.3),
    "useless": useless,
    "ties: votes of 8": ties,
    "imbalance: 9 to 1": lambda random: choices(random, 2, 1.6, 0.7, (2.0, 0.0), (0.9, 0.1)),
    "overconfident": lambda random: choices(random, 3, 2.4, 2.5),
    "moderate": lambda random: choices(random, 4, 1.7),
    "biased": lambda random: choices(random, 2, 1.6, 0.7, (3.0, 0.0)),
    "underconfident": lambda random: choices(random, 4, 1.8, 0.3),
    "ten choices": lambda random: choices(random, 10, 2.2, 1.5, [0.3 * place for place in range(10)]),
    "surest rows wrong": surest_wrong,
    "wrong labels": wrong_labels,
}


def promise_row(name: str, population: Population, draws: int) -> str:
    """A row of the table: broken, none and decided for each number of labelled rows, then hindsight."""
    random = numpy.random.default_rng(SEED)
    everything = population.probabilities.tolist()
    best = fit_map(everything, population.labels.tolist(), population.probabilities.shape[1])
    cells = [name]
    for labelled in LABELLED:
        found = []
        for _ in range(draws):
            calibration = population.calibrate(random.choice(POPULATION, labelled))
            lowest = lowest_decided(calibration.rows)
            decided, error = population.scored(calibration.map).decided_and_error(lowest)
            found.append((error > ERROR, lowest is None, decided))
        cells += [f"{value:.3f}" for value in numpy.mean(found, axis=0)]
    return " | ".join([*cells, f"{population.scored(best).hindsight():.3f}"])


def compare_row(name: str, population: Population, draws: int) -> str:
    """Broken and decided, by what chooses the threshold, with 200 labelled rows."""
    random = numpy.random.default_rng(SEED)
    found = []
    for _ in range(draws):
        rows = random.choice(POPULATION, 200)
        ours = population.calibrate(rows)
        results = [population.scored(ours.map).decided_and_error(lowest_decided(ours.rows))]
        final = fitted_by(population, rows)
        scored = population.scored(final)
        crossed: list[ScoredRow] = []
        for fold in range(FOLDS):
            others, held = numpy.delete(rows, slice(fold, None, FOLDS)), rows[fold::FOLDS]
            crossed += scored_rows(population.scored(fitted_by(population, others)), held)
        for labelled in (crossed, scored_rows(scored, rows)):
            results.append(scored.decided_and_error(lowest_decided(labelled)))
        found.append([[error > ERROR, decided] for decided, error in results])
    means = numpy.mean(found, axis=0)
    return " | ".join([name, *(f"{value:.3f}" for value in means.flatten())])


def lowest_decided(rows: Sequence[ScoredRow]) -> float | None:
    """The lowest probability that is decided, if any."""
    found = find_threshold(rows, ERROR, CONFIDENCE)
    return found.probability if found else None


def fitted_by(population: Population, rows: Any) -> ScoreMap:
    probabilities, labels = population.probabilities[rows], population.labels[rows]
    return fit_map(probabilities.tolist(), labels.tolist(), population.probabilities.shape[1])


def scored_rows(scored: Scored, rows: Any) -> list[ScoredRow]:
    pairs = zip(scored.probabilities[rows].tolist(), scored.is_right[rows].tolist(), strict=True)
    return [ScoredRow(*pair) for pair in pairs]


def maps_row(name: str, population: Population, draws: int) -> str:
    """The mean change of the log loss and its standard error, with 30, 100 and 300 rows that fit the map."""
    random = numpy.random.default_rng(SEED)
    before = population.log_loss(ScoreMap.none(population.probabilities.shape[1]))
    cells = [name, f"{before:.3f}"]
    for labelled in (30, 100):
        maps = [fitted_by(population, random.choice(POPULATION, labelled)) for _ in range(draws)]
        changes = [population.log_loss(score_map) - before for score_map in maps]
        cells.append(f"{numpy.mean(changes):+.4f} ± {numpy.std(changes) / sqrt(draws):.4f}")
    return " | ".join(cells)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--maps", action="store_true")
    options = parser.parse_args()
    row_of = promise_row
    if options.compare or options.maps:
        row_of = compare_row if options.compare else maps_row
    for name in options.shapes:
        population = SHAPES[name](numpy.random.default_rng(SEED))
        print(f"| {row_of(name, population, options.draws)} |", flush=True)


if __name__ == "__main__":
    main()
