"""What a batch gains by answering many questions at once: beside llama-server, beside itself one by one, in Python.

Needs `make peers` and `cerebrum pull starter`.
Usage: python benchmarks/batch.py --data DIR [--shape FILE] [--only PART] [--runs N] [--dry]

DIR holds gsm8k-200.jsonl, the first 200 questions that openai/grade-school-math publishes as
grade_school_math/data/test.jsonl: an object a line, with `question` and `answer`. Without it nothing is measured.

All questions are asked in the Cerebrum format at temperature 0, on two threads. For equal work every reply has the
same length: the model's end of text and the format's stop string do not end it. It is checked that each prompt and each
reply had as many tokens as it should. Every run is a process of its own, in turn with the peer's, after one warm-up
each; a rate is the tokens of all replies over the seconds from the loaded model (its context is not made yet) to the
whole result.

server     QUESTIONS questions of TOKENS tokens, answered as `cerebrum batch --parallel auto` does, each row on disk as
           soon as it is there, against `llama-server -np 16`, which 16 clients ask at once, by the same token ids and
           in the order of the file, from the first request to the last reply. First the starter as it is, then its
           weights as BF16, which llama.cpp writes into .peers/ once. Printed beside it: what llama-batched-bench says
           with as many sequences of one length, which it knows beforehand.
alone      The same with the starter against `--parallel 1`.
share      What Python takes of a decode step with SLOTS sequences: of the time from one `llama_decode` to the next, in
           the engine's thread, what is not inside `llama_decode`, sampling with numpy among it. Added to it is the
           processor time in which the main thread consumes the step's tokens and writes rows, as it may keep a core
           from llama.cpp, although most of it passes while that computes. So this is the most it can be.
shape      With FILE, which benchmarks/mistral_shape.py writes: SHAPE_QUESTIONS questions of SHAPE_TOKENS tokens, as in
           `server`. One pair without a warm-up, unless --runs says otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from answering import THREADS, BatchJob, BatchResult, gsm8k, model_path, run_batch, tokenized_prompts
from harness import PEER_PROGRAMS, Row, alternate, in_subprocess, medians, record
from server import batched_bench, time_server

from cerebrum_cli.batches.rows import Row as Question
from cerebrum_cli.core.events import Event, TokenEvent

PARTS = ("server", "alone", "share", "shape")
QUESTIONS, TOKENS = 64, 64
SHAPE_QUESTIONS, SHAPE_TOKENS = 16, 16
SLOTS = 16  # of `share`
BF16 = 32  # LLAMA_FTYPE_MOSTLY_BF16 of llama.h


def main() -> None:
    """Measure all parts, or one, and record each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="where gsm8k-200.jsonl is")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, help="[default: 3, of `shape` 1]")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="[default: 64]")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a reply [default: 64]")
    parser.add_argument("--dry-run", action="store_true", help="do not touch the table of results")
    given = parser.parse_args()
    if not given.data:
        return print("without --data, batches are not measured")
    parts = [given.only] if given.only else PARTS
    runs, questions = given.runs or 3, gsm8k(given.data, given.questions)
    if "server" in parts:
        record([against_server("starter", "starter", questions, given.tokens, runs, ">= 1.05")], given.dry_run)
        encoded = in_subprocess(as_bf16, model_path("starter"))
        record(
            [against_server("starter as BF16", str(encoded), questions, given.tokens, runs, ">= 1.3")], given.dry_run
        )
    if "alone" in parts:
        record([against_one_by_one(questions, given.tokens, runs)], given.dry_run)
    if "share" in parts:
        record([python_share(questions[:SLOTS], given.tokens, runs)], given.dry_run)
    if "shape" in parts and given.shape:
        few, tokens = questions[:SHAPE_QUESTIONS], min(SHAPE_TOKENS, given.tokens)
        record([against_server("7B shape", str(given.shape), few, tokens, given.runs or 1, ">= 1.0")], given.dry_run)
    return None


def rate(work: BatchJob, prompts: Sequence[Sequence[int]]) -> float:
    """Answer a batch in a process of its own; return tokens a second, RuntimeError where other work was done."""
    return checked_rate(in_subprocess(run_batch, work), prompts, int(work.settings["max_tokens"]))


