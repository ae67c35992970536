"""Measure `cerebrum eval`: its speed beside `cerebrum batch`, and its results for nano.

Needs `cerebrum pull starter` for `speed`. Usage: python benchmarks/evaluation.py [--data DIR] [--only PART] [--runs N]
[--dry-run]

DIR contains gsm8k-200.jsonl, see benchmarks/batch.py; without it, `speed` is skipped.

speed     The first QUESTIONS questions of GSM8K with the starter model at temperature 0, at most TOKENS tokens each, on
          two threads: generated tokens per second of the whole process, against `cerebrum batch` with the same prompts
          and as many tokens. Processes alternate, after one warm-up each.
accuracy  nano, the model in the package, on its 200 held-out sums at temperature 0.8 with SAMPLES samples each and two
          seeds: a vote of all samples against single samples, as the report states them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from answering import GSM8K, THREADS, model_path
from harness import SCRIPT, Environment, Row, alternate, argument_parser, isolated_environment, record, run

PARTS = ("speed", "accuracy")
QUESTIONS, TOKENS = 64, 64
SAMPLES, SEEDS = 8, (1, 2)


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with gsm8k-200.jsonl")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs in `speed` [default: 5]")
    options = parser.parse_args()
    parts = [options.only] if options.only else PARTS
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = isolated_environment(directory)
        if "speed" in parts and options.data:
            record([speed_row(options.data / GSM8K, directory, environment, options.runs)], options.dry_run)
        if "accuracy" in parts:
            record(accuracy_rows(environment), options.dry_run)


def speed_row(source: Path, directory: Path, environment: Environment, runs: int) -> Row:
    """Tokens per second of an evaluation and of a batch of the same questions."""
    questions = directory / "questions.jsonl"
    lines = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:QUESTIONS]]
    questions.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    common = [
        "-m",
        str(model_path("starter")),
        "-n",
        str(TOKENS),
        "--temperature",
        "0",
        "--threads",
        str(THREADS),
        "-q",
    ]
    evaluation = [SCRIPT, "eval", str(questions), *common, "--restart", "-o", str(directory / "run.jsonl")]
    batch = [SCRIPT, "batch", str(questions), *common, "--template", "{question}", "--restart"]
    batch += ["-o", str(directory / "answers.jsonl")]

    def rate(command: list[str]) -> float:
        seconds = run(command, environment=environment).seconds
        return generated_tokens(Path(command[-1])) / seconds

    ours, peer, ratio = alternate(lambda: rate(evaluation), lambda: rate(batch), runs)
    counts = [generated_tokens(Path(command[-1])) for command in (evaluation, batch)]
    if counts[0] != counts[1]:
        raise RuntimeError(f"the evaluation generated {counts[0]} tokens, the batch {counts[1]}")
    label = f"eval of {QUESTIONS} questions, at most {TOKENS} tokens each, starter, whole process / batch"
    return Row(label, f"{ours:.1f} tok/s", f"{peer:.1f} tok/s", ratio, ">= 0.97")


def generated_tokens(result: Path) -> int:
    """Number of tokens in all answers of a result."""
    return sum(json.loads(line)["completion_tokens"] for line in result.read_text(encoding="utf-8").splitlines())


def accuracy_rows(environment: Environment) -> Iterator[Row]:
    """Votes of all samples against single samples, for each seed."""
    for seed in SEEDS:
        command = [SCRIPT, "eval", "sums", "-m", "nano", "--temperature", "0.8"]
        command += ["--samples", str(SAMPLES), "--seed", str(seed), "--json", "-q"]
        report = json.loads(run(command, environment=environment).output)
        vote = report["maj"][str(SAMPLES)]
        single = {"value": report["accuracy"], "interval": report["interval"]}
        if vote["interval"][0] <= single["interval"][1]:
            raise RuntimeError(f"the intervals overlap: {vote} and {single}")
        label = f"eval of 200 held-out sums, nano at temperature 0.8, seed {seed}, maj@{SAMPLES} / accuracy"
        yield Row(label, estimate(vote), estimate(single), vote["value"] / single["value"], ">= 1.23")


def estimate(value: dict[str, Any]) -> str:
    low, high = value["interval"]
    return f"{value['value']:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
