"""Measure the cost and the accuracy of votes, and whether batches are reproducible.

Needs `cerebrum pull starter`.
Usage: python benchmarks/votes.py [--data DIR] [--shape FILE] [--only PART] [--runs N] [--dry-run]

DIR contains gsm8k-200.jsonl, see benchmarks/batch.py; without it, `cost` is skipped and `repeat` only uses nano. FILE
is a model that benchmarks/mistral_shape.py has written. All prompts use the `cerebrum` format, on two threads.

cost       The first question of GSM8K with VOTES samples of TOKENS tokens, as with `--votes 8`, against
           as many single answers one after another in one process: once with an engine that reuses no tokens, so that
           each answer evaluates the prompt, and once with full reuse. Neither the end token nor a stop string ends a
           sample, and the numbers of generated and cached tokens are checked. Seconds from the loaded model (without a
           context yet) to the last token; each run is a separate process, in alternation, after one warm-up each. With
           FILE: samples of SHAPE_TOKENS tokens, only against answers without reuse, one pair without a warm-up by
           default.
accuracy   nano, the model in the package, answers its 200 held-out sums at temperature 0.8, each with VOTES samples
           with distinct fixed seeds. The accuracy of single samples is the share of correct samples; a vote is correct
           or not. In parentheses: 95% confidence intervals, the percentiles of RESAMPLES bootstrap resamples of the
           sums with all their samples, so that the difference is a paired one.
repeat     Run REPEAT_ROWS rows at temperature 0.8 twice, PARALLEL in parallel: rows that differ in any field. Then at
           temperature 0 with each of PARALLEL_VALUES: texts that differ between them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from answering import BatchJob, benchmark_settings, conversation_of, gsm8k, loaded_model, run_batch
from harness import ROOT, Row, in_subprocess, medians, record
from nano.questions import held_out

from cerebrum_cli.answers.canonical import canonical
from cerebrum_cli.batch.rows import Row as Question
from cerebrum_cli.batch.rows import prompt_row
from cerebrum_cli.core.events import Event, FinishEvent
from cerebrum_cli.engine.memory import SINGLE, ContextOptions
from cerebrum_cli.inference.reply import ReplyRequest
from cerebrum_cli.inference.responder import Responder
from cerebrum_cli.inference.voting import VOTE_TEMPERATURE

PARTS = ("cost", "accuracy", "repeat")
NANO = str(ROOT / "cerebrum_cli" / "nano.gguf")
VOTES, TOKENS, SHAPE_TOKENS = 8, 128, 32
SEED = 1
RESAMPLES = 10_000
REPEAT_ROWS, PARALLEL, PARALLEL_VALUES = 32, 16, (1, 8, 16, 64)


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with gsm8k-200.jsonl")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape, for `cost`")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, help="pairs of runs in `cost` [default: 3; with FILE: 1]")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens per sample in `cost` [default: 128]")
    parser.add_argument("--questions", type=int, default=200, help="sums in `accuracy` [default: 200]")
    parser.add_argument("--dry-run", action="store_true", help="do not write to RESULTS.md")
    options = parser.parse_args()
    parts = [options.only] if options.only else PARTS
    if "cost" in parts and options.data:
        (question,) = gsm8k(options.data, 1)
        record(cost_rows("starter", question, options.tokens, options.runs or 3), options.dry_run)
        if options.shape:
            tokens = min(SHAPE_TOKENS, options.tokens)
            record([shape_cost_row(str(options.shape), question, tokens, options.runs or 1)], options.dry_run)
    elif "cost" in parts:
        print("skipping the cost of votes: it needs --data")
    if "accuracy" in parts:
        record([accuracy_row(options.questions)], options.dry_run)
    if "repeat" in parts:
        rows = list(repeat_rows(options.data))
        record(rows, options.dry_run)
        if not rows[0].met:
            sys.exit("running the same batch twice gave different rows")


# Cost of a vote.


class Timing(NamedTuple):
    """Seconds until all samples were finished, and their finish events."""

    seconds: float
    finishes: list[FinishEvent]


def cost_rows(model: str, question: Question, tokens: int, runs: int) -> list[Row]:
    """Compare a vote with single answers that each evaluate the prompt, and with ones that reuse it."""
    measures = (time_vote, time_without_reuse, time_with_reuse)
    runs_s = [[in_subprocess(measure, model, question, tokens) for measure in measures] for _ in range(runs + 1)][1:]
    label = f"{VOTES} votes of {tokens} tokens, {model}, {VOTES} answers that"
    return [
        time_row(
            f"{label} each evaluate the prompt",
            [(vote_s, without_reuse_s) for vote_s, without_reuse_s, _ in runs_s],
            "<= 0.60",
        ),
        time_row(f"{label} reuse it", [(vote_s, with_reuse_s) for vote_s, _, with_reuse_s in runs_s], "<= 0.85"),
    ]


def shape_cost_row(model: str, question: Question, tokens: int, runs: int) -> Row:
    """Compare a vote with single answers that each evaluate the prompt; a single run has no warm-up."""
    measures = (time_vote, time_without_reuse)
    votes_s, without_reuse_s = zip(
        *[[in_subprocess(measure, model, question, tokens) for measure in measures] for _ in range(runs)], strict=True
    )
    label = f"{VOTES} votes of {tokens} tokens, 7B shape, {VOTES} answers that each evaluate the prompt"
    return time_row(label, list(zip(votes_s, without_reuse_s, strict=True)), "<= 0.45")


def time_row(label: str, pairs: Sequence[tuple[float, float]], target: str) -> Row:
    """Row that compares two times."""
    ours_s, peer_s, ratio = medians(pairs)
    return Row(label, f"{ours_s:.2f} s", f"{peer_s:.2f} s", ratio, target)


def time_vote(model: str, question: Question, tokens: int) -> float:
    """Seconds of the samples of a vote; to be called in a subprocess."""
    request = make_request(question, tokens)
    with loaded_model(model, request.settings, ContextOptions(slots=VOTES)) as loaded:
        samples = replace(request, n=VOTES, max_n=VOTES, logprobs=True)  # all of them, as no vote ends early
        timing = measure_events(lambda: generate(loaded.responder, samples))
    return checked_seconds(timing, tokens, [0] + [timing.finishes[0].prompt_tokens] * (VOTES - 1))


def time_without_reuse(model: str, question: Question, tokens: int) -> float:
    """Seconds of single answers that each evaluate the prompt; to be called in a subprocess."""
    with loaded_model(model, make_request(question, tokens).settings, SINGLE, evaluate_all=True) as loaded:
        timing = measure_events(lambda: generate_sequentially(loaded.responder, question, tokens))
    return checked_seconds(timing, tokens, [0] * VOTES)


def time_with_reuse(model: str, question: Question, tokens: int) -> float:
    """Seconds of single answers that reuse the prompt; to be called in a subprocess."""
    with loaded_model(model, make_request(question, tokens).settings, SINGLE) as loaded:
        timing = measure_events(lambda: generate_sequentially(loaded.responder, question, tokens))
    return checked_seconds(timing, tokens, [0] + [timing.finishes[0].prompt_tokens - 1] * (VOTES - 1))


def make_request(question: Question, tokens: int, seed: int = SEED) -> ReplyRequest:
    """Request for one sample of a question."""
    settings = benchmark_settings({"max_tokens": tokens, "temperature": VOTE_TEMPERATURE, "seed": seed})
    return ReplyRequest(conversation_of(question), settings, ignore_eos=True)


def generate_sequentially(responder: Responder, question: Question, tokens: int) -> Iterator[Event]:
    """Yield the events of single answers with the same seeds as the vote's samples."""
    for seed in range(SEED, SEED + VOTES):
        yield from generate(responder, make_request(question, tokens, seed))


