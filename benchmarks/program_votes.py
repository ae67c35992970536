"""Accuracy of votes against tokens: on prose, on programs, on both, and on prose that programs check.

Usage: python benchmarks/program_votes.py PROSE.jsonl PROGRAMS.jsonl CHECKS.jsonl [--dry-run]

PROSE and PROGRAMS are runs of `cerebrum eval` on the same questions, with as many samples each: one asks for reasoning,
the other for a program. CHECKS has the replies of `cerebrum batch` to a request for a program that follows each sample
of PROSE, with `question/sample` as their ids. The programs run in the sandbox; votes are replayed over all subsets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any, NamedTuple

from harness import argument_parser, record_section

from cerebrum_cli.answers.canonical import canonical, equals_reference
from cerebrum_cli.core.text import format_count
from cerebrum_cli.eval.comparison import paired_interval
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import group_by_question
from cerebrum_cli.eval.stored_runs import require_run
from cerebrum_cli.model.checking import run_program
from cerebrum_cli.model.code_sandbox import Sandbox, require_sandbox
from cerebrum_cli.model.tally import Program, comes_to

HEADING = "Votes on programs"
INTRODUCTION = """\
{model}, {questions} questions of GSM8K, temperature 0.7; {day}, written by `benchmarks/program_votes.py`. One sample of
prose is right in {prose:.3f}, one program in {program:.3f}. A program that follows prose prints its answer in
{checked:.3f}; then the prose is right in {if_checked:.3f}, otherwise in {if_not:.3f}. The last column is the paired
difference from votes on prose that cost as many tokens, by interpolation, or from the largest vote if that costs fewer,
with a 95% interval.
"""
HEAD = """\
| vote on | accuracy | tokens a question | difference from votes on prose, points |
|---|---|---|---|"""
NOT_RUN = Program("", None)  # of a sandbox that was closed
MIXTURES = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 4), (3, 3))
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")


class Ballot(NamedTuple):
    form: str | None
    is_right: bool


class Drawn(NamedTuple):
    """A sample, its tokens, and, of prose, the ballot and tokens of its program, and whether that comes to its answer.

    Of a program, only the first two.
    """

    ballot: Ballot
    tokens: int
    program: Ballot = Ballot(None, False)
    program_tokens: int = 0
    is_checked: bool = False


def ballot(answer: str | None, reference: str) -> Ballot:
    return Ballot(None, False) if answer is None else Ballot(canonical(answer), equals_reference(answer, reference))


def number(program: Program) -> str | None:
    """The last number of a program's output, without the error of its arithmetic."""
    numbers = NUMBER.findall(program.output or "")
    return f"{float(numbers[-1].replace(',', '')):.6f}".rstrip("0").rstrip(".") if numbers else None


def is_right(ballots: Iterable[Ballot]) -> bool:
    """Whether the first of the most frequent answers is right."""
    counts: dict[str, list[Ballot]] = {}
    for cast in ballots:
        if cast.form is not None:
            counts.setdefault(cast.form, []).append(cast)
    return max(counts.values(), key=len)[0].is_right if counts else False


def votes(questions: Sequence[tuple[list[Drawn], list[Drawn]]], kind: str, prose: int, programs: int) -> Curve:
    """Accuracy of each question over all subsets of samples, and the mean number of tokens."""
    accuracies, tokens = list[float](), list[float]()
    for of_prose, of_programs in questions:
        right, costs = list[bool](), list[int]()
        for subset in combinations(of_prose, prose):
            for others in combinations(of_programs, programs):
                cost = sum(drawn.tokens for drawn in (*subset, *others))
                counted = [drawn.ballot for drawn in (*subset, *others)]
                if kind:
                    cost += sum(drawn.program_tokens for drawn in subset)
                if kind == "checked":
                    counted = [drawn.ballot for drawn in subset if drawn.is_checked] or counted
                elif kind == "both":
                    counted += [drawn.program for drawn in subset]
                right.append(is_right(counted))
                costs.append(cost)
        accuracies.append(mean(right))
        tokens.append(mean(costs))
    return Curve(accuracies, mean(tokens))


