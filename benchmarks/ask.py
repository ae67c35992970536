"""Compare `cerebrum ask` with its peers: decode speed, whole process, start-up and peak memory.

Needs `make peers` and `cerebrum pull starter`. Usage: python -m benchmarks.ask [--runs N] [--dry-run]

All programs get the same number of threads and run without the user's configuration. Ours runs without its prompt
cache, and saves a session like any question. llama-completion gets the rendered prompt, and is measured twice: with the
context that ours allocates, and with the one it allocates by itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.answering import THREADS, model_path
from benchmarks.completion import completion_peers
from benchmarks.harness import (
    PEER_PROGRAMS,
    ROOT,
    SCRIPT,
    Environment,
    Row,
    alternate,
    argument_parser,
    isolated_environment,
    medians,
    pair,
    record,
    require_peers,
    run,
)

QUESTION = "Out of six apples three are bad. What is the probability of picking a good one?"
SHORT = "What is the capital of France, and what is it known for? Answer in one short sentence."
STEPS = 128


def main() -> None:
    """Measure all rows and record them unless this is a dry run."""
    parser = argument_parser(__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    require_peers()
    model = str(model_path("starter"))
    with tempfile.TemporaryDirectory() as name:
        environment = isolated_environment(Path(name))
        rows = [
            decode_row(model, environment, options.runs),
            *whole_process_rows(model, environment, options.runs),
            llm_row(model, environment, options.runs),
            start_up_row(options.runs),
        ]
    record("One question", rows, options.dry_run)


def ask_command(model: str, tokens: int, *prompt: str) -> list[str]:
    """Command that generates at most `tokens` tokens."""
    command = [SCRIPT, "ask", "-m", model, "-n", str(tokens), "--set", f"threads={THREADS}", "--set", "cache_gb=0"]
    return [*command, *prompt]


def decode_row(model: str, environment: Environment, runs: int) -> Row:
    """Compare the speed of single-stream decode, STEPS tokens from the start of a text, in tokens per second."""
    ask = ask_command(model, STEPS + 1, "--set", "speculative=off", "--raw", "The", "--json")
    bench = [str(PEER_PROGRAMS / "llama-bench"), "-m", model, "-p", "0", "-n", str(STEPS), "-r", "1"]
    bench += ["-t", str(THREADS), "-o", "json"]

    def ours() -> float:
        reply = json.loads(run(ask, environment=environment).output)
        if reply["completion_tokens"] != STEPS + 1:
            raise RuntimeError(f"the model stopped after {reply['completion_tokens']} tokens")
        return float(reply["timings"]["tokens_per_second"])

    def peer() -> float:
        return float(json.loads(run(bench).output)[0]["avg_ts"])

    ours_rate, peer_rate, ratio = alternate(
        ours, peer, 3 * runs
    )  # the two are close, and single runs vary by a few percent
    return Row(
        "single-stream decode, starter, llama-bench -p 0 -n 128",
        f"{ours_rate:.1f} tok/s",
        f"{peer_rate:.1f} tok/s",
        ratio,
        ">= 0.97",
    )


def whole_process_rows(model: str, environment: Environment, runs: int) -> Iterator[Row]:
    """Compare a whole process that generates 16 tokens with llama-completion: wall time and peak memory."""
    ask = ask_command(model, 16, QUESTION)
    for command, context in completion_peers(ask, model, 16, environment):
        run(ask, environment=environment), run(command, environment=environment)
        pairs = [
            pair(lambda: run(ask, environment=environment), lambda: run(command, environment=environment), number)  # noqa: B023
            for number in range(runs)
        ]
        ours_s, peer_s, ratio = medians([(ours.seconds, peer.seconds) for ours, peer in pairs])
        label = f"ask, 16 tokens, whole process, llama-completion --no-warmup, {context}"
        yield Row(label, f"{ours_s:.3f} s", f"{peer_s:.3f} s", ratio, "<= 1.15")
        ours_mib, peer_mib, ratio = medians([(ours.peak_mib, peer.peak_mib) for ours, peer in pairs])
        label = f"ask, 16 tokens, peak memory, llama-completion --no-warmup, {context}"
        yield Row(label, f"{ours_mib:.0f} MiB", f"{peer_mib:.0f} MiB", ratio, "<= 1.3")


def llm_row(model: str, environment: Environment, runs: int) -> Row:
    """Compare a whole process with llm and its SmolLM2 plugin, which has no token limit: ours generates as many."""
    llm = [str(ROOT / ".peers" / "llm" / "bin" / "python"), str(ROOT / "benchmarks" / "llm_threads.py"), str(THREADS)]
    token_counts: list[int] = []

    def peer() -> float:
        reply = run([*llm, "-m", "SmolLM2", "--no-log", SHORT], environment=environment)
        counted = run(ask_command(model, 1, "--raw", reply.output.strip(), "--dry-run", "--json"))
        token_counts.append(json.loads(counted.output)["prompt_tokens"])
        return reply.seconds

    def ours() -> float:
        return run(ask_command(model, token_counts[-1], SHORT), environment=environment).seconds

    peer(), ours()
    pairs = [(peer(), ours()) for _ in range(runs)]  # the peer first: its reply decides how much ours generates
    ours_s, peer_s, ratio = medians([(ours_s, peer_s) for peer_s, ours_s in pairs])
    peer_cell = f"{peer_s:.3f} s ({min(token_counts)} to {max(token_counts)} tokens)"
    label = f"ask, whole process, llm -m SmolLM2 on {THREADS} threads"
    return Row(label, f"{ours_s:.3f} s", peer_cell, ratio, "<= 0.65")


def start_up_row(runs: int) -> Row:
    """Compare `cerebrum --help` with the start of a bare Python interpreter."""
    ours_s, peer_s, ratio = alternate(
        lambda: run([SCRIPT, "--help"]).seconds,
        lambda: run([sys.executable, "-c", "pass"]).seconds,
        3 * runs,
    )
    return Row("cerebrum --help, python -c pass", f"{ours_s * 1e3:.0f} ms", f"{peer_s * 1e3:.1f} ms", ratio, "<= 4")


if __name__ == "__main__":
    main()
