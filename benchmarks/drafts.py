"""Measure speculative decoding with draft tokens from earlier text.

Needs `cerebrum pull starter`, for `server` also `make peers`, and for `plot` matplotlib: pip install --group bench.
Usage: python benchmarks/drafts.py [--data DIR] [--shape FILE] [--only PART] [--runs N] [--dry-run]

DIR contains gsm8k-200.jsonl, see benchmarks/batch.py. FILE is a model that benchmarks/mistral_shape.py has written. The
starter model is converted to BF16, since its own type has no kernel that computes several rows faster. The cost of
a step by its number of rows is measured first, as `cerebrum tune` does. Replies have exactly TOKENS tokens, at
temperature 0 unless stated, on two threads.

repeat     Tokens per second with it, against those without: a loop that the model falls into, and a text that it
           continues by copying. Pairs alternate in one process, after one warm-up each. In parentheses: the share of
           the tokens that are also the likeliest when they are evaluated one by one.
server     The same two replies, against llama-server with `--spec-default`: tokens per second.
prose      Answers to PROSE_QUESTIONS questions of GSM8K at temperature 0.8: rows decoded in vain, per generated token.
replay     Solutions of GSM8K, forced as replies: tokens drafted and accepted, from the prompt and from the reply, and
           the tokens per step time with the measured costs, and with those of a machine on which rows are nearly free.
           With FILE also the tokens per second with and without it on the 7B shape.
plot       Tokens per second against the length of the draft, if all, 90 % or 70 % of the tokens are accepted, from the
           measured costs: docs/explanation/drafts.png.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from answering import GSM8K, THREADS, model_path
from harness import ROOT, Row, alternate, argument_parser, in_subprocess, medians, pair, record
from quantized import BF16, quantize
from server import completion, running_server

from cerebrum_cli.cli.app import PROBE
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import FinishEvent, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.bench import Bench
from cerebrum_cli.engine.drafter import Drafter
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.memory import ContextOptions
from cerebrum_cli.engine.model_options import GgufFile, LoadOptions, Tuning
from cerebrum_cli.engine.sequence import Request, create_sequences
from cerebrum_cli.engine.step_costs import MAX_DRAFT, MEASURED_ROWS, StepCosts, draft_lengths
from cerebrum_cli.gguf.header import read_header

PARTS = ("repeat", "server", "prose", "replay", "plot")
TOKENS, CONTEXT = 384, 2048
PROSE_QUESTIONS, REPLAYED, REPLAYED_ON_SHAPE = 24, 200, 6
COST_SECONDS = 10.0
COST_DEPTH = 128  # tokens before the steps
MAX_ROWS = MAX_DRAFT + 1
PLOT = ROOT / "docs" / "explanation" / "drafts.png"
FREE_ROWS = StepCosts(MEASURED_ROWS, tuple(1 + 0.005 * (rows - 1) for rows in MEASURED_ROWS))
PASSAGE = (
    "The lighthouse keeper wrote down every ship that passed, with its flag, its course and the hour, and on Sundays "
    "he carried the book to the harbour master, who read it aloud to anyone who had come to listen.\n"
)
PROMPTS = {"loop": "I am", "copy": PASSAGE * 3 + "The lighthouse keeper wrote"}


class Speed(NamedTuple):
    """Tokens per second of a reply, its tokens, and how many were drafted and accepted."""

    rate: float
    tokens: tuple[int, ...]
    drafted: int
    accepted: int


def main() -> None:
    """Measure all parts or one, and record each when it is done."""
    parser = argument_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="directory with gsm8k-200.jsonl")
    parser.add_argument("--shape", type=Path, metavar="FILE", help="a model of Mistral-7B's shape, for `replay`")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs [default: 5]")
    options = parser.parse_args()
    parts = [options.only] if options.only else PARTS
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory, "starter-bf16.gguf")
        in_subprocess(quantize, model_path("starter"), model, BF16)
        costs = measured_costs(model)
        print("cost of a step by rows:", dict(zip(costs.rows, costs.costs, strict=True)))
        if "repeat" in parts:
            record([in_subprocess(repeat_row, model, name, costs, options.runs) for name in PROMPTS], options.dry_run)
        if "server" in parts:
            record([server_row(model, name, costs, options.runs) for name in PROMPTS], options.dry_run)
        if "prose" in parts and options.data:
            record([in_subprocess(prose_row, model, costs, questions(options.data))], options.dry_run)
        if "replay" in parts and options.data:
            solved = questions(options.data)
            record(in_subprocess(replay_rows, model, costs, solved), options.dry_run)
            if options.shape:
                shape_costs = measured_costs(options.shape)
                print("on the 7B shape:", dict(zip(shape_costs.rows, shape_costs.costs, strict=True)))
                record([in_subprocess(shape_row, options.shape, shape_costs, solved)], options.dry_run)
        if "plot" in parts and not options.dry_run:
            draw(costs)


def measured_costs(model: Path) -> StepCosts:
    """Cost of a step by its number of rows, as `cerebrum tune` measures it."""
    bench = Bench(load_options(model), PROBE.read_text(encoding="utf-8"))
    try:
        return bench.step_costs(Tuning(), MEASURED_ROWS, COST_SECONDS, COST_DEPTH)
    finally:
        bench.close()


def load_options(model: Path) -> LoadOptions:
    file = GgufFile(model, CONTEXT, read_header(model).sizes, is_verified=True)
    return LoadOptions(file, ContextOptions(CONTEXT, n_threads=THREADS))


@contextmanager
def loaded_engine(model: Path) -> Iterator[LocalEngine]:
    """An engine with a model."""
    engine = LocalEngine(lambda emit, stop: open_llama(load_options(model), emit, stop))
    try:
        list(engine.load())
        yield engine
    finally:
        engine.close()


class ForcedSampler:
    """A sampler that returns given tokens; `observe` gets the row and the token of each."""

    def __init__(self, tokens: Sequence[int], observe: Callable[[int, int], None] | None = None) -> None:
        self._tokens = list(reversed(tokens))
        self._observe = observe

    def sample(self, row: int) -> int:
        token = self._tokens.pop()
        if self._observe:
            self._observe(row, token)
        return token

    def close(self) -> None:
        """Do nothing: there are no native samplers."""


def generate(
    engine: LocalEngine,
    text: str,
    costs: StepCosts | None,
    temperature: float = 0.0,
    tokens: int = TOKENS,
    seed: int = 1,
) -> Speed:
    """Generate a fixed number of tokens after a text."""
    prompt = engine.vocabulary.tokenize([Text(text, trusted=False)])
    params = SamplingParams(max_tokens=tokens, temperature=temperature, seed=seed)
    events = list(engine.generate([Request(prompt, params, ignore_eos=True, step_costs=costs)]))
    finish = next(event for event in events if isinstance(event, FinishEvent))
    reply = tuple(token for event in events if isinstance(event, TokenEvent) for token in event.tokens)
    timings = finish.timings
    return Speed(timings.tokens_per_second, reply, timings.draft_n, timings.draft_n_accepted)


def repeat_row(model: Path, name: str, costs: StepCosts, runs: int) -> Row:
    """Compare a reply with and without speculative decoding."""
    with loaded_engine(model) as engine:
        ours, peer, ratio = alternate(
            lambda: generate(engine, PROMPTS[name], costs).rate,
            lambda: generate(engine, PROMPTS[name], None).rate,
            runs,
        )
        reply = generate(engine, PROMPTS[name], costs)
    agreement = single_row_agreement(model, PROMPTS[name], reply.tokens)
    label = f"drafts: {name}, starter in BF16, tokens/s ({TOKENS} tokens)"
    accepted = f"{reply.accepted} of {reply.drafted} draft tokens accepted, top-1 agreement {agreement:.3f}"
    return Row(label, f"{ours:.1f} ({accepted})", f"speculative=off {peer:.1f}", ratio, ">= 2.5")


def single_row_agreement(model: Path, text: str, reply: Sequence[int]) -> float:
    """Share of a reply's tokens that are the likeliest when they are evaluated one by one."""
    agreed: list[bool] = []
    with loaded_engine(model) as engine:
        backend: Any = engine.backend

        def observe(row: int, token: int) -> None:
            agreed.append(int(backend.logits(row).argmax()) == token)

        backend.sampler = lambda *_: ForcedSampler(reply, observe)
        generate(engine, text, None, tokens=len(reply))
    return sum(agreed) / len(agreed)


