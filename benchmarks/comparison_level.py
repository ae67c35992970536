"""How often `runs compare` finds a significant difference between two models that are equally accurate.

Usage: python benchmarks/comparison_level.py [--dry-run]

Questions have a difficulty and belong to clusters, in each of which one model may be better than the other by chance;
over all clusters they are equal. The rate should be 5 %. It is lower where few questions with one sample each give few
different results: six questions, of which four of one direction must change, or two or three clusters, whose sums are
often equal, so that they show no spread. In the last column each question is its own cluster.
"""

from __future__ import annotations

from datetime import date
from math import exp
from random import Random

from harness import argument_parser, record_section

from cerebrum_cli.eval.comparison import QuestionResult, compare

TRIALS = 2000
CLUSTERS, SAMPLES, QUESTIONS = (2, 3, 5, 8, 12, 20), (1, 8), (6, 12, 30, 120)
INTRODUCTION = """\
Share of {trials:,} simulated comparisons of equally accurate models that `runs compare` calls significant, in percent
(the level is 5 %), by samples of each question, number of questions, and number of clusters; {day}, written by
`benchmarks/comparison_level.py`.

"""


def rate(clusters: int, samples: int, questions: int) -> float:
    random = Random(f"{clusters} {samples} {questions}")
    return sum(is_significant(random, clusters, samples, questions) for _ in range(TRIALS)) / TRIALS


def is_significant(random: Random, clusters: int, samples: int, questions: int) -> bool:
    spread = 0.0 if clusters == questions else 0.7
    effects = [[random.gauss(0, 1), random.gauss(0, spread), random.gauss(0, spread)] for _ in range(clusters)]
    runs: tuple[list[QuestionResult], list[QuestionResult]] = [], []
    for question in range(questions):
        difficulty, *advantages = effects[question % clusters]
        difficulty += random.gauss(0, 1)
        for run, advantage in zip(runs, advantages, strict=True):
            chance = 1 / (1 + exp(difficulty - advantage - random.gauss(0, 0.5)))
            correct = [random.random() < chance for _ in range(samples)]
            is_right = 2 * sum(correct) > samples
            run.append(QuestionResult(sum(correct) / samples, str(is_right), is_right, question % clusters))
    return compare(*runs).is_significant


def main() -> None:
    options = argument_parser(__doc__).parse_args()
    lines = [f"| samples | questions | {' | '.join(map(str, CLUSTERS))} | no clusters |"]
    lines.append("|---" * (3 + len(CLUSTERS)) + "|")
    for samples in SAMPLES:
        for questions in QUESTIONS:
            rates = [f"{100 * rate(count, samples, questions):.1f}" if count < questions else "" for count in CLUSTERS]
            rates.append(f"{100 * rate(questions, samples, questions):.1f}")
            lines.append(f"| {samples} | {questions} | {' | '.join(rates)} |")
            print(lines[-1], flush=True)
    if not options.dry_run:
        introduction = INTRODUCTION.format(trials=TRIALS, day=date.today())
        record_section("Level of comparisons", introduction + "\n".join(lines))


if __name__ == "__main__":
    main()
