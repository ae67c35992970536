"""What a generation tells while it runs: loading, reading, tokens, and one finish for each sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from cerebrum_cli.core.errors import CerebrumError

Channel = Literal["answer", "thinking"]
FinishReason = Literal["stop", "length", "cancelled", "context"]


class SequenceId(NamedTuple):
    """Which completion an event belongs to: the request's index in its call, and the sample's index in it."""

    request: int
    sample: int = 0


@dataclass(frozen=True, slots=True)
class NoticeEvent:
    """Something the user should know that is no failure: what is, and what to do."""

    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class LoadEvent:
    """The model is being loaded; `fraction` from 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """A prompt is being read: `evaluated` of its `total` tokens are in the model's memory."""

    sequence: SequenceId
    evaluated: int
    total: int


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token and the text it completes; `token` is None for text that was held back until the end.

    `logprob` is the natural logarithm of the token's probability before any sampling setting, where it was asked for.
    """

    sequence: SequenceId
    text: str
    channel: Channel = "answer"
    token: int | None = None
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class RefusedEvent:
    """A sequence has ended with an error of its own, and others go on: its last event."""

    sequence: SequenceId
    error: CerebrumError


@dataclass(frozen=True, slots=True)
class TallyEvent:
    """A vote has moved on: the answers and how many chains came to each, best first; chains cast, and still running."""

    tally: tuple[tuple[str, int], ...]
    finished: int
    running: int


@dataclass(frozen=True, slots=True)
class RowEvent:
    """A row of a batch is finished: how many are, of how many, and how many of them have no answer."""

    done: int
    total: int
    failed: int


@dataclass(frozen=True, slots=True)
class StageEvent:
    """What a long piece of work does now, and how much of it is done, of how much; in what, is for whoever reads it."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one sequence by the clock: prefill to its first token, decode from there to its last.

    `ttft_s` counts from the request, so waiting for a slot is in it.
    """

    load_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    decode_steps: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Tokens evaluated a second while the prompt was read; 0 when nothing had to be."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode steps a second; 0 when one token was all."""
        return self.decode_steps / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """A sequence has ended: why, what it cost, and the seed that repeats it.

    Where a stop string ended it, its tokens say more than its text.
    """

    sequence: SequenceId
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seed: int
    context_size: int
    timings: Timings
    by_stop_string: bool = False


Event = (
    NoticeEvent | LoadEvent | PromptEvent | TokenEvent | FinishEvent | RefusedEvent | TallyEvent | RowEvent | StageEvent
)
