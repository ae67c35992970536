"""How often the mark of a reply is wrong, where its answer is stated and where it is guessed.

Usage: python benchmarks/stated.py RUN.jsonl ... [--labels FILE] [--dry-run]

Each RUN.jsonl is a run of `cerebrum eval`, with an answer form asked for or without. A person has read the replies that
are marked wrong, and lists those that mean the correct answer in FILE, one `{"run": NAME, "id": ID, "sample": N}` on
each line, with the replies that are marked correct by accident, if any was found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from harness import argument_parser, record_section

from cerebrum_cli.eval.estimates import wilson
from cerebrum_cli.eval.questions import Sample
from cerebrum_cli.eval.rescoring import rescored
from cerebrum_cli.eval.stored_runs import require_run

HEADING = "Wrong marks of stated and guessed answers"
INTRODUCTION = """\
Greedy replies to GSM8K, scored by `cerebrum eval` and read by a person where the mark is "wrong"; {day}, written by
`benchmarks/stated.py`. Wrong marks are those that differ from what the reply means, with a 95% interval.

| run | replies | accuracy | stated | guessed | missing | wrong marks where stated | where guessed |
|---|---|---|---|---|---|---|---|
"""


def row(name: str, samples: Sequence[Sample], wrong: set[tuple[str, int]]) -> str:
    """Row of the table for a run; `wrong` has the samples whose marks are wrong."""
    cells = [name, str(len(samples)), f"{sum(sample.correct for sample in samples) / len(samples):.3f}"]
    by_basis = {
        basis: [sample for sample in samples if sample.basis == basis] for basis in ("stated", "guessed", "missing")
    }
    cells += [str(len(found)) for found in by_basis.values()]
    for basis in ("stated", "guessed"):
        found = by_basis[basis]
        count = sum((str(sample.id), sample.sample) in wrong for sample in found)
        low, high = wilson(count / len(found) if found else 0.0, len(found))
        cells.append(f"{count} of {len(found)} ({low:.3f} to {high:.3f})" if found else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--labels", type=Path)
    options = parser.parse_args()
    labels = [json.loads(line) for line in options.labels.read_text().splitlines()] if options.labels else []
    lines = []
    for path in options.runs:
        run = require_run(path)
        samples, _ = rescored(run.match, run.samples())
        wrong = {(str(label["id"]), int(label["sample"])) for label in labels if label["run"] == run.name}
        lines.append(row(run.name, samples, wrong))
    table = INTRODUCTION.format(day=date.today()) + "\n".join(lines)
    print(table)
    if not options.dry_run:
        record_section(HEADING, table)


if __name__ == "__main__":
    main()
