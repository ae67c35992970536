"""Measure speculative decoding in pairs of replies, with it and without.

Usage: python benchmarks/drafts.py --model FILE --data DIR [--only PART] [--threads N] [--runs N] [--dry-run]

FILE is an instruction model with a chat template, such as qwen2.5-coder-0.5b.gguf; DIR contains mt-bench-80.jsonl, see
benchmarks/chat.py. Replies at temperature 0 from one loaded model alternate. Their speed is tokens per second of the
process's CPU time while decoding, which other programs disturb least with one thread. For `plot`, matplotlib:
pip install --group bench.

prose    QUESTIONS questions of MT-bench, PROSE_TOKENS tokens each.
edit     A file of LINES lines, written again with one name changed.
plot     Expected tokens per time against the length of the draft, by the table of costs: docs/explanation/drafts.png.
"""

from __future__ import annotations

import csv
import inspect
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import NamedTuple

from harness import ROOT, Row, argument_parser, kernels, record

from cerebrum_cli import open_model
from cerebrum_cli.core.events import TokenEvent
from cerebrum_cli.engine.drafter import STEP_COSTS
from cerebrum_cli.replies.interface import Model

PARTS = ("prose", "edit", "plot")
QUESTIONS, PROSE_TOKENS = 8, 96
LINES, EDIT_TOKENS, CONTEXT = 60, 1024, 4096
EDIT = "Rename fieldnames to field_names everywhere in this file. Write the whole file again, and nothing else.\n\n"
PLOT = ROOT / "docs" / "explanation" / "drafts.png"


class Speed(NamedTuple):
    """Tokens per second of CPU time, token ids, and the numbers of draft tokens, all and accepted."""

    rate: float
    tokens: tuple[int, ...]
    drafted: int
    accepted: int


class Pair(NamedTuple):
    """A reply with speculative decoding, and one without."""

    drafting: Speed
    plain: Speed

    @property
    def ratio(self) -> float:
        return self.drafting.rate / self.plain.rate


def main() -> None:
    options = parse_arguments()
    parts = [options.only] if options.only else PARTS
    if "plot" in parts and not options.dry_run:
        draw()
    settings = {"threads": options.threads, "ctx": CONTEXT, "cache_gb": 0, "temperature": 0}
    with open_model(str(options.model), **settings) as model:
        if "prose" in parts:
            record([prose_row(model, options)], options.dry_run)
        if "edit" in parts:
            record([edit_row(model, options)], options.dry_run)


def parse_arguments() -> Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="an instruction model")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="directory with mt-bench-80.jsonl")
    parser.add_argument("--only", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads (default: 1)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="pairs for each prompt (default: 3)")
    options: Namespace = parser.parse_args()
    return options


def prose_row(model: Model, options: Namespace) -> Row:
    lines = (options.data / "mt-bench-80.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["turns"][0] for line in lines[:QUESTIONS]]
    pairs = [pair for question in questions for pair in measure(model, question, PROSE_TOKENS, options.runs)]
    return row(f"prose, {QUESTIONS} questions of MT-bench, {options.model.stem}", pairs, ">= 0.98")


def edit_row(model: Model, options: Namespace) -> Row:
    file = "".join(inspect.getsource(csv).splitlines(keepends=True)[-LINES:])
    pairs = measure(model, f"{EDIT}```python\n{file}```", EDIT_TOKENS, options.runs)
    return row(f"edit of a file of {LINES} lines, {options.model.stem}", pairs, ">= 1.5")


def measure(model: Model, question: str, tokens: int, runs: int) -> list[Pair]:
    """Pairs of replies to a question, in alternating order; the prompt is evaluated once, before."""
    generate(model, question, 1, speculative=False)
    pairs = []
    for number in range(runs):
        first, second = (generate(model, question, tokens, is_on) for is_on in (number % 2 == 0, number % 2 == 1))
        pairs.append(Pair(second, first) if number % 2 else Pair(first, second))
    return pairs


def generate(model: Model, question: str, tokens: int, speculative: bool) -> Speed:
    reply = model.reply(question, max_tokens=tokens, speculative=speculative)
    ids: list[int] = []
    start = 0.0
    for event in reply.events():
        if isinstance(event, TokenEvent):
            start = start or process_time()  # after the prompt and the first token
            ids += event.tokens
    seconds = process_time() - start
    assert reply.finish
    timings = reply.finish.timings
    return Speed((len(ids) - 1) / seconds, tuple(ids), timings.draft_n, timings.draft_n_accepted)


def row(label: str, pairs: Sequence[Pair], target: str) -> Row:
    """The median of the pairs' ratios; the number of equal texts counts a pair of each prompt's runs as one."""
    rate, plain = (median(pair[side].rate for pair in pairs) for side in (0, 1))
    tokens = sum(len(pair.drafting.tokens) for pair in pairs)
    accepted, drafted = (sum(getattr(pair.drafting, name) for pair in pairs) for name in ("accepted", "drafted"))
    equal = sum(pair.drafting.tokens == pair.plain.tokens for pair in pairs)
    of_drafts = f"{accepted} of {drafted} draft tokens accepted, {tokens} tokens"
    ours = f"{rate:.2f} tok/s ({of_drafts}, {equal} of {len(pairs)} texts equal)"
    return Row(
        f"speculative decoding: {label}, {kernels()}",
        ours,
        f"off: {plain:.2f} tok/s",
        median(pair.ratio for pair in pairs),
        target,
    )


def draw() -> None:
    """Plot tokens per time against the length of the draft."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    lengths = [0, *(rows - 1 for rows in STEP_COSTS)]
    for accepted in (1.0, 0.95, 0.9):
        values = [1.0]
        for rows, cost in STEP_COSTS.items():
            expected = sum(accepted**index for index in range(rows))
            values.append(expected / cost)
        axes.plot(lengths, values, marker="o", label=f"{accepted:.0%} of the tokens accepted")
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set_xlabel("draft tokens in a step")
    axes.set_ylabel("tokens per second, without draft tokens = 1")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


if __name__ == "__main__":
    main()