class Curve(NamedTuple):
    accuracies: list[float]
    tokens: float


def at_tokens(curves: Sequence[Curve], tokens: float) -> list[float]:
    """Accuracy of each question of a vote that costs so many tokens, between two sizes, or of the nearest size."""
    for smaller, larger in pairwise(curves):
        if smaller.tokens <= tokens <= larger.tokens:
            share = (tokens - smaller.tokens) / (larger.tokens - smaller.tokens)
            pairs = zip(smaller.accuracies, larger.accuracies, strict=True)
            return [(1 - share) * before + share * after for before, after in pairs]
    return curves[0 if tokens < curves[0].tokens else -1].accuracies


def rows(questions: Sequence[tuple[list[Drawn], list[Drawn]]]) -> Iterator[str]:
    sizes = range(1, len(questions[0][0]) + 1)
    prose = [votes(questions, "", size, 0) for size in sizes]
    named = {f"{size} of prose": curve for size, curve in zip(sizes, prose, strict=True)}
    named |= {format_count(size, "program"): votes(questions, "", 0, size) for size in sizes}
    named |= {f"{a} of prose, {format_count(b, 'program')}": votes(questions, "", a, b) for a, b in MIXTURES}
    named |= {f"{size} of prose that programs check": votes(questions, "checked", size, 0) for size in sizes}
    named |= {f"{size} of prose and the program after each": votes(questions, "both", size, 0) for size in sizes}
    for name, curve in sorted(named.items(), key=lambda item: item[1].tokens):
        cells = [name, f"{mean(curve.accuracies):.3f}", f"{curve.tokens:.0f}", ""]
        if curve not in prose and curve.tokens >= prose[0].tokens:
            pairs = zip(curve.accuracies, at_tokens(prose, curve.tokens), strict=True)
            differences = [here - there for here, there in pairs]
            low, high = paired_interval(differences)
            cells[-1] = f"{100 * mean(differences):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        yield f"| {' | '.join(cells)} |"


def draw_prose(sandbox: Sandbox, sample: Sample, check: Mapping[str, Any]) -> Drawn:
    program = run_program(sandbox, check["text"]) or NOT_RUN
    return Drawn(
        ballot(sample.answer, sample.gold),
        sample.completion_tokens,
        ballot(number(program), sample.gold),
        check["completion_tokens"],
        sample.answer is not None and comes_to(program, sample.answer),
    )


def draw_program(sandbox: Sandbox, sample: Sample) -> Drawn:
    answer = number(run_program(sandbox, sample.text) or NOT_RUN)
    return Drawn(ballot(answer, sample.gold), sample.completion_tokens)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("prose", type=Path)
    parser.add_argument("programs", type=Path)
    parser.add_argument("checks", type=Path)
    options = parser.parse_args()
    first, second = (require_run(path) for path in (options.prose, options.programs))
    checks = {row["id"]: row for row in map(json.loads, options.checks.read_text().splitlines())}
    by_prose, by_programs = (group_by_question(run.samples()) for run in (first, second))
    sandbox = require_sandbox()
    questions = [
        (
            [draw_prose(sandbox, sample, checks[f"{id}/{sample.sample}"]) for sample in samples],
            [draw_program(sandbox, sample) for sample in by_programs[id]],
        )
        for id, samples in by_prose.items()
    ]
    drawn = [sample for of_prose, _ in questions for sample in of_prose]
    introduction = INTRODUCTION.format(
        model=first.model,
        questions=len(questions),
        day=date.today(),
        prose=mean(sample.ballot.is_right for sample in drawn),
        program=mean(sample.ballot.is_right for _, of_programs in questions for sample in of_programs),
        checked=mean(sample.is_checked for sample in drawn),
        if_checked=mean(sample.ballot.is_right for sample in drawn if sample.is_checked),
        if_not=mean(sample.ballot.is_right for sample in drawn if not sample.is_checked),
    )
    table = "\n".join([fill(introduction, 120), "", HEAD, *rows(questions)])
    print(table)
    if not options.dry_run:
        record_section(f"{HEADING}: {first.model}", table)


if __name__ == "__main__":
    main()
