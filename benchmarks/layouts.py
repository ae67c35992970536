"""Compare `cerebrum ask`, which chooses whether to repack weights, with both layouts, and with llama-completion.

Needs `make peers`. Usage: python benchmarks/layouts.py --model FILE [--tokens N...] [--runs N] [--dry-run]

FILE is a K-quant in GGUF, on a processor with AVX2 or AVX-512; on others, weights are always repacked. Whole processes
are measured, which generate N tokens each; the first answer of all is not, from which the speed is recorded. The chosen
layout is one of both: it is asked for, not measured a third time.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from answering import THREADS
from completion import completion_peers
from harness import (
    Environment,
    Row,
    argument_parser,
    isolated_environment,
    kernels,
    medians,
    record,
    require_peers,
    run,
)

QUESTION = (
    "Write a Python function that merges two sorted lists. Explain it in detail, with examples, tests and variants."
)
LAYOUTS = {"as in the file": False, "repacked": True}
FORCED = """
from cerebrum_cli.engine.llama import load
load.plan_repacking = lambda *_: {}
from cerebrum_cli.__main__ import main
main()
"""
REPORTED = """
import sys
from cerebrum_cli.engine.llama import load
plan = load.plan_repacking
def reported(*arguments):
    repack = plan(*arguments)
    print(f"repack={repack}", file=sys.stderr)
    return repack
load.plan_repacking = reported
from cerebrum_cli.__main__ import main
main()
"""


def main() -> None:
    """Measure all lengths and record them unless this is a dry run."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 250, 500])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    require_peers()
    with tempfile.TemporaryDirectory() as name:
        environment = isolated_environment(Path(name))
        run(ask(str(options.model), 64), environment=environment)
        for tokens in options.tokens:
            record(rows(str(options.model), tokens, environment, options.runs), options.dry_run)


def ask(model: str, tokens: int, repack: bool | None = None) -> list[str]:
    """Command that answers the question, with weights in a given layout, or in the one that it chooses and reports."""
    code = REPORTED if repack is None else FORCED.format(repack)
    command = [sys.executable, "-c", code, "ask", "-m", model, "-n", str(tokens), QUESTION]
    return [*command, "--set", f"threads={THREADS}", "--set", "cache_gb=0"]


def rows(model: str, tokens: int, environment: Environment, runs: int) -> Iterator[Row]:
    """Rows of one length: the chosen layout beside the faster one, and beside llama-completion."""
    answered = run([*ask(model, tokens), "--json"], environment=environment)
    chosen = next(name for name, repack in LAYOUTS.items() if f"repack={repack}" in answered.errors)
    generated = json.loads(answered.output)["completion_tokens"]
    if generated != tokens:
        raise RuntimeError(f"the model stopped after {generated} of {tokens} tokens: ask another question")
    commands = {name: ask(model, tokens, repack) for name, repack in LAYOUTS.items()}
    commands["peer"] = completion_peers(commands[chosen], model, tokens, environment)[0].command
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(runs):
        first = number % len(commands)
        for name in [*commands][first:] + [*commands][:first]:
            seconds[name].append(run(commands[name], environment=environment).seconds)
    better = min(LAYOUTS, key=lambda name: statistics.median(seconds[name]))
    label = f"ask of {tokens} tokens, {Path(model).stem}, {kernels()}, {chosen}"
    yield compared(f"{label}, better layout ({better})", seconds[chosen], seconds[better], "<= 1.02")
    if tokens >= 128:
        yield compared(f"{label}, llama-completion --no-warmup", seconds[chosen], seconds["peer"], "<= 0.98")


def compared(label: str, ours: Sequence[float], peer: Sequence[float], target: str) -> Row:
    ours_s, peer_s, ratio = medians([*zip(ours, peer, strict=True)])
    return Row(label, f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio, target)


if __name__ == "__main__":
    main()
