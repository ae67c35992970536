"""How often the score of a reply is wrong, where its answer is stated and where it is guessed.

Usage: python benchmarks/stated.py RUN.jsonl ... [--labels FILE] [--dry-run]

Each RUN.jsonl is a run of `cerebrum eval`, with an answer form asked for or without. A person has read the replies that
are scored as wrong, and lists those that mean the correct answer in FILE, one `{"run": NAME, "id": ID, "sample": N}` on
each line, with the replies that are scored as correct by accident, if any was found.
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
Replies of Qwen2.5-Coder Instruct (Q4_K_M) to GSM8K, scored by `cerebrum eval` and read by a person where the score is
"wrong"; {day}, written by `benchmarks/stated.py`. Runs named `form` asked for a last line with the answer, `plain`
only the question, both greedily; `samples` asked for the line at temperature 0.7. Wrong scores are those that differ
from what the reply means, with a 95% interval.

| run | replies | accuracy | stated | guessed | missing | wrong scores where stated | where guessed |
|---|---|---|---|---|---|---|---|
"""


def row(name: str, read: Sequence[tuple[Sample, bool]]) -> str:
    """Row of the table for a run, from its samples and whether their scores are wrong."""
    cells = [name, str(len(read)), f"{sum(sample.correct for sample, _ in read) / len(read):.3f}"]
    by_basis = {
        basis: [is_wrong for sample, is_wrong in read if sample.basis == basis]
        for basis in ("stated", "guessed", "missing")
    }
    cells += [str(len(found)) for found in by_basis.values()]
    for basis in ("stated", "guessed"):
        found = by_basis[basis]
        count = sum(found)
        low, high = wilson(count / len(found) if found else 0.0, len(found))
        cells.append(f"{count} of {len(found)} ({low:.3f} to {high:.3f})" if found else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--labels", type=Path)
    options = parser.parse_args()
    labels = [json.loads(line) for line in options.labels.read_text().splitlines()] if options.labels else []
    lines, all_read = [], list[tuple[Sample, bool]]()
    for path in options.runs:
        run = require_run(path)
        samples, _ = rescored(run)
        wrong = {(str(label["id"]), int(label["sample"])) for label in labels if label["run"] == run.name}
        read = [(sample, (str(sample.id), sample.sample) in wrong) for sample in samples]
        lines.append(row(run.name, read))
        all_read += read
    lines.append(row("all", all_read))
    table = INTRODUCTION.format(day=date.today()) + "\n".join(lines)
    print(table)
    if not options.dry_run:
        record_section(HEADING, table)


if __name__ == "__main__":
    main()
