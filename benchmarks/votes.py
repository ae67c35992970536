"""Measure the cost of votes.

Needs `cerebrum pull starter`.
Usage: python benchmarks/votes.py --data DIR [--shape FILE] [--runs N] [--dry-run]

DIR contains gsm8k-200.jsonl, see benchmarks/batch.py; without it, nothing is measured. FILE is a
model that benchmarks/mistral_shape.py has written. All prompts use the `cerebrum` format, on two threads.

The first question of GSM8K with VOTES samples of TOKENS tokens, as with `--votes 8`, against as many single answers one
after another in one process: once with an engine that reuses no tokens, so that each answer evaluates the prompt, and
once with full reuse. Neither the end token nor a stop string ends a sample, and the numbers of generated and cached
tokens are checked. Seconds from the loaded model (without a context yet) to the last token; each run is a separate
process, in alternation, after one warm-up each. With FILE: samples of SHAPE_TOKENS tokens, only against answers without
reuse, one pair without a warm-up by default.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from answering import benchmark_settings, conversation_of, gsm8k, loaded_model
from harness import Row, argument_parser, in_subprocess, medians, record

from cerebrum_cli.batch.input_row import InputRow as Question
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.events import Event, FinishEvent
from cerebrum_cli.core.sampling import SAMPLED_TEMPERATURE
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.replies.interface import Model

VOTES, TOKENS, SHAPE_TOKENS = 8, 128, 32
SEED = 1


def main() -> None:
    """Measure the rows, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with gsm8k-200.jsonl")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape")
    parser.add_argument("--runs", type=int, help="pairs of runs [default: 3; with FILE: 1]")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens per sample [default: 128]")
    options = parser.parse_args()
    if not options.data:
        return print("skipping the cost of votes: it needs --data")
    (question,) = gsm8k(options.data, 1)
    record(cost_rows("starter", "starter", question, options.tokens, options.runs or 3), options.dry_run)
    if options.shape:
        tokens = min(SHAPE_TOKENS, options.tokens)
        record([shape_cost_row(str(options.shape), question, tokens, options.runs or 1)], options.dry_run)
    return None


class Timing(NamedTuple):
    """Seconds until all samples were finished, and their finish events."""

    seconds: float
    finishes: list[FinishEvent]


def cost_rows(name: str, model: str, question: Question, tokens: int, runs: int) -> list[Row]:
    """Compare a vote with single answers that each evaluate the prompt, and with ones that reuse it."""
    measures = (time_vote, time_without_reuse, time_with_reuse)
    runs_s = [[in_subprocess(measure, model, question, tokens) for measure in measures] for _ in range(runs + 1)][1:]
    label = f"{VOTES} votes of {tokens} tokens, {name}, {VOTES} answers that"
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
        timing = measure_events(lambda: generate(loaded, samples))
    return checked_seconds(timing, tokens, [0] + [timing.finishes[0].prompt_tokens] * (VOTES - 1))


def time_without_reuse(model: str, question: Question, tokens: int) -> float:
    """Seconds of single answers that each evaluate the prompt; to be called in a subprocess."""
    with loaded_model(model, make_request(question, tokens).settings, ContextOptions(), evaluate_all=True) as loaded:
        timing = measure_events(lambda: generate_sequentially(loaded, question, tokens))
    return checked_seconds(timing, tokens, [0] * VOTES)


def time_with_reuse(model: str, question: Question, tokens: int) -> float:
    """Seconds of single answers that reuse the prompt; to be called in a subprocess."""
    with loaded_model(model, make_request(question, tokens).settings, ContextOptions()) as loaded:
        timing = measure_events(lambda: generate_sequentially(loaded, question, tokens))
    return checked_seconds(timing, tokens, [0] + [timing.finishes[0].prompt_tokens - 1] * (VOTES - 1))


def make_request(question: Question, tokens: int, seed: int = SEED) -> Ask:
    """Request for one sample of a question."""
    settings = benchmark_settings({"max_tokens": tokens, "temperature": SAMPLED_TEMPERATURE, "seed": seed})
    return Ask(conversation_of(question), settings, ignore_eos=True)


def generate_sequentially(model: Model, question: Question, tokens: int) -> Iterator[Event]:
    """Yield the events of single answers with the same seeds as the vote's samples."""
    for seed in range(SEED, SEED + VOTES):
        yield from generate(model, make_request(question, tokens, seed))


def generate(model: Model, request: Ask) -> Iterator[Event]:
    """Yield the events of a request."""
    with closing(model.engine.complete([model.prepare_reply(request)])) as replies:
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


if __name__ == "__main__":
    main()
