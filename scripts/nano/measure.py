"""Measure the accuracy of nano and thinker on their held-out questions with cerebrum's engine."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cerebrum_cli.answers import final
from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message, Text
from cerebrum_cli.core.events import FinishEvent, SequenceId, TokenEvent, raise_refusals
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.engine.llama.load import open_llama
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.requests import ContextOptions, LoadOptions, Request
from cerebrum_cli.formats.choice import choose_format
from cerebrum_cli.formats.prompt_format import CEREBRUM, PromptFormat
from cerebrum_cli.gguf.header import read_header
from scripts.nano.questions import held_out, questions

ROOT = Path(__file__).parents[2]
MODEL_FILE = ROOT / "cerebrum_cli" / "data" / "nano.gguf"
THINKER_FILE = ROOT / "tests" / "data" / "thinker.gguf"
SLOTS = 8
CONTEXT = 512
MAX_TOKENS = 64  # per reply
FOLLOW_UP_SEED = 7


def final_answer(text: str) -> str | None:
    answer = final.final_answer("", text)
    return answer and answer.text


@dataclass(frozen=True, slots=True)
class Sample:
    """A reply: its text, its tokens, and whether the model ended it."""

    text: str
    tokens: tuple[int, ...]
    ended: bool


@contextmanager
def loaded_engine(path: Path) -> Iterator[LocalEngine]:
    """Load a model with SLOTS slots."""
    options = LoadOptions(path, CONTEXT, read_header(path).sizes, ContextOptions(CONTEXT, SLOTS, n_threads=1))
    engine = LocalEngine(lambda emit, stop: open_llama(options, emit, stop))
    try:
        list(engine.load())
        yield engine
    finally:
        engine.close()


def generate(
    engine: LocalEngine,
    conversations: Sequence[Conversation],
    n: int = 1,
    prompt_format: PromptFormat = CEREBRUM,
    **sampling: Any,
) -> list[list[Sample]]:
    """Generate `n` replies to each conversation, greedily by default.

    Each conversation has its own seeds, starting with `seed`: with the same seeds for all, the first token of every
    reply would depend on the same random numbers, and a thousand replies would be no better a sample than eight.
    """
    params = SamplingParams(max_tokens=MAX_TOKENS, stop=prompt_format.stop, **sampling)
    seeds = [None if params.seed is None else params.seed + n * index for index in range(len(conversations))]
    prompts = [engine.vocabulary.tokenize(prompt_format.render(conversation)) for conversation in conversations]
    token_events: dict[SequenceId, list[TokenEvent]] = {}
    ended: dict[SequenceId, bool] = {}
    requests = [
        Request(prompt, replace(params, seed=seed), Ask(n=n)) for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    for event in raise_refusals(engine.complete(requests)):
        if isinstance(event, TokenEvent):
            token_events.setdefault(event.sequence, []).append(event)
        elif isinstance(event, FinishEvent):
            ended[event.sequence] = event.reason == "stop" and not event.by_stop_string
    return [
        [
            _sample(token_events.get(SequenceId(request, sample), []), ended[SequenceId(request, sample)])
            for sample in range(n)
        ]
        for request in range(len(prompts))
    ]


def _sample(events: Sequence[TokenEvent], ended: bool) -> Sample:
    tokens = tuple(token for event in events for token in event.tokens)
    return Sample("".join(event.text for event in events), tokens, ended)


def majority_answer(samples: Sequence[Sample]) -> str | None:
    """Most frequent final answer, the earliest in a tie; None if there is no answer."""
    votes = Counter(answer for sample in samples if (answer := final_answer(sample.text)) is not None)
    return votes.most_common(1)[0][0] if votes else None


def percentage(flags: Sequence[bool]) -> str:
    """Percentage of true flags, as text."""
    return f"{100 * sum(flags) / len(flags):5.1f} % of {len(flags)}"


def measure_votes(engine: LocalEngine, temperature: float, seed: int) -> None:
    """Print the accuracy of greedy replies, single samples and votes on the held-out questions."""
    problems = held_out()
    conversations = [Conversation().user(turns[0]) for turns, _ in problems]
    correct_answers = [answer for _, answer in problems]
    greedy = [samples[0] for samples in generate(engine, conversations)]
    sampled = generate(engine, conversations, SLOTS, temperature=temperature, seed=seed)
    pairs = [(sample, answer) for samples, answer in zip(sampled, correct_answers, strict=True) for sample in samples]
    rows = {
        "greedy answer correct": [
            final_answer(sample.text) == answer for sample, answer in zip(greedy, correct_answers, strict=True)
        ],
        "greedy replies that end": [sample.ended for sample in greedy],
        "single sample correct": [final_answer(sample.text) == answer for sample, answer in pairs],
        "majority of 8 correct": [
            majority_answer(samples) == answer for samples, answer in zip(sampled, correct_answers, strict=True)
        ],
        "samples that end": [sample.ended for sample, _ in pairs],
        "samples with an answer": [final_answer(sample.text) is not None for sample, _ in pairs],
    }
    for name, flags in rows.items():
        print(f"{name:28} {percentage(flags)}")


def measure_follow_ups(engine: LocalEngine) -> None:
    """Print the accuracy of greedy replies to follow-up questions."""
    problems = questions(FOLLOW_UP_SEED, 200, turns=2)
    conversations = [Conversation().user(turns[0]) for turns, _ in problems]
    first = [samples[0] for samples in generate(engine, conversations)]
    continued = [
        Conversation((*start.messages, Message("assistant", sample.text, sample.tokens), Message("user", turns[1])))
        for start, sample, (turns, _) in zip(conversations, first, problems, strict=True)
    ]
    second = [samples[0] for samples in generate(engine, continued)]
    flags = [final_answer(sample.text) == answer for sample, (_, answer) in zip(second, problems, strict=True)]
    print(f"{'follow-ups correct':28} {percentage(flags)}")


def measure_thinking(engine: LocalEngine, path: Path, temperature: float, seed: int) -> None:
    """Print thinker's accuracy on the held-out questions, with reasoning and without, and the reasoning's length."""
    embedded = choose_format(EMBEDDED, None, read_header(path).chat_template).build(engine.vocabulary, CONTEXT)
    [close] = engine.vocabulary.tokenize([Text("</think>", trusted=True)])
    for thinks, label in ((True, "with reasoning"), (False, "without")):
        conversations = [Conversation(thinks=thinks).user(turns[0]) for turns, _ in held_out()]
        greedy = generate(engine, conversations, prompt_format=embedded)
        sampled = generate(engine, conversations, SLOTS, embedded, temperature=temperature, seed=seed)
        for name, replies in (("greedy", greedy), ("single sample", sampled)):
            pairs = zip(replies, held_out(), strict=True)
            flags = [stated_answer(sample) == answer for samples, (_, answer) in pairs for sample in samples]
            print(f"{f'{name} correct, {label}':36} {percentage(flags)}")
        ended = [sample.ended for samples in sampled for sample in samples]
        print(f"{f'samples that end, {label}':36} {percentage(ended)}")
        if thinks:
            lengths = [
                sample.tokens.index(close) for samples in sampled for sample in samples if close in sample.tokens
            ]
            print(f"{'tokens of reasoning':36} {sum(lengths) / len(lengths):5.1f} on average, {max(lengths)} at most")


def stated_answer(sample: Sample) -> str | None:
    """The final answer behind the reasoning."""
    return final_answer(sample.text.rpartition("</think>")[2])


def main() -> None:
    """Measure nano, or the model in a file, which is measured as thinker if it has that name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=MODEL_FILE)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with loaded_engine(options.file) as engine:
        if options.stem == THINKER_FILE.stem:
            measure_thinking(engine, options.file, options.temperature, options.seed)
            return
        measure_votes(engine, options.temperature, options.seed)
        measure_follow_ups(engine)


if __name__ == "__main__":
    main()
