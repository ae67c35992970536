"""Compare greedy replies with layers on a GPU with those of the CPU, token by token.

Usage: python benchmarks/offload.py [--prompts N] [--tokens N] [--dry-run] FILE...

Each FILE is a model. Its replies to questions in 20 languages are generated with all layers on the GPU, half of them,
and the output layer alone, one at a time and SLOTS at a time, with all layers and draft tokens, and on the CPU SLOTS at
a time. Each is compared with the reply of the CPU, one at a time. Where they differ, rounding should have decided
between two tokens that are nearly equally likely.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path

from answering import THREADS
from harness import argument_parser, machine, record_lines
from same_text import QUESTIONS

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import TokenEvent, raise_refusals
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.bindings import accelerators
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.loglikelihood import LogprobScores, ScoreRequest
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.gguf.header import read_header

CONTEXT, SLOTS = 1024, 16
HEADING = "Offloading"
HEAD = """
Greedy replies with layers on a GPU, compared with those of the CPU, one at a time; written by `benchmarks/offload.py`.
Cells give how many are equal, of replies generated one and {slots} at a time; in parentheses, where one differs, the
largest difference of the CPU's log probabilities for the two tokens there.
Models named after an architecture are tiny, with random weights, from `tests/support/architectures.py`.
llvmpipe is Mesa's driver that computes on the CPU; it allows no tensor of more than 128 MiB, such as the output layer
of the 0.5B.

| model | prompts | tokens | all layers | half | output layer | all, drafts | CPU, {slots} at a time | date | machine |
|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Compare all ways, and record a line for each."""
    parser = argument_parser(__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--prompts", type=int, default=len(QUESTIONS))
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    if not accelerators():
        parser.error("llama.cpp finds no GPU")
    lines = [compare(path, options) for path in options.files]
    if not options.dry_run:
        names = tuple(f"| {path.stem} |" for path in options.files)
        record_lines(HEADING, HEAD.format(slots=SLOTS), lines, names)


def compare(path: Path, options: Namespace) -> str:
    """A line of the table."""
    all_layers = len(read_header(path).sizes.layers) + 1
    expected = replies(path, 0, 1, options)

    def cell(layers: int, slots: int, drafts: bool = False) -> str:
        pairs = zip(expected, replies(path, layers, slots, options, drafts), strict=True)
        differ = [(number, *pair) for number, pair in enumerate(pairs) if pair[0] != pair[1]]
        gap = f" ({max(gaps(path, differ)):.4f})" if differ else ""
        return f"{len(expected) - len(differ)}{gap}"

    cells = [f"{cell(layers, 1)}, {cell(layers, SLOTS)}" for layers in (all_layers, all_layers // 2, 1)]
    cells += [cell(all_layers, 1, drafts=True), cell(0, SLOTS)]
    row = path.stem, options.prompts, options.tokens, *cells, date.today(), machine()
    line = f"| {' | '.join(map(str, row))} |"
    print(line, flush=True)
    return line


def replies(path: Path, layers: int, slots: int, options: Namespace, drafts: bool = False) -> list[list[int]]:
    """Tokens of the replies to all prompts."""
    said: list[list[int]] = [[] for _ in range(options.prompts)]
    with opened(path, layers, slots, drafts) as engine:
        params = SamplingParams(max_tokens=options.tokens)
        prompts = [prompt_tokens(engine, number) for number in range(len(said))]
        requests = [Request(prompt, params, Ask(ignore_eos=True), speculative=drafts) for prompt in prompts]
        for event in raise_refusals(engine.complete(requests)):
            if isinstance(event, TokenEvent):
                said[event.sequence.request] += event.tokens
    return said


def gaps(path: Path, differ: Sequence[tuple[int, list[int], list[int]]]) -> Iterator[float]:
    """Gaps where replies first differ, as the CPU evaluates them."""
    with opened(path, 0, 1) as engine:
        for number, expected, given in differ:
            same = next(at for at, pair in enumerate(zip(expected, given, strict=True)) if pair[0] != pair[1])
            prompt = prompt_tokens(engine, number)
            context = (*prompt, *expected[:same])
            request = ScoreRequest(context, ((expected[same],), (given[same],)))
            for event in engine.score([request]):
                if isinstance(event, LogprobScores):
                    first, second = event.scores
                    yield first.logprob_sum - second.logprob_sum


@contextmanager
def opened(path: Path, layers: int, slots: int, drafts: bool = False) -> Iterator[LocalEngine]:
    """An engine with so many layers on GPUs and so many slots."""
    sizes = read_header(path).sizes
    context = ContextOptions(CONTEXT, slots, THREADS, rolls_back=drafts and bool(sizes.state_bytes))
    options = LoadOptions(path, CONTEXT, sizes, context, str(layers), repack=False, is_verified=True)
    with closing(LocalEngine(lambda emit, stop: open_llama(options, emit, stop))) as engine:
        list(engine.load())
        yield engine


def prompt_tokens(engine: LocalEngine, number: int) -> tuple[int, ...]:
    return tuple(engine.vocabulary.tokenize([Text(f"Question {number}: {QUESTIONS[number % len(QUESTIONS)]}")]))


if __name__ == "__main__":
    main()