def generate(responder: Responder, request: ReplyRequest) -> Iterator[Event]:
    """Yield the events of a request."""
    with closing(responder.generate([responder.tokenize_request(request)])) as replies:
        yield from replies


def measure_events(start_events: Callable[[], Iterator[Event]]) -> Timing:
    """Consume events; return the seconds until the last one, and all finish events."""
    start = time.perf_counter()
    finishes = [event for event in start_events() if isinstance(event, FinishEvent)]
    return Timing(time.perf_counter() - start, finishes)


def checked_seconds(timing: Timing, tokens: int, cached: list[int]) -> float:
    """Seconds; RuntimeError unless each sample has `tokens` tokens and the numbers of cached tokens match."""
    counts = [(finish.completion_tokens, finish.cached_tokens) for finish in timing.finishes]
    if sorted(counts) != sorted((tokens, count) for count in cached):
        raise RuntimeError(f"unexpected token counts: {counts}")
    return timing.seconds


# Accuracy of votes.


def accuracy_row(count: int) -> Row:
    """Compare the accuracy of votes with that of single samples, for nano."""
    problems = [(turns[0], answer) for turns, answer in held_out()[:count]]
    rows = [prompt_row(number, number, text) for number, (text, _) in enumerate(problems, 1)]
    job = BatchJob(NANO, rows, {"max_tokens": 64, "temperature": 0.8, "seed": SEED}, PARALLEL)
    votes = in_subprocess(run_batch, replace(job, votes=VOTES)).rows
    singles = in_subprocess(run_batch, replace(job, questions=[row for row in rows for _ in range(VOTES)])).rows
    correct_answers = [canonical(answer) for _, answer in problems]
    vote_accuracy = correctness(votes, correct_answers)
    sample_accuracy = correctness(singles, np.repeat(correct_answers, VOTES)).reshape(count, VOTES).mean(axis=1)
    resampled = np.random.default_rng(SEED).integers(0, count, (RESAMPLES, count))
    difference = vote_accuracy - sample_accuracy
    low, high = confidence_interval(difference[resampled])
    lead = f"ahead by {difference.mean():.3f} ({low:.3f} to {high:.3f})" + ("" if low > 0 else ", not significant")
    return Row(
        f"accuracy on {count} held-out sums, nano at temperature 0.8, vote of {VOTES} / single samples",
        f"{mean_with_interval(vote_accuracy, resampled)}, {lead}",
        mean_with_interval(sample_accuracy, resampled),
        float(vote_accuracy.mean() / sample_accuracy.mean()),
        ">= 1.0",
    )


