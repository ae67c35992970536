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
            decode_row(model, threads, runs),
            *whole_process_rows(model, threads, runs),
            llm_row(runs),
            start_up_row(runs),
        ]
    )


def decode_row(model: str, threads: str, runs: int) -> Row:
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


def whole_process_rows(model: str, threads: str, runs: int) -> list[Row]:
    """Compare a whole process that generates 16 tokens with llama-completion: wall time and peak memory."""
    ours = [SCRIPT, "ask", QUESTION, "-m", "starter", "-n", "16", "--threads", threads]
    peer = [str(PEER_PROGRAMS / "llama-completion"), "--no-warmup", "-m", model, "-p", QUESTION, "-n", "16"]
    peer += ["--temp", "0", "-t", threads, "--single-turn", "--no-display-prompt"]
    ours_s, peer_s, time_ratio = alternate(lambda: run(ours).seconds, lambda: run(peer).seconds, runs)
    ours_mib, peer_mib, memory_ratio = alternate(lambda: run(ours).peak_mib, lambda: run(peer).peak_mib, runs)
    return [
        Row(
            "ask, 16 tokens, whole process, llama-completion --no-warmup",
            f"{ours_s:.3f} s",
            f"{peer_s:.3f} s",
            time_ratio,
            "<= 1.6",
        ),
        Row(
            "ask, 16 tokens, peak memory, llama-completion",
            f"{ours_mib:.0f} MiB",
            f"{peer_mib:.0f} MiB",
            memory_ratio,
            "<= 1.3",
        ),
    ]


def llm_row(runs: int) -> Row:
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

    peer_s, ours_s, ratio = alternate(peer, ours, runs)
    tokens = f"{min(token_counts)} to {max(token_counts)} tokens"
    return Row(
        "ask, whole process, llm -m SmolLM2", f"{ours_s:.3f} s", f"{peer_s:.3f} s ({tokens})", 1 / ratio, "<= 0.65"
    )


def start_up_row(runs: int) -> Row:
    """Compare `cerebrum --help` with the start of a bare Python interpreter."""
    ours_s, peer_s, ratio = alternate(
        lambda: run([SCRIPT, "--help"]).seconds,
        lambda: run([sys.executable, "-c", "pass"]).seconds,
        3 * runs,
    )
    return Row("cerebrum --help, python -c pass", f"{ours_s * 1e3:.0f} ms", f"{peer_s * 1e3:.1f} ms", ratio, "<= 10")


if __name__ == "__main__":
    main()
