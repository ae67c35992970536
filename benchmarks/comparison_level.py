"""How often `runs compare` finds a significant difference: between equal models, and where there is one.

Usage: python benchmarks/comparison_level.py [--dry-run]

It also prints how often it finds a true difference as large as it calls detectable in 80 % of cases, and how often the
interval of a single run contains the accuracy over all questions that could have been asked.

Questions have a difficulty and belong to clusters, in each of which one model may be better than the other by chance;
over all clusters they are equal. The rate should be 5 %. It is lower where few questions with one sample each give few
different results, as six do, of which four of one direction must change, and 0 with fewer than five clusters, which are
too few to show a difference. In the last column each question is its own cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from math import ceil, exp, sqrt
from statistics import NormalDist, fmean

import numpy
from harness import argument_parser, record_section
from numpy.random import Generator, default_rng

from cerebrum_cli.eval.comparison import Comparison, QuestionResult, compare
from cerebrum_cli.eval.estimates import degrees_of_freedom, estimate

TRIALS = 4000


def pareto_sizes(clusters: int, alpha: float = 1.2, smallest: int = 2) -> tuple[int, ...]:
    """Sizes of clusters at evenly spaced quantiles of a Pareto distribution, the largest first."""
    return tuple(ceil(smallest / ((index + 0.5) / clusters) ** (1 / alpha)) for index in range(clusters))


PARETO = (pareto_sizes(25), pareto_sizes(60))
UNEQUAL = (
    *((60, *[4] * 3), (60, *[4] * 14), (60, *[4] * 20), (60, *[4] * 29)),
    *((30, *[1] * 60), (*[40] * 5, *[1] * 100), *PARETO),
)
CLUSTERS, SAMPLES, QUESTIONS = (2, 3, 5, 8, 12, 20), (1, 8), (6, 12, 30, 120)
CASES = ((1, 0.0), (1, 0.7), (8, 0.0), (8, 0.7))  # samples, spread of the advantages in clusters
UNEQUAL_TITLE = """\
Clusters of unequal size: what they are worth in equal ones (below 5, no difference is called significant), and the rate
by samples and by the spread of one model's advantage between clusters.
"""
COVERAGE_CASES = ((1, 0.0), (1, 2.0), (8, 0.0), (8, 2.0))  # samples, ease of the questions
COVERAGE_TITLE = """\
Share of intervals of a single run that contain the model's accuracy, in percent (it should be 95 %), by samples and by
that accuracy, which differs between clusters.
"""
POWER_TRIALS = 300
POWER_CASES = ((30, 30, 1), (30, 30, 8), (60, 10, 1), (120, 120, 1), (120, 20, 8), (200, 200, 1), (200, 8, 8))
POWER_TITLE = f"""\
The mean difference that equal runs are said to detect in 80 % of cases, in points, and the share of {POWER_TRIALS}
comparisons of models which differ by as much that find it, in percent; these shares vary by about 2.5 points.

| questions | clusters | samples | detectable | found |
|---|---|---|---|---|
"""
INTRODUCTION = """\
Share of {trials:,} simulated comparisons of equally accurate models that `runs compare` calls significant, in percent
(the level is 5 %), by samples of each question, number of questions, and number of clusters; {day}, written by
`benchmarks/comparison_level.py`. Rates vary by about 0.35 points.

