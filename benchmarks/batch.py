"""Compare the throughput of batches with llama-server.

Needs `make peers` and `cerebrum pull starter`.
Usage: python -m benchmarks.batch --data DIR [--shape FILE] [--only PART] [--runs N] [--dry]

DIR contains gsm8k-200.jsonl, the first 200 lines of grade_school_math/data/test.jsonl in openai/grade-school-math: one
object per line, with `question` and `answer`. Without it, nothing is measured.

All prompts use the `cerebrum` format at temperature 0 on two threads. For equal work, all replies have the same
length: neither the end token nor a stop string ends them, and the token counts of prompts and replies are checked.
Each run is a separate process, alternating with the peer's, after one warm-up each. A rate is the number of generated
tokens divided by the seconds from the loaded model (without a context yet) to the complete result.

server      QUESTIONS questions of TOKENS tokens, run as `cerebrum batch --parallel auto` does, with each row written to
            disk when it is finished, against `llama-server -np N` with N concurrent clients that send the same token
            ids in the same order, from the first request to the last reply. N is 16, 32 and 64, one after another in
            each round; the N with the best median counts. First with the starter model as it is, then with its weights
            as BF16, which llama.cpp writes into .peers/ once. Printed for comparison: the rate of llama-batched-bench
            with as many sequences of one length, known in advance.
shape       With FILE, a model that benchmarks/mistral_shape.py has written: SHAPE_QUESTIONS questions of SHAPE_TOKENS
            tokens, as in `server`; one round without a warm-up by default, and no more slots than questions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.answering import (
    THREADS,
    BatchJob,
    BatchResult,
    gsm8k,
    model_path,
    run_batch,
    tokenized_prompts,
)
from benchmarks.harness import (
    PEER_PROGRAMS,
    Row,
    argument_parser,
    in_subprocess,
    medians,
    pair,
    record,
    require_peers,
)
from benchmarks.quantized import BF16, quantize
from benchmarks.server import batched_bench, time_server
from cerebrum_cli.rows.row import InputRow as Question

HEADING = "A batch"
PARTS = ("server", "shape")
QUESTIONS, TOKENS = 64, 64
SHAPE_QUESTIONS, SHAPE_TOKENS = 16, 16
SERVER_SLOTS = (16, 32, 64)


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with gsm8k-200.jsonl")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, help="[default: 3; for `shape`: 1]")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="[default: 64]")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens per reply [default: 64]")
    options = parser.parse_args()
    if not options.data:
        return print("skipping batches: they need --data")
    parts = [options.only] if options.only else PARTS
    require_peers()
    runs, questions = options.runs or 3, gsm8k(options.data, options.questions)
    if "server" in parts:
        row = server_row("starter", "starter", questions, options.tokens, runs, ">= 1.11")
        record(HEADING, [row], options.dry_run)
        bf16_file = in_subprocess(write_bf16, model_path("starter"))
        row = server_row("starter as BF16", str(bf16_file), questions, options.tokens, runs, ">= 1.34")
        record(HEADING, [row], options.dry_run)
    if "shape" in parts and options.shape:
        subset, tokens = questions[:SHAPE_QUESTIONS], min(SHAPE_TOKENS, options.tokens)
        row = server_row("7B shape", str(options.shape), subset, tokens, options.runs or 1, ">= 1.0")
        record(HEADING, [row], options.dry_run)
    return None


def rate(job: BatchJob, prompts: Sequence[Sequence[int]]) -> float:
    """Run a batch in a subprocess; return tokens per second. RuntimeError if the token counts are wrong."""
    return checked_rate(in_subprocess(run_batch, job), prompts, int(job.settings["max_tokens"]))


def checked_rate(result: BatchResult, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Generated tokens per second; RuntimeError unless every prompt and reply has the expected number of tokens."""
    counts = [(row["prompt_tokens"], row["completion_tokens"]) for row in result.rows]
    if counts != [(len(prompt), tokens) for prompt in prompts]:
        raise RuntimeError(f"unexpected token counts: {counts}")
    return tokens * len(prompts) / result.seconds


def make_job(model: str, questions: Sequence[Question], tokens: int, parallel: int | None) -> BatchJob:
    """Batch job for these questions, with replies of exactly `tokens` tokens."""
    settings = {"max_tokens": tokens, "temperature": 0.0}
    return BatchJob(model, questions, settings, parallel, ignore_eos=True)


def server_row(name: str, model: str, questions: Sequence[Question], tokens: int, runs: int, target: str) -> Row:
    """Compare a batch with llama-server at its best, in tokens per second; a single round has no warm-up."""
    path, prompts = model_path(model), in_subprocess(tokenized_prompts, model, questions)
    job = make_job(model, questions, tokens, None)
    slot_counts = [slots for slots in SERVER_SLOTS if slots <= len(prompts)] or list(SERVER_SLOTS[:1])
    rounds = server_rounds(path, job, prompts, slot_counts, runs)
    for slots in slot_counts:
        print(f"{name}: llama-server -np {slots}: {', '.join(f'{rates[slots]:.1f}' for _, rates in rounds)} tok/s")
    best = best_slots([rates for _, rates in rounds])
    ours_rate, peer_rate, ratio = medians([(ours_rate, rates[best]) for ours_rate, rates in rounds])
    if runs > 1:
        length = round(statistics.mean(map(len, prompts)))
        bench = len(prompts) * tokens / sum(batched_bench(path, length, tokens, len(prompts), THREADS))
        print(f"{name}: llama-batched-bench, {len(prompts)} prompts of {length} tokens in parallel: {bench:.1f} tok/s")
    tried = " or ".join(map(str, slot_counts))
    label = f"batch of {len(prompts)} questions, {tokens} tokens each, {name}, llama-server -np {tried}"
    return Row(label, f"{ours_rate:.1f} tok/s", f"{peer_rate:.1f} tok/s (-np {best})", ratio, target)


def server_rounds(
    path: Path, job: BatchJob, prompts: Sequence[Sequence[int]], slot_counts: Sequence[int], runs: int
) -> list[tuple[float, dict[int, float]]]:
    """Tokens per second of a batch, and of llama-server by its slots, in pairs; a single round has no warm-up."""
    tokens = int(job.settings["max_tokens"])

    def ours() -> float:
        return rate(job, prompts)

    def peer() -> dict[int, float]:
        seconds = {slots: time_server(path, prompts, tokens, THREADS, slots) for slots in slot_counts}
        return {slots: len(prompts) * tokens / seconds[slots] for slots in slot_counts}

    if runs > 1:
        ours(), peer()
    return [pair(ours, peer, number) for number in range(runs)]


def best_slots(rounds: Sequence[Mapping[int, float]]) -> int:
    """Number of slots with the highest median rate."""
    return max(rounds[0], key=lambda slots: statistics.median(rates[slots] for rates in rounds))


def write_bf16(source: Path) -> Path:
    """Write a model with BF16 weights unless it exists; return its path. To be called in a subprocess."""
    target = PEER_PROGRAMS.parent.parent / f"{source.stem}.as-BF16.gguf"
    if not target.exists() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
        unfinished = target.with_suffix(".unfinished")
        quantize(source, unfinished, BF16)
        unfinished.replace(target)
    return target


if __name__ == "__main__":
    main()
