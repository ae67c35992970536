"""Compare a batch on two Ray nodes of this machine with one process, all with one thread each; measure the head.

Needs `cerebrum pull starter`, two cores and the extra `ray`.
Usage: python benchmarks/ray_nodes.py [--rows N] [--runs N] [--head-rows N] [--dry-run]

The starter answers N questions of different lengths with TOKENS tokens each, SLOTS at a time on each node. A rate is
the one that the command prints: tokens by the seconds in which rows were answered, without loading the model and
starting Ray, whose processes share the cores.

Then workers that answer at once, with 300 tokens a row, show how many rows pass through the head, its results included.
At half of the rows the command is killed, and resumed.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from harness import SCRIPT, Row, alternate, argument_parser, record, run

from cerebrum_cli.batch.input_row import output_object
from cerebrum_cli.cluster import distribution as ray_nodes
from cerebrum_cli.results.row_file import read_lines

TOKENS, SLOTS = 64, 16
QUESTION = "A train covers {0} km in {1} hours, then {2} km in {3} hours. {4} What is its average speed?"
FILLER = "It stops at a station for some minutes, and then continues."
RATE = re.compile(r"\((\d+\.\d) t/s")
HEAD_TOKENS = 300
HEAD = "--head"  # what this program is called with to be the command whose workers answer at once
POLL_S = 0.2


def main() -> None:
    """Run the batches in alternation, then that of the head, and record the rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=96, metavar="N", help="questions [default: 96]")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="pairs of runs [default: 3]")
    parser.add_argument("--head-rows", type=int, default=100_000, metavar="N", help="[default: 100000]")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "in.jsonl"
        if options.runs:
            write_questions(source, options.rows)
            ours, peer, ratio = alternate(lambda: rate(source, "--ray", "local:2"), lambda: rate(source), options.runs)
            what = "t/s on two Ray nodes of one thread / in one process of one thread"
            label = f"batch of {options.rows} rows, starter: {what}"
            rows.append(Row(label, f"{ours:.0f} t/s", f"{peer:.0f} t/s", ratio, ">= 1.7"))
        if options.head_rows:
            write_questions(source, options.head_rows)
            through, memory = measure_head(source, options.head_rows)
            label = f"head of Ray nodes, {options.head_rows} rows, killed at half: rows a second, memory"
            rows.append(Row(label, f"{through:.0f}/s, {memory} MB", "5000/s", through / 5000, ">= 1"))
    record(rows, options.dry_run)


def write_questions(path: Path, rows: int) -> None:
    with path.open("w") as file:
        for at in range(rows):
            question = QUESTION.format(at, at % 7 + 1, 3 * at, at % 5 + 2, FILLER * (at % 4))
            file.write(json.dumps({"prompt": question}) + "\n")


def rate(source: Path, *more: str) -> float:
    """Tokens per second of a batch."""
    settings = ["-m", "starter", "--threads", "1", "--parallel", str(SLOTS), "-n", str(TOKENS), "--temperature", "0"]
    output = source.with_name("out.jsonl")
    done = run([SCRIPT, "batch", str(source), "-o", str(output), "--restart", *settings, *more])
    output.unlink()
    found = RATE.findall(done.errors)
    return float(found[-1])


def measure_head(source: Path, rows: int) -> tuple[float, int]:
    """Rows a second of the half after the kill, and the most memory of the command and its driver of Ray, in MB."""
    output = source.with_name("head.jsonl")
    command = [
        sys.executable,
        __file__,
        HEAD,
        "batch",
        str(source),
        "-o",
        str(output),
        "-m",
        "starter",
        "-n",
        str(HEAD_TOKENS),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    memory, errors = 0, ""
    for until in (rows // 2, rows):
        process = subprocess.Popen(
            [*command, "--ray", "local:2"], stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        partial = output.with_name("head.jsonl.partial")
        while process.poll() is None and (until == rows or sum(1 for _ in read_lines(partial)) < until):
            memory = max(memory, head_memory(process.pid))
            time.sleep(POLL_S)
        if until < rows:
            process.kill()
        errors = process.communicate()[1]
    ids = [json.loads(line)["id"] for line in output.open()]
    assert ids == list(range(1, rows + 1)), "rows are lost, doubled or out of order"
    [tokens_per_s] = RATE.findall(errors)[-1:]
    return float(tokens_per_s) / HEAD_TOKENS, memory >> 20


def head_memory(process: int) -> int:
    """Bytes of a command and its driver of Ray; the first child is that."""
    try:
        parent = psutil.Process(process)
        return sum(each.memory_info().rss for each in (parent, *parent.children()[:1]))
    except psutil.Error:
        return 0


class InstantJob(ray_nodes.NodeJob):
    """Opens what answers at once."""

    def __call__(self, threads: int) -> Any:  # noqa: ARG002
        yield from ()
        return answer_at_once, ()


def answer_at_once(block: bytes) -> bytes:
    values: dict[str, Any] = {
        "finish_reason": "stop",
        "prompt_tokens": 40,
        "completion_tokens": HEAD_TOKENS,
        "seed": 1,
    }
    rows = {
        at: output_object(row, text=FILLER * 20, final_answer="80", **values) for at, row in pickle.loads(block).items()
    }
    return pickle.dumps(("node", rows, HEAD_TOKENS * len(rows), []))


def run_head() -> None:
    """Be the command, with other workers. Those import their job from this file as a module."""
    import ray_nodes as here

    from cerebrum_cli.__main__ import main as command

    ray_nodes.NodeJob = here.InstantJob  # type: ignore[misc]
    sys.argv = ["cerebrum", *sys.argv[2:]]
    command()


if __name__ == "__main__":
    run_head() if sys.argv[1:2] == [HEAD] else main()
