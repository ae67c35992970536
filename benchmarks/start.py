"""Time `cerebrum ask` from the start of its process to its first token, phase by phase and against peers.

Needs `make peers` and `cerebrum pull starter`. Usage: python -m benchmarks.start [--shape FILE] [--runs N] [--dry-run]

There is no user configuration and no prompt cache. Runs are separate processes, alternating with the peer's, after one
warm-up each; the model's file is in the page cache. The first byte on standard output, a pipe, is the first token.

phases   A question to the starter model, traced by benchmarks/traced.py: a table to print.
imports  The phases before llama.cpp starts to load the model, against the start of a bare Python interpreter.
token    The same question without tracing, against llama-completion, which gets the rendered prompt: with the context
         that ours allocates, and with the one it allocates by itself.
large    With FILE, a model that benchmarks/mistral_shape.py has written: the first token after a prompt of 60 tokens,
         against llama-completion with the same context, as it is and with --no-repack.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import traced
from benchmarks.answering import THREADS, model_path
from benchmarks.completion import completion_peers, preview
from benchmarks.harness import (
    ROOT,
    SCRIPT,
    Environment,
    Row,
    alternate,
    argument_parser,
    isolated_environment,
    record,
    require_peers,
    run,
    time_to_first_byte,
)

HEADING = "The first token"
QUESTION = "What is the capital of France?"
LARGE_PROMPT = 60  # tokens


def main() -> None:
    """Measure all rows and record them unless this is a dry run."""
    parser = argument_parser(__doc__)
    parser.add_argument("--shape", metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    require_peers()
    runs, model = options.runs, str(model_path("starter"))
    with tempfile.TemporaryDirectory() as name:
        ask = [*ask_command(model), "--set", f"threads={THREADS}", "--no-log", QUESTION]
        record(HEADING, [cold_start_row(ask, isolated_environment(Path(name)), runs)], options.dry_run)
        record(HEADING, first_token_rows(model, ask, isolated_environment(Path(name)), runs), options.dry_run)
    if options.shape:
        with tempfile.TemporaryDirectory() as name:
            for row in large_model_rows(options.shape, isolated_environment(Path(name)), options.runs):
                record(HEADING, [row], options.dry_run)


def ask_command(model: str) -> list[str]:
    """Command that generates one token."""
    return [SCRIPT, "ask", "-m", model, "-n", "1"]


# Phase by phase.


def cold_start_row(ask: Sequence[str], environment: Environment, runs: int) -> Row:
    """Trace a question and print its phases; compare those before the model is loaded with a bare interpreter."""
    traces: list[dict[str, float]] = []

    def ours() -> float:
        traces.append(trace_question(ask, environment))
        return traces[-1][traced.PLANNED]

    ours_s, peer_s, ratio = alternate(ours, lambda: run([sys.executable, "-c", "pass"]).seconds, runs)
    print(phase_table(phase_durations(traces[1:])))
    label = "imports and command line, before the model begins to load / python -c pass"
    return Row(label, f"{ours_s * 1e3:.0f} ms", f"{peer_s * 1e3:.1f} ms", ratio, "<= 25")


def trace_question(ask: Sequence[str], environment: Environment) -> dict[str, float]:
    """Trace a question; return the seconds from its start to the end of each phase, in order."""
    traced_environment = {**environment, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    command = [sys.executable, "-c", "from benchmarks import traced; traced.main()", str(start), *ask[1:]]
    finished = run(command, environment=traced_environment)
    phases: dict[str, float] = json.loads(finished.errors.splitlines()[-1])
    if (end := [name for name in phases if name == traced.SHOWN]) != list(phases)[-1:]:
        raise RuntimeError(f"the trace does not end with the first token: {end}, {phases}")
    return phases


def phase_durations(traces: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Milliseconds of each phase, one per trace."""
    names = list(traces[0])
    if any(list(trace) != names for trace in traces):
        raise RuntimeError(f"the traces have different phases: {[list(trace) for trace in traces]}")
    return {
        name: [(trace[name] - (trace[previous] if previous else 0.0)) * 1e3 for trace in traces]
        for previous, name in zip([None, *names], names, strict=False)
    }


def phase_table(phases: Mapping[str, Sequence[float]]) -> str:
    """Markdown table of the phases."""
    total_ms = statistics.median(map(sum, zip(*phases.values(), strict=True)))
    medians_ms = {name: statistics.median(times) for name, times in phases.items()}
    rows = [f"| {name} | {spent_ms:.1f} | {spent_ms / total_ms:.0%} |" for name, spent_ms in medians_ms.items()]
    return "\n".join(["| phase | ms | share |", "|---|---|---|", *rows, f"| total | {total_ms:.1f} | |"])


# Against llama-completion.


def first_token_rows(model: str, ask: Sequence[str], environment: Environment, runs: int) -> Iterator[Row]:
    """Compare the time to the first token with that of llama-completion for the same prompt."""
    for peer, context in completion_peers(ask, model, 1, environment):
        ours_s, peer_s, ratio = alternate(
            lambda: time_to_first_byte(ask, environment),
            lambda: time_to_first_byte(peer, environment),  # noqa: B023
            runs,
        )
        label = f"first token from exec, starter: cerebrum ask / llama-completion --no-warmup, {context}"
        yield Row(label, f"{ours_s * 1e3:.0f} ms", f"{peer_s * 1e3:.0f} ms", ratio, "<= 1.6")


def large_model_rows(model: str, environment: Environment, runs: int) -> Iterator[Row]:
    """Compare the first token with that of llama-completion, with and without repacking."""
    ask = [*ask_command(model), "--set", f"threads={THREADS}", "--no-log", "--set", "cache_gb=0"]
    ask += ["--temperature", "0", "--raw", text_of_length(LARGE_PROMPT, ask, environment)]
    peer = completion_peers(ask, model, 1, environment)[0]
    for option, target in (((), "<= 0.7"), (("--no-repack",), "<= 1.25")):
        theirs = [*peer.command, "--ignore-eos", *option]
        ours_s, peer_s, ratio = alternate(
            lambda: time_to_first_byte(ask, environment),
            lambda: time_to_first_byte(theirs, environment),  # noqa: B023
            runs,
        )
        program = " ".join(["llama-completion --no-warmup", *option])
        label = f"first token, 7B shape, {LARGE_PROMPT} + 1 tokens: cerebrum ask / {program}, {peer.context}"
        yield Row(label, f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio, target)


def text_of_length(tokens: int, ask: Sequence[str], environment: Environment) -> str:
    """Text whose raw prompt has exactly `tokens` tokens."""
    words = tokens
    for _ in range(4):
        text = " ".join(["the"] * words)
        count = preview([*ask, "--raw", text], environment)["prompt_tokens"]
        if count == tokens:
            return text
        words += tokens - count
    raise RuntimeError(f"no text of exactly {tokens} tokens found")


if __name__ == "__main__":
    main()
