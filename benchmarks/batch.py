"""Compare the throughput of batches with llama-server, with --parallel 1 and with smaller batches, and measure Python.

Needs `make peers`, except for `mixed`, and `cerebrum pull starter`.
Usage: python benchmarks/batch.py --data DIR [--shape FILE] [--only PART] [--runs N] [--dry]

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
sequential  The same questions and the starter model, against `--parallel 1`.
mixed       SHORT_ROWS rows of SHORT tokens and one of LONG tokens in one batch, against two batches: of the short rows,
            and of the long one. Prompts are as many words of the questions as fit.
share       Python's share of a decode step of SLOTS sequences: the part of the time between two calls of `llama_decode`
            in the engine's thread that is spent outside of it, including sampling with numpy. The CPU time in which the
            main thread consumes the step's tokens and writes rows is added, because it may take a core from llama.cpp;
            most of it overlaps with the computation, so the sum is an upper bound.
shape       With FILE, a model that benchmarks/mistral_shape.py has written: SHAPE_QUESTIONS questions of SHAPE_TOKENS
            tokens, as in `server`; one round without a warm-up by default, and no more slots than questions.
"""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from answering import (
    THREADS,
    BatchJob,
    BatchResult,
    benchmark_settings,
    gsm8k,
    loaded_model,
    model_path,
    run_batch,
    tokenized_prompts,
)
from harness import PEER_PROGRAMS, Row, alternate, argument_parser, in_subprocess, medians, pair, record, require_peers
from quantized import BF16, quantize
from server import batched_bench, time_server

from cerebrum_cli.batch.input_row import InputRow as Question, prompt_row
from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Event, TokenEvent

PARTS = ("server", "sequential", "mixed", "share", "shape")
QUESTIONS, TOKENS = 64, 64
SHAPE_QUESTIONS, SHAPE_TOKENS = 16, 16
SERVER_SLOTS = (16, 32, 64)
SLOTS = 16  # for `share`
SHORT_ROWS, SHORT, LONG = 64, 300, 8000  # tokens of prompts, for `mixed`


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
    if parts != ["mixed"]:
        require_peers()
    runs, questions = options.runs or 3, gsm8k(options.data, options.questions)
    if "server" in parts:
        record([server_row("starter", "starter", questions, options.tokens, runs, ">= 1.05")], options.dry_run)
        bf16_file = in_subprocess(write_bf16, model_path("starter"))
        record(
            [server_row("starter as BF16", str(bf16_file), questions, options.tokens, runs, ">= 1.3")], options.dry_run
        )
    if "sequential" in parts:
        record([sequential_row(questions, options.tokens, runs)], options.dry_run)
    if "mixed" in parts:
        record([mixed_row(questions, options.tokens, runs)], options.dry_run)
    if "share" in parts:
        record([share_row(questions[:SLOTS], options.tokens, runs)], options.dry_run)
    if "shape" in parts and options.shape:
        subset, tokens = questions[:SHAPE_QUESTIONS], min(SHAPE_TOKENS, options.tokens)
        record(
            [server_row("7B shape", str(options.shape), subset, tokens, options.runs or 1, ">= 1.0")], options.dry_run
        )
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


def sequential_row(questions: Sequence[Question], tokens: int, runs: int) -> Row:
    """Compare `--parallel auto` with `--parallel 1`, in tokens per second."""
    prompts = in_subprocess(tokenized_prompts, "starter", questions)
    auto_rate, sequential_rate, ratio = alternate(
        lambda: rate(make_job("starter", questions, tokens, None), prompts),
        lambda: rate(make_job("starter", questions, tokens, 1), prompts),
        runs,
    )
    label = f"batch of {len(prompts)} questions, {tokens} tokens each, starter, --parallel auto / --parallel 1"
    return Row(label, f"{auto_rate:.1f} tok/s", f"{sequential_rate:.1f} tok/s", ratio, ">= 1.3")


def mixed_row(questions: Sequence[Question], tokens: int, runs: int) -> Row:
    """Compare a batch of short rows and a long one with a batch of each, in seconds."""
    *short, long = in_subprocess(sized_questions, "starter", questions, [*[SHORT] * SHORT_ROWS, LONG])

    def seconds(rows: Sequence[Question]) -> float:
        return in_subprocess(run_batch, make_job("starter", rows, tokens, None)).seconds

    mixed_s, apart_s, ratio = alternate(lambda: seconds([*short, long]), lambda: seconds(short) + seconds([long]), runs)
    label = f"batch of {SHORT_ROWS} rows of {SHORT} tokens and one of {LONG:,}, starter, together / apart"
    return Row(label, f"{mixed_s:.1f} s", f"{apart_s:.1f} s", ratio, "<= 1.15")