def server_row(model: Path, name: str, costs: StepCosts, runs: int) -> Row:
    """Compare a reply with llama-server's, each drafted in its own way."""
    with loaded_engine(model) as engine:
        prompt = engine.vocabulary.tokenize([Text(PROMPTS[name], trusted=False)])
        body = json.dumps({"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "ignore_eos": True}).encode()
        with running_server(model, CONTEXT, THREADS, 1, "--spec-default") as server:
            ours, peer, ratio = alternate(
                lambda: generate(engine, PROMPTS[name], costs).rate,
                lambda: float(completion(server.port, body)["timings"]["predicted_per_second"]),
                runs,
            )
    return Row(
        f"drafts: {name}, starter in BF16, against llama-server --spec-default, tokens/s",
        f"{ours:.1f}",
        f"llama-server {peer:.1f}",
        ratio,
        ">= 1.0",
    )


def questions(directory: Path) -> list[dict[str, str]]:
    """Questions of GSM8K with their solutions."""
    return [json.loads(line) for line in (directory / GSM8K).read_text(encoding="utf-8").splitlines()]


def prose_row(model: Path, costs: StepCosts, asked: Sequence[dict[str, str]]) -> Row:
    """Rows decoded in vain in answers that repeat little."""
    with loaded_engine(model) as engine:
        speeds = [
            generate(engine, each["question"] + "\n", costs, temperature=0.8, seed=seed)
            for seed, each in enumerate(asked[:PROSE_QUESTIONS])
        ]
    tokens, drafted, accepted = (
        sum(values)
        for values in zip(*((len(each.tokens), each.drafted, each.accepted) for each in speeds), strict=True)
    )
    label = f"drafts: rows decoded in vain, {PROSE_QUESTIONS} answers at temperature 0.8"
    return Row(
        label,
        f"{drafted - accepted} ({accepted} accepted)",
        f"{tokens} tokens",
        (drafted - accepted) / tokens,
        "<= 0.02",
    )


class Replay(NamedTuple):
    """Number of tokens, those drafted and accepted by source, and the cost of all steps in steps of one row."""

    tokens: int
    drafted: Counter[str]
    accepted: Counter[str]
    cost: float


def replay(prompt: Sequence[int], solution: Sequence[int], costs: StepCosts) -> Replay:
    """Draft a reply that is known, and add up what its steps would cost."""
    [sample] = create_sequences(0, Request(tuple(prompt)), lambda _: None, [0], 0)
    drafter, reply = Drafter(), sample.generated
    reply.append(solution[0])
    state = drafter.start(sample)
    drafted, accepted, cost = Counter[str](), Counter[str](), 0.0
    while len(reply) < len(solution):
        draft = drafter.draft(state, min(MAX_DRAFT, len(solution) - len(reply) - 1))
        source = "prompt" if state.position < len(prompt) else "reply"
        (length,) = draft_lengths([[each.probability for each in draft]], costs, MAX_ROWS, is_equal=False)
        right = 0
        while right < length and solution[len(reply)] == draft[right].token:
            reply.append(solution[len(reply)])
            right += 1
        reply.append(solution[len(reply)])
        if length:
            state.misses = 0 if right else state.misses + 1
        drafted[source] += length
        accepted[source] += right
        cost += costs.cost(1 + length)
    return Replay(len(solution), drafted, accepted, cost)


def replay_rows(model: Path, costs: StepCosts, solved: Sequence[dict[str, str]]) -> list[Row]:
    """Replay solutions with the measured costs, and with those of a machine with free rows."""
    rows = []
    with loaded_engine(model) as engine:
        pairs = [
            tuple(engine.vocabulary.tokenize([Text(each[key], trusted=False)]) for key in ("question", "answer"))
            for each in solved[:REPLAYED]
        ]
    for name, curve in (("measured costs", costs), ("free rows", FREE_ROWS)):
        replays = [replay(prompt, solution, curve) for prompt, solution in pairs]
        ratio = sum(each.tokens for each in replays) / sum(each.cost for each in replays)
        drafted = sum((each.drafted for each in replays), Counter[str]())
        accepted = sum((each.accepted for each in replays), Counter[str]())
        by_source = ", ".join(f"{accepted[each]} of {drafted[each]} from the {each}" for each in sorted(drafted))
        label = f"drafts: replay of {REPLAYED} GSM8K solutions, {name}, tokens per step time"
        rows.append(Row(label, f"{ratio:.3f} (accepted: {by_source})", "1", ratio, ">= 1.0"))
    return rows


def shape_row(model: Path, costs: StepCosts, solved: Sequence[dict[str, str]]) -> Row:
    """Force solutions as replies of the 7B shape, with and without speculative decoding."""
    pairs, drafted, accepted = [], 0, 0
    for number, each in enumerate(solved[:REPLAYED_ON_SHAPE]):
        with loaded_engine(model) as engine:
            solution = engine.vocabulary.tokenize([Text(each["answer"], trusted=False)])
            backend: Any = engine.backend
            backend.sampler = lambda *_, tokens=solution: ForcedSampler(tokens)
            run = partial(generate, engine, each["question"], tokens=len(solution))
            ours, peer = pair(partial(run, costs), partial(run, None), number)
        pairs.append((ours.rate, peer.rate))
        drafted, accepted = drafted + ours.drafted, accepted + ours.accepted
    with_draft_tokens, without, ratio = medians(pairs)
    label = f"drafts: {REPLAYED_ON_SHAPE} GSM8K solutions forced, 7B shape, tokens/s"
    return Row(
        label,
        f"{with_draft_tokens:.2f} ({accepted} of {drafted} accepted)",
        f"speculative=off {without:.2f}",
        ratio,
        ">= 0.98",
    )


def draw(costs: StepCosts) -> None:
    """Plot tokens per time against the length of the draft."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    lengths = [rows - 1 for rows in costs.rows]
    for accepted in (1.0, 0.9, 0.7):
        expected = [sum(accepted**index for index in range(rows)) for rows in costs.rows]
        values = [tokens / cost for tokens, cost in zip(expected, costs.costs, strict=True)]
        axes.plot(lengths, values, marker="o", label=f"{accepted:.0%} of the tokens accepted")
    axes.axhline(1.0, color="gray", linewidth=0.8)
    axes.set_xlabel("draft tokens in a step")
    axes.set_ylabel("tokens per second, without draft tokens = 1")
    axes.legend()
    figure.tight_layout()
    figure.savefig(PLOT, dpi=120)


if __name__ == "__main__":
    main()