def checked_rate(answered: BatchResult, prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Return the tokens a second of a batch whose replies all have as many tokens as they should."""
    done = [(each["prompt_tokens"], each["completion_tokens"]) for each in answered.rows]
    if done != [(len(prompt), tokens) for prompt in prompts]:
        raise RuntimeError(f"other work was done than was asked for: {done}")
    return tokens * len(prompts) / answered.seconds


def work_of(model: str, questions: Sequence[Question], tokens: int, at_once: int | None) -> BatchJob:
    """Return questions as they are asked here."""
    return BatchJob(model, questions, {"max_tokens": tokens, "temperature": 0.0}, at_once, ignore_eos=True)


def against_server(name: str, model: str, questions: Sequence[Question], tokens: int, runs: int, bar: str) -> Row:
    """Compare a batch with llama-server, in tokens a second; a single run has no warm-up."""
    path, prompts = model_path(model), in_subprocess(tokenized_prompts, model, questions)
    work = work_of(model, questions, tokens, None)

    def ours() -> float:
        return rate(work, prompts)

    def peer() -> float:
        return len(prompts) * tokens / time_server(path, prompts, tokens, THREADS)

    mine, other, ratio = alternate(ours, peer, runs) if runs > 1 else medians([(ours(), peer())])
    if runs > 1:
        length = round(statistics.mean(map(len, prompts)))
        bench = len(prompts) * tokens / sum(batched_bench(path, length, tokens, len(prompts), THREADS))
        print(f"{name}: llama-batched-bench, {len(prompts)} prompts of {length} tokens at once: {bench:.1f} tok/s")
    what = f"batch of {len(prompts)} questions, {tokens} tokens each, {name}, llama-server -np 16"
    return Row(what, f"{mine:.1f} tok/s", f"{other:.1f} tok/s", ratio, bar)


def as_bf16(source: Path) -> Path:
    """Return a model's file with its weights as BF16, written once; to be called in a process of its own."""
    from cerebrum_cli.engine.llama.library import llama

    target = PEER_PROGRAMS.parent.parent / f"{source.stem}.as-BF16.gguf"
    if not target.exists() or target.stat().st_mtime_ns < source.stat().st_mtime_ns:
        params = llama.llama_model_quantize_default_params()
        params.ftype, params.allow_requantize = BF16, True
        unfinished = target.with_suffix(".unfinished")
        if llama.llama_model_quantize(os.fsencode(source), os.fsencode(unfinished), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp cannot write {source} as BF16")
        unfinished.replace(target)
    return target


def against_one_by_one(questions: Sequence[Question], tokens: int, runs: int) -> Row:
    """Compare `--parallel auto` with `--parallel 1`, in tokens a second."""
    prompts = in_subprocess(tokenized_prompts, "starter", questions)
    mine, other, ratio = alternate(
        lambda: rate(work_of("starter", questions, tokens, None), prompts),
        lambda: rate(work_of("starter", questions, tokens, 1), prompts),
        runs,
    )
    what = f"batch of {len(prompts)} questions, {tokens} tokens each, starter, --parallel auto / --parallel 1"
    return Row(what, f"{mine:.1f} tok/s", f"{other:.1f} tok/s", ratio, ">= 1.3")


# What Python takes of a step.


class Share(NamedTuple):
    """Mean seconds of a step, of which Python takes so much: in the engine's thread, and at most in the main one."""

    step: float
    engine: float
    main: float
    steps: int


def python_share(questions: Sequence[Question], tokens: int, runs: int) -> Row:
    """Compare what Python takes of a step with the step."""
    work = work_of("starter", questions, tokens, len(questions))
    shares = [in_subprocess(share, work) for _ in range(runs)]
    for found in shares:
        print(
            f"{found.steps} steps of {found.step * 1e3:.1f} ms: Python takes {found.engine * 1e3:.3f} ms"
            f" of them in the engine's thread, {found.main * 1e3:.3f} ms in the main one"
        )
    python, step, ratio = medians([(found.engine + found.main, found.step) for found in shares])
    what = f"Python's share of a decode step of {len(questions)} sequences, starter"
    return Row(what, f"{python * 1e3:.2f} ms", f"{step * 1e3:.1f} ms", ratio, "<= 0.05")


class Clock:
    """Stands between the engine and llama.cpp, and tells steps in which `slots` sequences talk from all others."""

    def __init__(self, slots: int) -> None:
        from cerebrum_cli.engine.llama.library import llama
        from cerebrum_cli.engine.llama.sampler import GreedySampler

        self._decode, self._sample = llama.llama_decode, GreedySampler.sample
        llama.llama_decode = self.decode
        setattr(GreedySampler, "sample", lambda sampler, row: self.sample(sampler, row))  # noqa: B010
        self._slots = slots
        self._began = self._native = 0.0
        self._sampled = 0
        self.steps: list[tuple[float, float]] = []  # seconds, and those of them in native code
        self.consumed = 0  # tokens
        self.consuming = 0.0  # processor seconds of the main thread, from the first of them on

    def decode(self, *arguments: Any) -> Any:
        """Evaluate; the step before is over."""
        now = time.perf_counter()
        if self._sampled == self._slots:
            self.steps.append((now - self._began, self._native))
        self._began, self._sampled = now, 0
        began = time.perf_counter()
        status = self._decode(*arguments)
        self._native = time.perf_counter() - began
        return status

    def sample(self, *arguments: Any) -> Any:
        """Sample a token."""
        self._sampled += 1
        return self._sample(*arguments)

    def watch(self, events: Generator[Event, None, None]) -> Generator[Event, None, None]:
        """Yield events, and measure what the main thread does with them from the first token on."""
        began = 0.0
        try:
            for event in events:
                if isinstance(event, TokenEvent) and event.token is not None:
                    self.consumed += 1
                    began = began or time.thread_time()
                yield event
        finally:
            self.consuming = time.thread_time() - began
            events.close()


def share(work: BatchJob) -> Share:
    """Return what Python takes of the steps in which all sequences talk; to be called in a process of its own."""
    slots = len(work.questions)
    clock = Clock(slots)
    run_batch(work, clock.watch)
    if not clock.steps:
        raise RuntimeError(f"there was no step of {slots} sequences")
    step = statistics.mean(whole for whole, _ in clock.steps)
    engine = statistics.mean(whole - native for whole, native in clock.steps)
    return Share(step, engine, clock.consuming / clock.consumed * slots, len(clock.steps))


if __name__ == "__main__":
    main()