"""


def generator(seed: str) -> Generator:
    return default_rng([*seed.encode()])


def equal_rate(clusters: int, samples: int, questions: int) -> float:
    spread = 0.0 if clusters == questions else 0.7
    return rate([question % clusters for question in range(questions)], samples, spread)


def rate(names: Sequence[int], samples: int, spread: float) -> float:
    """Share of significant comparisons, in percent; `names` are the clusters of the questions."""
    random = generator(f"{names} {samples} {spread}")
    return 100 * sum(compared(random, names, samples, spread).is_significant for _ in range(TRIALS)) / TRIALS


def power(questions: int, clusters: int, samples: int) -> tuple[float, float]:
    """The difference that equal runs call detectable, and the share of runs which find it, in percent."""
    random = generator(f"power {questions} {clusters} {samples}")
    names, spread = [question % clusters for question in range(questions)], 0.0 if clusters == questions else 0.7
    stated = [compared(random, names, samples, spread).smallest_difference for _ in range(POWER_TRIALS)]
    difference = fmean(least for least in stated if least is not None)
    ahead = advantage_of(difference, spread)
    found = [compared(random, names, samples, spread, ahead).is_significant for _ in range(POWER_TRIALS)]
    return 100 * difference, 100 * fmean(found)


def advantage_of(difference: float, spread: float) -> float:
    """How far one model must be ahead for the accuracies to differ by so much, by bisection."""
    ease = NormalDist(0, sqrt(1 + 1 + 0.5**2 + spread**2))
    places = [ease.inv_cdf((place + 0.5) / 500) for place in range(500)]
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        if fmean(1 / (1 + exp(-place - middle)) - 1 / (1 + exp(-place)) for place in places) < difference:
            low = middle
        else:
            high = middle
    return low


def compared(random: Generator, names: Sequence[int], samples: int, spread: float, ahead: float = 0.0) -> Comparison:
    """Compare two simulated runs, the second of a model that is ahead by so much."""
    clusters = max(names) + 1
    difficulty = random.normal(0, 1, clusters)[names] + random.normal(0, 1, len(names))
    runs = []
    for lead in (0.0, ahead):
        advantage = lead + random.normal(0, spread, clusters)[names] + random.normal(0, 0.5, len(names))
        correct = random.binomial(samples, 1 / (1 + numpy.exp(difficulty - advantage))).tolist()
        runs.append([result(count, samples, name) for count, name in zip(correct, names, strict=True)])
    return compare(*runs)


def result(correct: int, samples: int, cluster: int) -> QuestionResult:
    is_right = 2 * correct > samples
    return QuestionResult(correct / samples, str(is_right), is_right, cluster)


def coverage(names: Sequence[int], samples: int, ease: float) -> float:
    """Share of a run's intervals that contain the accuracy of its model, in percent."""
    random = generator(f"coverage {names} {samples} {ease}")
    spread = NormalDist(ease, sqrt(1 + 1 + 0.5**2))
    truth = fmean(1 / (1 + exp(-spread.inv_cdf((place + 0.5) / 2000))) for place in range(2000))
    covered = 0
    for _ in range(TRIALS):
        abilities = random.normal(ease, 1, max(names) + 1)[names] + random.normal(0, sqrt(1 + 0.5**2), len(names))
        scores = random.binomial(samples, 1 / (1 + numpy.exp(-abilities))) / samples
        low, high = estimate(scores.tolist(), names).interval
        covered += low <= truth <= high
    return 100 * covered / TRIALS


def shape_of(sizes: Sequence[int]) -> str:
    if sizes in PARETO:
        return f"{len(sizes)} of a Pareto distribution: {sizes[0]}, {sizes[1]}, ... {sizes[-1]}"
    return " + ".join(f"{count} x {size}" for size, count in Counter(sizes).items())


def named(sizes: Sequence[int]) -> list[int]:
    """The cluster of each question, by number."""
    return [name for name, size in enumerate(sizes) for _ in range(size)]


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    lines = [f"| samples | questions | {' | '.join(map(str, CLUSTERS))} | no clusters |"]
    lines.append("|---" * (3 + len(CLUSTERS)) + "|")
    for samples in SAMPLES:
        for questions in QUESTIONS:
            rates = [f"{equal_rate(count, samples, questions):.1f}" if count < questions else "" for count in CLUSTERS]
            rates.append(f"{equal_rate(questions, samples, questions):.1f}")
            lines.append(f"| {samples} | {questions} | {' | '.join(rates)} |")
            print(lines[-1], flush=True)
    lines += ["", UNEQUAL_TITLE, f"| sizes | worth | {' | '.join(f'{k}, {spread:g}' for k, spread in CASES)} |"]
    lines.append("|---" * (2 + len(CASES)) + "|")
    for sizes in UNEQUAL:
        names = named(sizes)
        rates = [f"{rate(names, samples, spread):.1f}" for samples, spread in CASES]
        lines.append(f"| {shape_of(sizes)} | {degrees_of_freedom(names) + 1:.2f} | {' | '.join(rates)} |")
        print(lines[-1], flush=True)
    header = " | ".join(f"{samples}, {'80' if ease else '50'} %" for samples, ease in COVERAGE_CASES)
    lines += ["", COVERAGE_TITLE, f"| sizes | {header} |", "|---" * (1 + len(COVERAGE_CASES)) + "|"]
    equal = [(questions // count,) * count for questions in (30, 120) for count in (5, 12, 20, 30)]
    for sizes in (*(sizes for sizes in equal if sizes[0] > 1), *UNEQUAL):
        shares = [f"{coverage(named(sizes), samples, ease):.1f}" for samples, ease in COVERAGE_CASES]
        lines.append(f"| {shape_of(sizes)} | {' | '.join(shares)} |")
        print(lines[-1], flush=True)
    lines += ["", POWER_TITLE.rstrip("\n")]
    for case in POWER_CASES:
        difference, found = power(*case)
        lines.append(f"| {' | '.join(map(str, case))} | {difference:.1f} | {found:.0f} |")
        print(lines[-1], flush=True)
    if not options.dry_run:
        introduction = INTRODUCTION.format(trials=TRIALS, day=date.today())
        record_section("Level of comparisons", introduction + "\n".join(lines))


if __name__ == "__main__":
    main()
