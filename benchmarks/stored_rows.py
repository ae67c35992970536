"""Measure what it costs to resume a batch of many finished rows, and to write its result; neither needs a model.

Usage: python benchmarks/stored_rows.py [--rows N] [--dry-run]

Rows with answers of 300 tokens are written to OUTPUT.partial, in an order like that of a server's answers.

resume  CPU time to open the input and the results that another process has written, when all rows but one are finished.
result  CPU time to complete it, from the last row to the complete result. Its lines must be in the order of the input.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from harness import Row, argument_parser, in_subprocess, record
from large_batch import REPLY, row_ids, write_input

from cerebrum_cli.batch.input_row import InputRow, output_object
from cerebrum_cli.batch.readers import BatchInput, InputOptions
from cerebrum_cli.results.results import open_results
from cerebrum_cli.results.rows import Results

ROWS = 1_000_000
WINDOW = 4096  # rows that are answered together, and finish in any order
RESUME_S, RESULT_S = 5.0, 40.0  # at most, of ROWS


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"rows of the input [default: {ROWS:,}]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        record(measure(Path(directory), options.rows), options.dry_run)


def measure(directory: Path, rows: int) -> Iterator[Row]:
    source = write_input(directory / "in.jsonl", rows)
    output = directory / "answers.jsonl"
    in_subprocess(write_all_but_one, source, output)
    resume_s = in_subprocess(resume, source, output)
    result_s = in_subprocess(complete, source, output)
    print(f"resume {resume_s:.2f} s; result {result_s:.1f} s")
    with output.open("rb") as lines:
        if [json.loads(line)["id"] for line in lines] != row_ids(rows):
            raise RuntimeError("the rows of the result are not those of the input")
    label = f"batch of {rows:,} finished rows"
    for name, seconds, most in (("resume", resume_s, RESUME_S), ("write the result", result_s, RESULT_S)):
        limit = most * rows / ROWS
        yield Row(f"{label}: CPU time to {name}", f"{seconds:.2f} s", f"{limit:.1f} s", seconds / limit, "<= 1")


# Each in a process of its own.


def write_all_but_one(source: Path, output: Path) -> None:
    with InputOptions().open(source, None, output) as rows, closing(open_rows(output, rows)) as results:
        missing = islice(rows.missing_rows(results), results.size - 1)
        randomness = random.Random(0)
        while window := list(islice(missing, WINDOW)):
            randomness.shuffle(window)
            for position, row in window:
                results.write_row(position, answer(row))


def resume(source: Path, output: Path) -> float:
    """CPU time in which the input and the results are opened, and the missing row is found."""
    start = time.process_time()
    with InputOptions().open(source, None, output) as rows, closing(open_rows(output, rows)) as results:
        list(rows.missing_rows(results))
        return time.process_time() - start


def complete(source: Path, output: Path) -> float:
    with InputOptions().open(source, None, output) as rows, closing(open_rows(output, rows)) as results:
        for position, row in rows.missing_rows(results):
            results.write_row(position, answer(row))
        start = time.process_time()
        results.complete()
        return time.process_time() - start


def open_rows(output: Path, rows: BatchInput) -> Results:
    return open_results(output, {"model": "none"}, rows.kind_for(output), rows.known_rows())


def answer(row: InputRow) -> dict[str, Any]:
    text = REPLY.format(row.id)
    return output_object(row, text=text, finish_reason="stop", prompt_tokens=100, completion_tokens=300, seed=1)


if __name__ == "__main__":
    main()
