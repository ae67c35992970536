"""One completion on its way: its prompt, what it said, where it lives, and what it cost."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

from cerebrum_cli.core.events import Event, FinishEvent, FinishReason, SequenceId, Timings
from cerebrum_cli.core.sampling import SEEDS, SamplingParams
from cerebrum_cli.engine.backend import Sampler
from cerebrum_cli.engine.detokenizer import Detokenizer

EXPECTED_REPLY_TOKENS = (
    1024  # tokens of a reply that room is made for where many are given at once and nothing limits them
)


class Failure(NamedTuple):
    """An exception on its way from the engine's thread to a caller's."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it, `n` times; `grammar` is GBNF with the rule `root`.

    `visible_tokens` are control tokens whose spelling the caller wants to read in the text. With `logprobs` each token
    tells its own, with `ignore_end` the model's end of text is a token like others.
    """

    prompt_tokens: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    grammar: str | None = None
    n: int = 1
    visible_tokens: frozenset[int] = frozenset()
    logprobs: bool = False
    ignore_eos: bool = False


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one sample of one request; `evaluated` of its tokens are in the memory of its slot."""

    id: SequenceId
    request: Request
    seed: int
    emit: Callable[[Event | Failure], None]
    detokenizer: Detokenizer
    arrival_time: float
    sampler: Sampler | None = None
    slot: int | None = None
    evaluated: int = 0
    cached_tokens: int = 0
    generated: list[int] = field(default_factory=list)
    admitted_at: float | None = None
    sampled_at: list[float] = field(default_factory=list)
    is_finished: bool = False

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt's token ids."""
        return self.request.prompt_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether more is to be evaluated than the last token said: the prompt, or what an interruption cost."""
        return self.evaluated < max(len(self.prompt), self.length - 1)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and reply."""
        return (*self.prompt, *self.generated) if self.generated else self.prompt

    @property
    def length(self) -> int:
        """Tokens of prompt and reply together."""
        return len(self.prompt) + len(self.generated)

    def max_length(self, context_size: int) -> int:
        """Return how long the sequence may become."""
        limit = self.request.params.max_tokens
        return context_size if limit is None else min(context_size, len(self.prompt) + limit)

    def expected_length(self, context_size: int) -> int:
        """Return how long it is expected to become: room is made for that first, and for more when it outgrows it."""
        return min(
            self.max_length(context_size), len(self.prompt) + max(EXPECTED_REPLY_TOKENS, 2 * len(self.generated))
        )

    def token_at(self, position: int) -> int:
        """Return the token of prompt or reply that stands at a position."""
        prompt = self.prompt
        return prompt[position] if position < len(prompt) else self.generated[position - len(prompt)]

    def timings(self, load_s: float) -> Timings:
        """Return what the sequence cost until now, by the clock: sampling and waiting for other sequences are in it."""
        now = perf_counter()
        admitted = self.admitted_at or now
        first = self.sampled_at[0] if self.sampled_at else now
        return Timings(
            load_s=load_s,
            prefill_s=first - admitted,
            ttft_s=first - self.arrival_time,
            decode_s=self.sampled_at[-1] - first if self.sampled_at else 0.0,
            prefill_tokens=min(self.evaluated, len(self.prompt)) - self.cached_tokens,
            decode_steps=max(0, len(self.sampled_at) - 1),
        )

    def finish(self, reason: FinishReason, context_size: int, load_s: float, by_stop_string: bool) -> FinishEvent:
        """Return this sequence's last event."""
        return FinishEvent(
            self.id,
            reason,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.generated),
            seed=self.seed,
            context_size=context_size,
            timings=self.timings(load_s),
            by_stop_string=by_stop_string,
        )


def create_sequences(
    index: int, request: Request, emit: Callable[[Event | Failure], None], samples: Iterable[int], seed: int
) -> list[Sequence]:
    """Return sequences of a request, each with a seed of its own: the first sample's is `seed`, others' follow it."""
    now = perf_counter()
    return [
        Sequence(
            SequenceId(index, sample), request, (seed + sample) % SEEDS, emit, Detokenizer(request.params.stop), now
        )
        for sample in samples
    ]


def first_seed(request: Request) -> int:
    """Return the seed of a request's first sample: the one it asks for, or a fresh one."""
    seed = request.params.seed
    return secrets.randbelow(SEEDS) if seed is None else seed
