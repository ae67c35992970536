"""Programs that models wrote, in both sandboxes: what Monty cannot run, how often they agree, and the votes with each.

Usage: python benchmarks/sandboxes.py NAME=FILE... [--dry-run]

A file is a run of `cerebrum eval ... --check python`, a run whose replies are programs, as for program_votes.py, or has
an object with a `program` on each line. Each program runs in bubblewrap and in Monty, as `--check python` runs it.
Rows of RESULTS.md with other names stay.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import mean, median
from textwrap import fill
from typing import NamedTuple

from harness import argument_parser, record_lines

from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.report import group_by_question, majority_estimates
from cerebrum_cli.eval.stored_runs import CHECK, require_run
from cerebrum_cli.programs.sandbox import Sandbox, require_sandbox
from cerebrum_cli.replies.checking import run_program
from cerebrum_cli.replies.tally import Program

HEADING = "Sandboxes"
INTRODUCTION = """\
Programs in both sandboxes, one after the other; {day}, written by `benchmarks/sandboxes.py`. They
agree if both print the same last line, or nothing. Times are medians, in bubblewrap and
in Monty, beside other programs on two cores. The last columns are
the accuracy of votes of all samples: of replies alone, and with what the programs print in each sandbox. Programs of
Codex are the outputs of github.com/TIGER-AI-Lab/Program-of-Thoughts, which end in `print(ans)` here. No
program prints anything else in Monty, so that the votes are the same.
"""
HEAD = """\
| programs | number | Monty cannot run | agreement on the others | ms | majority | with programs |
|---|---|---|---|---|---|---|
"""


class Ran(NamedTuple):
    """A program in one sandbox, and the milliseconds that it took."""

    program: Program
    milliseconds: float


class Both(NamedTuple):
    """A program in both sandboxes."""

    bubblewrap: Ran
    monty: Ran

    @property
    def agrees(self) -> bool:
        return self.bubblewrap.program.output == self.monty.program.output


class Programs(NamedTuple):
    """Programs by name of their file, and the samples that they follow, if they are checks."""

    name: str
    texts: list[str]
    samples: list[Sample]


def read_programs(argument: str) -> Programs:
    name, _, file = argument.partition("=")
    path = Path(file)
    if not path.with_name(f"{path.name}.meta.json").exists():
        return Programs(name, [json.loads(line)["program"] for line in path.read_text().splitlines()], [])
    stored = require_run(path)
    if CHECK not in stored.fingerprint:
        return Programs(name, [sample.text for sample in stored.samples()], [])
    groups = group_by_question(stored.samples()).values()
    samples = [sample for group in groups if len(group) == stored.samples_per_question for sample in group]
    return Programs(name, [sample.program for sample in samples if sample.program is not None], samples)


def ran(sandbox: Sandbox, text: str) -> Ran:
    start = time.perf_counter()
    program = run_program(sandbox, text)
    assert program is not None
    return Ran(program, 1000 * (time.perf_counter() - start))


def programs_row(name: str, results: Sequence[Both]) -> str:
    runnable = [both for both in results if not both.monty.program.is_unsupported]
    times = [median(ran.milliseconds for ran in column) for column in zip(*results, strict=True)]
    shares = f"{1 - len(runnable) / len(results):.4f} | {mean(both.agrees for both in runnable):.4f}"
    return f"| {name} | {len(results)} | {shares} | {times[0]:.0f}, {times[1]:.0f} |"


def votes_cells(samples: Sequence[Sample], results: Sequence[Both]) -> str:
    """Accuracy of the votes of a run, without programs, and with what they print in each sandbox; empty for others."""
    if not samples:
        return "  |  |"
    columns = []
    for column in zip(*results, strict=True):
        programs = iter(column)
        outputs = [None if sample.program is None else next(programs).program.output for sample in samples]
        columns.append(
            [replace(sample, program_output=output) for sample, output in zip(samples, outputs, strict=True)]
        )
    questions = [list(group_by_question(column).values()) for column in columns]
    number = len(questions[0][0])
    majority = majority_estimates(questions[0], with_programs=False)[number].value
    bubblewrap, monty = (majority_estimates(each, with_programs=True)[number].value for each in questions)
    return f" {majority:.3f} of {len(questions[0])} | {bubblewrap:.3f}, {monty:.3f} |"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    sandboxes = [require_sandbox(choice) for choice in ("bwrap", "monty")]
    rows = []
    for programs in map(read_programs, options.files):
        results = [Both(*(ran(sandbox, text) for sandbox in sandboxes)) for text in programs.texts]
        rows.append(programs_row(programs.name, results) + votes_cells(programs.samples, results))
        for both in results:
            if not both.agrees:
                outputs = (both.bubblewrap.program.output, both.monty.program.output)
                print(f"{programs.name}: {outputs}\n{both.monty.program.code}\n")
    print(*rows, sep="\n")
    if not options.dry_run:
        head = f"{fill(INTRODUCTION.format(day=date.today()), 120)}\n\n{HEAD}"
        record_lines(HEADING, head, rows, tuple(f"| {argument.partition('=')[0]} |" for argument in options.files))


if __name__ == "__main__":
    main()
