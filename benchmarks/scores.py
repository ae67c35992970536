"""Measure the scoring of given continuations: what choices cost beside their context, and rows a second.

Needs `cerebrum pull starter`, and `make peers` for `rate`.
Usage: python -m benchmarks.scores [--only PART] [--runs N] [--dry-run]

All on the starter model, its weights written as F32 first, on two threads with SLOTS slots that share a cache. Tokens
are random, with a fixed seed.

choices   CHOICES continuations of CHOICE_TOKENS tokens after a context of CONTEXT_TOKENS, against one continuation of
          one token, for which only the context is evaluated: pairs in one process, each pair with a context of its own.
rate      Rows a second for REQUESTS such contexts with their choices, against llama-bench -p 512.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from benchmarks.answering import THREADS, benchmark_settings, loaded_model, model_path
from benchmarks.harness import (
    PEER_PROGRAMS,
    Row,
    argument_parser,
    in_subprocess,
    medians,
    pair,
    record,
    require_peers,
    run,
)
from benchmarks.quantized import F32, quantize
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest, ScoringEvent
from cerebrum_cli.engine.requests import ContextOptions

PARTS = ("choices", "rate")
CONTEXT_TOKENS, CHOICES, CHOICE_TOKENS = 200, 4, 8
REQUESTS = 30
SLOTS = 16
FIRST_TEXT_TOKEN, TEXT_TOKENS = 1000, 40_000  # of the starter's vocabulary


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=9, help="pairs of runs [default: 9]")
    options = parser.parse_args()
    parts = [options.only] if options.only else PARTS
    if "rate" in parts:
        require_peers()
    with tempfile.TemporaryDirectory() as directory:
        model = str(Path(directory) / "starter-f32.gguf")
        in_subprocess(quantize, model_path("starter"), Path(model), F32)  # for llama.cpp's threads
        if "choices" in parts:
            record("Given choices", [choices_row(model, options.runs)], options.dry_run)
        if "rate" in parts:
            record("Given choices", [rate_row(model, options.runs)], options.dry_run)


def choices_row(model: str, runs: int) -> Row:
    """Compare a context with its choices, and alone."""
    ours_s, peer_s, ratio = medians(in_subprocess(time_choices, model, runs))
    label = f"scores of {CHOICES} choices of {CHOICE_TOKENS} tokens, starter as F32 / {CONTEXT_TOKENS} context tokens"
    return Row(label, f"{1000 * ours_s:.0f} ms", f"{1000 * peer_s:.0f} ms", ratio, "<= 1.35")


def time_choices(model: str, runs: int) -> list[tuple[float, float]]:
    """Seconds for contexts with all choices, and with a single token; to be called in a subprocess."""
    random = Random(1)
    with loaded_model(model, benchmark_settings({}), ContextOptions(slots=SLOTS, kv_unified=True)) as loaded:

        def seconds(requests: Sequence[ScoreRequest]) -> float:
            start = time.perf_counter()
            require_scores(list(loaded.engine.score(requests)), requests)
            return time.perf_counter() - start

        seconds([draw_request(random)])
        pairs = []
        for number in range(runs):
            request = draw_request(random)
            context = ScoreRequest(request.context, (draw_tokens(random, 1),))
            pairs.append(pair(lambda: seconds([request]), lambda: seconds([context]), number))  # noqa: B023
        return pairs


def rate_row(model: str, runs: int) -> Row:
    """Compare rows a second with llama.cpp's prefill."""
    bench = [str(PEER_PROGRAMS / "llama-bench"), "-m", model, "-p", "512", "-n", "0", "-r", "1"]
    bench += ["-t", str(THREADS), "-o", "json"]
    pairs = [
        pair(lambda: in_subprocess(rows_per_second, model), lambda: json.loads(run(bench).output)[0]["avg_ts"], number)
        for number in range(runs)
    ]
    ours, peer, ratio = medians(pairs)
    label = f"scores of {REQUESTS} x {CHOICES} choices, starter as F32 / llama-bench -p 512"
    return Row(label, f"{ours:.0f} rows/s", f"{peer:.0f} tok/s", ratio, ">= 0.9")


def rows_per_second(model: str) -> float:
    """Speed of scoring many contexts with their choices; to be called in a subprocess."""
    random = Random(2)
    requests = [draw_request(random) for _ in range(REQUESTS)]
    with loaded_model(model, benchmark_settings({}), ContextOptions(slots=SLOTS, kv_unified=True)) as loaded:
        list(loaded.engine.score([draw_request(random)]))
        start = time.perf_counter()
        events = list(loaded.engine.score(requests))
        seconds = time.perf_counter() - start
    require_scores(events, requests)
    return sum(len(choice) for request in requests for choice in request.continuations) / seconds


def draw_request(random: Random) -> ScoreRequest:
    """A context with all its choices."""
    choices = tuple(draw_tokens(random, CHOICE_TOKENS) for _ in range(CHOICES))
    return ScoreRequest(draw_tokens(random, CONTEXT_TOKENS), choices)


def draw_tokens(random: Random, count: int) -> tuple[int, ...]:
    return tuple(random.randrange(FIRST_TEXT_TOKEN, TEXT_TOKENS) for _ in range(count))


def require_scores(events: Sequence[ScoringEvent], requests: Sequence[ScoreRequest]) -> None:
    """RuntimeError unless every request was scored."""
    if sum(isinstance(event, LogprobScores) for event in events) != len(requests):
        raise RuntimeError("not all requests were scored")


if __name__ == "__main__":
    main()
