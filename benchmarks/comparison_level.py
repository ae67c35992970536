"""How often `runs compare` finds a significant difference between two models that are equally accurate.

Usage: python benchmarks/comparison_level.py [--dry-run]

Questions have a difficulty and belong to clusters, in each of which one model may be better than the other by chance;
over all clusters they are equal. The rate should be 5 %. It is lower where few questions with one sample each give few
different results, as six do, of which four of one direction must change, and 0 with fewer than five clusters, which are
too few to show a difference. In the last column each question is its own cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from math import exp
from random import Random

from harness import argument_parser, record_section

from cerebrum_cli.eval.comparison import QuestionResult, compare
from cerebrum_cli.eval.estimates import degrees_of_freedom

TRIALS = 1000
UNEQUAL = ((60, *[4] * 3), (60, *[4] * 14), (60, *[4] * 20), (60, *[4] * 29), (30, *[1] * 60), (*[40] * 5, *[1] * 100))
CLUSTERS, SAMPLES, QUESTIONS = (2, 3, 5, 8, 12, 20), (1, 8), (6, 12, 30, 120)
CASES = ((1, 0.0), (1, 0.7), (8, 0.0), (8, 0.7))  # samples, spread of the advantages in clusters
UNEQUAL_TITLE = """\
Clusters of unequal size: what they are worth in equal ones (below 5, no difference is called significant), and the rate
by samples and by the spread of one model's advantage between clusters.
"""
INTRODUCTION = """\
Share of {trials:,} simulated comparisons of equally accurate models that `runs compare` calls significant, in percent
(the level is 5 %), by samples of each question, number of questions, and number of clusters; {day}, written by
`benchmarks/comparison_level.py`.

"""


def equal_rate(clusters: int, samples: int, questions: int) -> float:
    spread = 0.0 if clusters == questions else 0.7
    return rate([question % clusters for question in range(questions)], samples, spread)


def rate(names: Sequence[int], samples: int, spread: float) -> float:
    """Share of significant comparisons, in percent; `names` are the clusters of the questions."""
    random = Random(f"{names} {samples} {spread}")
    return 100 * sum(is_significant(random, names, samples, spread) for _ in range(TRIALS)) / TRIALS


def is_significant(random: Random, names: Sequence[int], samples: int, spread: float) -> bool:
    clusters = len(set(names))
    effects = [[random.gauss(0, 1), random.gauss(0, spread), random.gauss(0, spread)] for _ in range(clusters)]
    runs: tuple[list[QuestionResult], list[QuestionResult]] = [], []
    for name in names:
        difficulty, *advantages = effects[name]
        difficulty += random.gauss(0, 1)
        for run, advantage in zip(runs, advantages, strict=True):
            chance = 1 / (1 + exp(difficulty - advantage - random.gauss(0, 0.5)))
            correct = [random.random() < chance for _ in range(samples)]
            is_right = 2 * sum(correct) > samples
            run.append(QuestionResult(sum(correct) / samples, str(is_right), is_right, name))
    return compare(*runs).is_significant


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
        names = [name for name, size in enumerate(sizes) for _ in range(size)]
        shape = " + ".join(f"{count} x {size}" for size, count in Counter(sizes).items())
        rates = [f"{rate(names, samples, spread):.1f}" for samples, spread in CASES]
        lines.append(f"| {shape} | {degrees_of_freedom(names) + 1:.2f} | {' | '.join(rates)} |")
        print(lines[-1], flush=True)
    if not options.dry_run:
        introduction = INTRODUCTION.format(trials=TRIALS, day=date.today())
        record_section("Level of comparisons", introduction + "\n".join(lines))


if __name__ == "__main__":
    main()
