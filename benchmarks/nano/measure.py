"""Ask nano its held-out questions through cerebrum's engine, and print how often it is right, alone and by vote."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.answers.extract import final_answer
from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.events import FinishEvent, SequenceId, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.plan import LoadOptions, Shape
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.formats.plain import CEREBRUM
from nano.questions import held_out, questions

FILE = Path(__file__).parents[2] / "cerebrum_cli" / "nano.gguf"
SLOTS = 8
LONGEST = 64  # tokens of a reply
FOLLOW_UP_SEED = 7


@dataclass(frozen=True, slots=True)
class Chain:
    """A reply: its text, its tokens, and whether the model ended it."""

    text: str
    tokens: tuple[int, ...]
    ended: bool


@contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """Load a model that can say eight things at once."""
    shape = Shape(trained_context=512, weight_bytes=path.stat().st_size, layers=4, kv_bytes_per_token=1024)
    options = LoadOptions(path, shape, context_size=512, n_threads=1, slots=SLOTS)
    engine = Engine(lambda tell, stop: open_llama(options, tell, stop))
    try:
        list(engine.load())
        yield engine
    finally:
        engine.close()


def asked(engine: Engine, conversations: Sequence[Conversation], n: int = 1, **sampling: Any) -> list[list[Chain]]:
    """Return `n` replies to each conversation, the likeliest where `sampling` does not say otherwise.

    Each conversation has seeds of its own, `seed` and those after it for the first one: with the same seed the first
    token of all replies would be drawn by the same number, and a thousand of them would tell no more than eight.
    """
    params = SamplingParams(max_tokens=LONGEST, stop=CEREBRUM.stop, **sampling)
    seeds = [None if params.seed is None else params.seed + n * index for index in range(len(conversations))]
    prompts = [engine.tokenize(CEREBRUM.render(conversation)) for conversation in conversations]
    said: dict[SequenceId, list[TokenEvent]] = {}
    ended: dict[SequenceId, bool] = {}
    requests = [Request(prompt, replace(params, seed=seed), n=n) for prompt, seed in zip(prompts, seeds, strict=True)]
    for event in engine.generate(requests):
        if isinstance(event, TokenEvent):
            said.setdefault(event.sequence, []).append(event)
        elif isinstance(event, FinishEvent):
            ended[event.sequence] = event.reason == "stop" and not event.by_stop_string
    return [
        [_chain(said.get(SequenceId(request, sample), []), ended[SequenceId(request, sample)]) for sample in range(n)]
        for request in range(len(prompts))
    ]


def _chain(events: Sequence[TokenEvent], ended: bool) -> Chain:
    tokens = tuple(event.token for event in events if event.token is not None)
    return Chain("".join(event.text for event in events), tokens, ended)


def voted(chains: Sequence[Chain]) -> str | None:
    """Return the answer that most chains give, the first of those that as many give; None if none gives one."""
    votes = Counter(answer for chain in chains if (answer := final_answer(chain.text)) is not None)
    return votes.most_common(1)[0][0] if votes else None


def share(flags: Sequence[bool]) -> str:
    """Return how many of all are true, in per cent."""
    return f"{100 * sum(flags) / len(flags):5.1f} % of {len(flags)}"


def measure_votes(engine: Engine, temperature: float, seed: int) -> None:
    """Print what single questions come to."""
    wanted = held_out()
    begun = [Conversation().user(turns[0]) for turns, _ in wanted]
    right = [answer for _, answer in wanted]
    best = [chains[0] for chains in asked(engine, begun)]
    sampled = asked(engine, begun, SLOTS, temperature=temperature, seed=seed)
    each = [(chain, answer) for chains, answer in zip(sampled, right, strict=True) for chain in chains]
    rows = {
        "likeliest answer right": [final_answer(c.text) == answer for c, answer in zip(best, right, strict=True)],
        "likeliest answer ends": [chain.ended for chain in best],
        "single sample right": [final_answer(chain.text) == answer for chain, answer in each],
        "majority of 8 right": [voted(chains) == answer for chains, answer in zip(sampled, right, strict=True)],
        "samples that end": [chain.ended for chain, _ in each],
        "samples with an answer": [final_answer(chain.text) is not None for chain, _ in each],
    }
    for name, flags in rows.items():
        print(f"{name:28} {share(flags)}")


def measure_follow_ups(engine: Engine) -> None:
    """Print how often the likeliest reply to a second question is right about what the first one came to."""
    wanted = questions(FOLLOW_UP_SEED, 200, turns=2)
    begun = [Conversation().user(turns[0]) for turns, _ in wanted]
    first = [chains[0] for chains in asked(engine, begun)]
    gone_on = [
        Conversation((*start.messages, Message("assistant", chain.text, chain.tokens), Message("user", turns[1])))
        for start, chain, (turns, _) in zip(begun, first, wanted, strict=True)
    ]
    second = [chains[0] for chains in asked(engine, gone_on)]
    flags = [final_answer(chain.text) == answer for chain, (_, answer) in zip(second, wanted, strict=True)]
    print(f"{'follow-ups right':28} {share(flags)}")


def main() -> None:
    """Measure the file in the package, or another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with opened(options.file) as engine:
        measure_votes(engine, options.temperature, options.seed)
        measure_follow_ups(engine)


if __name__ == "__main__":
    main()
