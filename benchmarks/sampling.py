"""Compare sampling with llama.cpp's own samplers, and the creation of a large context with that of a small one.

Usage: python benchmarks/sampling.py --model FILE [--runs N] [--dry-run]

FILE is a model with a large vocabulary, such as Qwen2.5-Coder 0.5B with 152,000 tokens.

draws    One token at temperature 0.8 with top-p TOP_P and no top-k, from the logits of each of POSITIONS tokens of
         this text, against llama.cpp's samplers alone, which sort all tokens. Mean times of all positions.
context  A context of LENGTH tokens, against one of SHORT tokens.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import Row, argument_parser, in_subprocess, medians, record

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.llama_backend import LlamaBackend
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.llama.logits import Candidates, ChainSampler
from cerebrum_cli.engine.llama.sampler import DryPrototype, create_chain
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions
from cerebrum_cli.engine.step import StopFlag, TokenRow
from cerebrum_cli.gguf.header import read_header

TOP_P = 0.95
POSITIONS, STEP = 200, 40
SHORT, LENGTH = 512, 32_768


def main() -> None:
    """Measure both, and record them unless this is a dry run."""
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="FILE")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    for measure in (draws_row, context_row):
        record([in_subprocess(measure, options.model, options.runs)], options.dry_run)


def draws_row(model: Path, runs: int) -> Row:
    """Compare draws from the likeliest tokens with those of llama.cpp; to be called in a subprocess."""
    backend = open_model(model)
    params = SamplingParams(temperature=0.8, top_k=0, top_p=TOP_P)
    candidates, dry = Candidates(backend.size), DryPrototype(backend._vocab, LENGTH)
    whole = create_chain(params, 1, (), dry)
    narrow = create_chain(replace(params, top_p=1.0), 1, (), dry)

    def sort_all(logits: Any) -> None:
        array = candidates.fill(logits)
        llama.llama_sampler_apply(whole, ctypes.byref(array))

    ours = ChainSampler(narrow, lambda row: rows[row], candidates, params).draw
    rows = read_logits(backend)
    pairs = [(mean_s(ours, rows), mean_s(sort_all, rows)) for _ in range(runs)]
    ours_s, peer_s, ratio = medians(pairs)
    label = f"a token drawn with top-p {TOP_P} and no top-k from {backend.size:,}, {model.stem} / llama.cpp's samplers"
    return Row(label, f"{1e3 * ours_s:.2f} ms", f"{1e3 * peer_s:.2f} ms", ratio, "<= 0.5")


def open_model(path: Path) -> LlamaBackend:
    """A loaded model without a context."""
    sizes = read_header(path).sizes
    options = LoadOptions(path, LENGTH, sizes, ContextOptions(length=LENGTH), is_verified=True)
    return open_llama(options, lambda _: None, StopFlag())


def read_logits(backend: LlamaBackend) -> list[Any]:
    """The logits after each of the first tokens of this text."""
    tokens = backend.tokenize([Text(__doc__)])[:POSITIONS]
    backend.reserve(SHORT)
    rows = []
    for start in range(0, len(tokens), STEP):
        step = [TokenRow(0, start + index, token, True) for index, token in enumerate(tokens[start : start + STEP])]
        backend.decode(step)
        rows += [backend.logits(row).copy() for row in range(len(step))]
    return rows


def mean_s(draw: Callable[[Any], object], rows: list[Any]) -> float:
    """Mean CPU time of a draw, in seconds."""
    times = []
    for row in rows:
        start = time.thread_time()
        draw(row)
        times.append(time.thread_time() - start)
    return statistics.mean(times)


def context_row(model: Path, runs: int) -> Row:
    """Compare the creation of a long context with that of a short one; to be called in a subprocess."""
    backend = open_model(model)
    long, short = (partial(create, backend, length) for length in (LENGTH, SHORT))
    ours_s, peer_s, ratio = medians([(long(), short()) for _ in range(runs)])
    label = f"creating a context of {LENGTH:,} tokens, {model.stem} / one of {SHORT}"
    return Row(label, f"{1e3 * ours_s:.1f} ms", f"{1e3 * peer_s:.1f} ms", ratio, "<= 3")


def create(backend: LlamaBackend, length: int) -> float:
    """Seconds to create a context."""
    start = time.perf_counter()
    backend.reserve(length)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
