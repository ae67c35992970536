"""Measure what controls of replies cost and are worth: the loop check, and `--conclude`.

Needs `cerebrum pull starter` for `loop`. Usage: python benchmarks/controls.py [--only PART] [--samples N] [--dry-run]

loop      The loop check on PASSES passes over the tokens of RESULTS.md, a table of similar lines that it searches more
          than other text: microseconds a token, against a decode step of the starter.
conclude  `cerebrum eval` of nano on its 200 held-out sums at temperature 0.8, with SAMPLES samples each and the same
          seeds. A reply has 15 to 20 tokens, or 28 to 32 where the sum takes two steps. For each of LIMITS: single
          samples with `--max-tokens LIMIT` and `--conclude`, which leaves just room for a conclusion, against those
          with `--max-tokens LIMIT` alone; and a vote of SAMPLES concluded samples, against a vote of fewer that end by
          themselves: as many as generate at least as many tokens in all. A vote has no target: either may win. The
          cells have the tokens that were generated for a question.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from answering import model_path
from harness import RESULTS, ROOT, SCRIPT, Environment, Row, isolated_environment, record, run
from nano.measure import loaded_engine
from nano.questions import held_out

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.engine.loop_check import LoopCheck

NANO = str(ROOT / "cerebrum_cli" / "nano.gguf")
PARTS = ("loop", "conclude")
PASSES, TOKENS = 5, 128
LIMITS = (24, 26, 28)
CONCLUSION = 23  # tokens: 16 to the end of a sentence, 3 of the bridge, and 4 of an answer
SAMPLES, SEED = 8, 1


class Evaluated(NamedTuple):
    """A finished run."""

    report: dict[str, Any]

    @property
    def tokens(self) -> float:
        """Mean number of generated tokens of a sample."""
        return float(self.report["tokens_per_answer"])

    def accuracy(self, votes: int = 1) -> float:
        """Accuracy of single samples, or of votes."""
        return float(self.report["accuracy"] if votes == 1 else self.report["maj"][str(votes)]["value"])

    def described(self, votes: int = 1) -> str:
        """The accuracy with its interval, and the tokens of a question."""
        interval = self.report["interval"] if votes == 1 else self.report["maj"][str(votes)]["interval"]
        low, high = interval
        return f"{self.accuracy(votes):.3f} ({low:.3f} to {high:.3f}), {votes * self.tokens:.1f} tokens"


def main() -> None:
    """Measure all parts or one, and record them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="samples of each sum [default: 8]")
    parser.add_argument("--dry-run", action="store_true", help="do not write to RESULTS.md")
    options = parser.parse_args()
    parts = [options.only] if options.only else PARTS
    with tempfile.TemporaryDirectory() as name:
        environment = isolated_environment(Path(name))
        if "loop" in parts:
            record([loop_row(environment)], options.dry_run)
        if "conclude" in parts:
            record(list(conclude_rows(Path(name), environment, options.samples)), options.dry_run)


def loop_row(environment: Environment) -> Row:
    """Time the loop check and a decode step."""
    with loaded_engine(Path(NANO)) as engine:
        tokens = engine.vocabulary.tokenize((Text(RESULTS.read_text(encoding="utf-8")),))
    seconds = median(time_check(tokens) for _ in range(PASSES)) / len(tokens)
    command = [SCRIPT, "ask", "-m", str(model_path("starter")), "-n", str(TOKENS), "--no-log", "--json"]
    command.append("--no-loop-check")
    rates = [json.loads(run([*command, "I am"], environment=environment).output)["timings"] for _ in range(PASSES)]
    step = 1 / median(timings["tokens_per_second"] for timings in rates)
    cells = f"{seconds * 1e6:.2f} us", f"{step * 1e3:.2f} ms"
    return Row("loop check of a token / decode step of the starter", *cells, seconds / step, "<= 0.005")


def time_check(tokens: Sequence[int]) -> float:
    """Seconds that the loop check takes for a reply."""
    check = LoopCheck()
    start = time.perf_counter()
    for token in tokens:
        check.feed(token, "")
        if check.intervene():
            raise RuntimeError("a false alarm")
    return time.perf_counter() - start


def conclude_rows(directory: Path, environment: Environment, samples: int) -> Iterator[Row]:
    """Compare concluded replies with truncated ones, and with fewer whole ones in votes."""
    questions = [{"question": turns[0], "answer": answer} for turns, answer in held_out()]
    (directory / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions), encoding="utf-8")
    whole = evaluate(directory, environment, samples)
    for limit in LIMITS:
        limited, budget = ("--max-tokens", str(limit)), limit - CONCLUSION
        concluded = evaluate(directory, environment, samples, *limited, "--conclude", str(budget))
        truncated = evaluate(directory, environment, samples, *limited)
        label = f"accuracy on 200 held-out sums, nano at temperature 0.8, -n {limit} --conclude {budget}"
        ratio = concluded.accuracy() / truncated.accuracy()
        yield Row(f"{label} / -n {limit}", concluded.described(), truncated.described(), ratio, ">= 1.0")
        votes = min(samples, ceil(samples * concluded.tokens / whole.tokens))
        ratio = concluded.accuracy(samples) / whole.accuracy(votes)
        label = f"{label}, vote of {samples} / of {votes} whole replies"
        yield Row(label, concluded.described(samples), whole.described(votes), ratio, ">= 0.0")


def evaluate(directory: Path, environment: Environment, samples: int, *more: str) -> Evaluated:
    """Run an evaluation."""
    paths = (str(directory / "sums.jsonl"), "-o", str(directory / "run.jsonl"))
    command = [SCRIPT, "eval", *paths, "-m", NANO, "--format", "cerebrum"]
    command += ["--temperature", "0.8", "--samples", str(samples), "--seed", str(SEED), "--restart", "--json", "-q"]
    return Evaluated(json.loads(run([*command, *more], environment=environment).output))


if __name__ == "__main__":
    main()