def correctness(rows: Sequence[dict[str, Any]], correct_answers: Iterable[str]) -> npt.NDArray[Any]:
    """1 for each row whose final answer is the correct one in canonical form, 0 for the others."""
    answers = [row["final_answer"] and canonical(row["final_answer"]) for row in rows]
    return np.array([answer == correct for answer, correct in zip(answers, correct_answers, strict=True)], float)


def mean_with_interval(shares: npt.NDArray[Any], resampled: npt.NDArray[Any]) -> str:
    """Mean with its confidence interval, as text."""
    low, high = confidence_interval(shares[resampled])
    return f"{shares.mean():.3f} ({low:.3f} to {high:.3f})"


def confidence_interval(samples: npt.NDArray[Any]) -> tuple[float, float]:
    """95% interval of the means of bootstrap resamples."""
    low, high = np.percentile(samples.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


# Reproducibility.


def repeat_rows(data: Path | None) -> Iterator[Row]:
    """Compare two runs of a batch, then runs with different --parallel."""
    sums = [prompt_row(number, number, turns[0]) for number, (turns, _) in enumerate(held_out()[:REPEAT_ROWS], 1)]
    job = BatchJob(NANO, sums, {"max_tokens": 64, "temperature": 0.8, "seed": SEED}, PARALLEL)
    first, second = (in_subprocess(run_batch, job).rows for _ in range(2))
    differing = sum(a != b for a, b in zip(first, second, strict=True))
    label = f"batch of {REPEAT_ROWS} rows, nano at temperature 0.8, {PARALLEL} in parallel, twice: rows that differ"
    yield Row(label, str(differing), f"{REPEAT_ROWS} rows", differing / REPEAT_ROWS, "<= 0")
    yield same_texts_row(BatchJob(NANO, sums, {"max_tokens": 64}), "nano")
    if data:
        yield same_texts_row(BatchJob("starter", gsm8k(data, REPEAT_ROWS), {"max_tokens": 64}), "starter")


def same_texts_row(job: BatchJob, name: str) -> Row:
    """Compare the greedy texts of runs with different --parallel."""
    results = {count: in_subprocess(run_batch, replace(job, parallel=count)).rows for count in PARALLEL_VALUES}
    texts = [{each["text"] for each in same} for same in zip(*results.values(), strict=True)]
    first = results[PARALLEL_VALUES[0]]
    for count in PARALLEL_VALUES[1:]:
        same = sum(a["text"] == b["text"] for a, b in zip(first, results[count], strict=True))
        print(f"{name}: {same} of {len(first)} texts are identical with --parallel {count} and {PARALLEL_VALUES[0]}")
    differing = sum(len(each) > 1 for each in texts)
    label = f"texts of {len(texts)} that differ between --parallel {', '.join(map(str, PARALLEL_VALUES))}, {name}"
    return Row(label, str(differing), f"{len(texts)} texts", differing / len(texts), "<= 0")


if __name__ == "__main__":
    main()
