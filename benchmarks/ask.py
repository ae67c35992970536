"""Compare `cerebrum ask` with its peers: decode speed, whole process, start-up and peak memory.

Needs `make peers` and `cerebrum pull starter`. Usage: python benchmarks/ask.py [--runs N]
"""

from __future__ import annotations

import argparse
import json
import sys

from harness import PEER_PROGRAMS, ROOT, SCRIPT, Row, alternate, record, run

QUESTION = "Out of six apples three are bad. What is the probability of picking a good one?"
SHORT = "What is the capital of France, and what is it known for? Answer in one short sentence."
STEPS = 128


def main() -> None:
    """Measure all rows and record them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    if not PEER_PROGRAMS.is_dir():
        parser.error("run `make peers` first")
    model = json.loads(run([SCRIPT, "show", "starter", "--json"]).output)["path"]
    threads = "2"
    record(
        [
            decode(model, threads, runs),
            *one_liner(model, threads, runs),
            against_llm(runs),
            start_up(runs),
        ]
    )


def decode(model: str, threads: str, runs: int) -> Row:
    """Compare the speed of single-stream decode, STEPS tokens from the start of a text, in tokens per second."""

    def ours() -> float:
        command = [SCRIPT, "ask", "-m", "starter", "--raw", "The", "-n", str(STEPS + 1), "--threads", threads, "--json"]
        reply = json.loads(run(command).output)
        if reply["completion_tokens"] != STEPS + 1:
            raise RuntimeError(f"the model stopped after {reply['completion_tokens']} tokens")
        return float(reply["timings"]["tokens_per_second"])

    def peer() -> float:
        command = [
            PEER_PROGRAMS / "llama-bench",
            "-m",
            model,
            "-p",
            "0",
            "-n",
            str(STEPS),
            "-r",
            "1",
            "-t",
            threads,
            "-o",
            "json",
        ]
        return float(json.loads(run([str(part) for part in command]).output)[0]["avg_ts"])

    mine, other, ratio = alternate(ours, peer, 3 * runs)  # the two are close, and single runs vary by a few percent
    return Row(
        "single-stream decode, starter, llama-bench -p 0 -n 128",
        f"{mine:.1f} tok/s",
        f"{other:.1f} tok/s",
        ratio,
        ">= 0.97",
    )


def one_liner(model: str, threads: str, runs: int) -> list[Row]:
    """Compare a whole process that generates 16 tokens with llama-completion: wall time and peak memory."""
    mine = [SCRIPT, "ask", QUESTION, "-m", "starter", "-n", "16", "--threads", threads]
    peer = [str(PEER_PROGRAMS / "llama-completion"), "--no-warmup", "-m", model, "-p", QUESTION, "-n", "16"]
    peer += ["--temp", "0", "-t", threads, "--single-turn", "--no-display-prompt"]
    a, b, ratio = alternate(lambda: run(mine).seconds, lambda: run(peer).seconds, runs)
    c, d, memory = alternate(lambda: run(mine).peak_mib, lambda: run(peer).peak_mib, runs)
    return [
        Row("ask, 16 tokens, whole process, llama-completion --no-warmup", f"{a:.3f} s", f"{b:.3f} s", ratio, "<= 1.6"),
        Row("ask, 16 tokens, peak memory, llama-completion", f"{c:.0f} MiB", f"{d:.0f} MiB", memory, "<= 1.3"),
    ]


def against_llm(runs: int) -> Row:
    """Compare a whole process with llm and its SmolLM2 plugin, which has no token limit: ours generates as many."""
    llm = [str(ROOT / ".peers" / "llm" / "bin" / "llm"), "-m", "SmolLM2", "--no-log", SHORT]
    token_counts: list[int] = []

    def peer() -> float:
        reply = run(llm)
        counted = run([SCRIPT, "ask", "-m", "starter", "--raw", reply.output.strip(), "--dry-run", "--json"])
        token_counts.append(json.loads(counted.output)["prompt_tokens"])
        return reply.seconds

    def ours() -> float:
        return run([SCRIPT, "ask", SHORT, "-m", "starter", "-n", str(token_counts[-1])]).seconds

    other, mine, ratio = alternate(peer, ours, runs)
    tokens = f"{min(token_counts)} to {max(token_counts)} tokens"
    return Row("ask, whole process, llm -m SmolLM2", f"{mine:.3f} s", f"{other:.3f} s ({tokens})", 1 / ratio, "<= 0.65")


def start_up(runs: int) -> Row:
    """Compare `cerebrum --help` with the start of a bare Python interpreter."""
    mine, other, ratio = alternate(
        lambda: run([SCRIPT, "--help"]).seconds,
        lambda: run([sys.executable, "-c", "pass"]).seconds,
        3 * runs,
    )
    return Row("cerebrum --help, python -c pass", f"{mine * 1e3:.0f} ms", f"{other * 1e3:.1f} ms", ratio, "<= 10")


if __name__ == "__main__":
    main()