def sized_questions(model: str, questions: Sequence[Question], sizes: Sequence[int]) -> list[Question]:
    """Rows whose prompts have as many tokens, or a few less; to be called in a subprocess."""
    text = " ".join(question.prompt or "" for question in questions).split()
    rows = []
    with loaded_model(model, benchmark_settings({})) as loaded:

        def token_count(words: Sequence[str]) -> int:
            return loaded.prompts.count(Conversation().user(" ".join(words)))

        for number, size in enumerate(sizes, 1):
            words = [text[(100 * number + at) % len(text)] for at in range(size)]
            count = bisect_right(range(1, size), size, key=lambda count: token_count(words[:count]))
            rows.append(prompt_row(number, number, " ".join(words[:count])))
    return rows


# Python's share of a decode step.


class Share(NamedTuple):
    """Mean seconds of a decode step, and of Python in it: in the engine's thread, and at most in the main thread."""

    step: float
    engine: float
    main: float
    steps: int


def share_row(questions: Sequence[Question], tokens: int, runs: int) -> Row:
    """Compare Python's time in a decode step with the whole step."""
    job = make_job("starter", questions, tokens, len(questions))
    shares = [in_subprocess(measure_share, job) for _ in range(runs)]
    for measured in shares:
        print(
            f"{measured.steps} steps of {measured.step * 1e3:.1f} ms, in Python {measured.engine * 1e3:.3f} ms"
            f" in the engine's thread, {measured.main * 1e3:.3f} ms in the main thread"
        )
    python, step, ratio = medians([(measured.engine + measured.main, measured.step) for measured in shares])
    label = f"Python's share of a decode step of {len(questions)} sequences, starter"
    return Row(label, f"{python * 1e3:.2f} ms", f"{step * 1e3:.1f} ms", ratio, "<= 0.05")


class StepTimer:
    """Wraps the engine's calls of llama.cpp, and times the steps in which all `slots` sequences decode."""

    def __init__(self, slots: int) -> None:
        from cerebrum_cli.engine.llama.bindings import llama
        from cerebrum_cli.engine.llama.logits import GreedySampler

        self._decode, self._sample = llama.llama_decode, GreedySampler.sample
        self._synchronize = llama.llama_synchronize
        llama.llama_decode = self.decode
        setattr(GreedySampler, "sample", lambda sampler, row: self.sample(sampler, row))  # noqa: B010
        self._slots = slots
        self._step_start = self._native_s = 0.0
        self._samples = 0
        self.steps: list[tuple[float, float]] = []  # seconds in total, and in native code
        self.consumed = 0  # tokens
        self.consuming_s = 0.0  # CPU time of the main thread since the first of them

    def decode(self, *arguments: Any) -> Any:
        """Call `llama_decode`, which ends the previous step."""
        now = time.perf_counter()
        if self._samples == self._slots:
            self.steps.append((now - self._step_start, self._native_s))
        self._step_start, self._samples = now, 0
        start = time.perf_counter()
        status = self._decode(*arguments)
        self._synchronize(arguments[0])  # a GPU has only begun
        self._native_s = time.perf_counter() - start
        return status

    def sample(self, *arguments: Any) -> Any:
        """Sample a token."""
        self._samples += 1
        return self._sample(*arguments)

    def observe(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """Yield events, and measure the CPU time of the main thread from the first token on."""
        start = 0.0
        try:
            for event in events:
                if isinstance(event, TokenEvent):
                    self.consumed += len(event.tokens)
                    start = start or time.thread_time()
                yield event
        finally:
            self.consuming_s = time.thread_time() - start
            events.close()


def measure_share(job: BatchJob) -> Share:
    """Measure Python's share of the steps in which all sequences decode; to be called in a subprocess."""
    slots = len(job.questions)
    timer = StepTimer(slots)
    run_batch(job, timer.observe)
    if not timer.steps:
        raise RuntimeError(f"no step decoded {slots} sequences")
    step_s = statistics.mean(whole for whole, _ in timer.steps)
    engine_s = statistics.mean(whole - native for whole, native in timer.steps)
    return Share(step_s, engine_s, timer.consuming_s / timer.consumed * slots, len(timer.steps))


if __name__ == "__main__":
    main()
