"""A sample on this machine: its prompt, its text, its generated tokens, its place, and its times."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from cerebrum_cli.core.events import (
    FinishEvent,
    FinishReason,
    Forced,
    PromptEvent,
    Timings,
)
from cerebrum_cli.core.sampling import TokenBias
from cerebrum_cli.core.token_ids import TokenIds, Tokens
from cerebrum_cli.engine.drafter import Drafter
from cerebrum_cli.engine.engine import OnSampleEvent
from cerebrum_cli.engine.requests import Force, ReplySample
from cerebrum_cli.engine.step import Constraint

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend, Sampler
    from cerebrum_cli.engine.loglikelihood import ScoreJob


@dataclass(eq=False)
class Sequence(ReplySample):
    """A sample on this machine; `evaluated` is the number of its tokens in its slot.

    `draft_n` tokens were drafted. `pending` tokens are forced, as `forced_n` were: they follow instead of sampled ones.
    A step of the prompt ends at `checkpoint_at`. A control may have set a `bias` for the next token. A reply to a
    follow-up knows the sample that it has `followed`.
    """

    emit: OnSampleEvent
    followed: Sequence | None = None
    # What it has generated.
    generated: array[int] = field(default_factory=partial(array, "i"))
    pending: deque[int] = field(default_factory=deque)
    forced_n: int = 0
    bias: TokenBias | None = None
    # Its place.
    slot: int | None = None
    sampler: Sampler | None = None
    evaluated: int = 0
    cached_tokens: int = 0
    checkpoint_at: int = 0
    drafter: Drafter | None = None
    # Its times.
    arrival_time: float = field(default_factory=perf_counter)
    admitted_at: float = 0.0
    sampled_at: list[float] = field(default_factory=list)
    draft_n: int = 0
    draft_n_accepted: int = 0

    @property
    def constraint(self) -> Constraint | None:
        grammar = self.request.ask.grammar
        if grammar is None:
            return None
        return Constraint(grammar, self.text, self.pending, grammar.is_schema and self.request.loop_check)

    @property
    def is_prefilling(self) -> bool:
        """Whether more than the last generated token has to be evaluated: the prompt, or tokens lost from the slot."""
        return self.evaluated < max(len(self.prompt), self.length - 1)

    @property
    def tokens(self) -> Tokens:
        if not self.generated:
            return self.prompt
        return (*self.prompt, *self.generated)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def last_position(self) -> int:
        """Position of the last token, which has to be evaluated for its logits."""
        return self.length - 1

    def draft(self, backend: Backend) -> TokenIds:
        """Draft the next tokens that pay off, at most as many as leave room to sample a token after them."""
        if self.drafter is None:
            self.drafter = Drafter(self.prompt)
        room = self.request.max_length(backend.capacity) - self.length - 1
        return self.drafter.draft(self.generated, min(room, backend.max_draft))

    def add(self, token: int, piece: bytes) -> FinishReason | None:
        """Add a token and emit its text; return the reason if it is the last: "stop" means a stop string."""
        self.generated.append(token)
        pieces = self.text.feed(piece, (token,))
        for event in self.text_events(pieces, (token,)):
            self.emit(event)
        if self.text.is_stopped:
            return "stop"
        self.bias = None
        if reason := self._control():
            return reason
        if len(self.generated) == self.request.params.max_tokens:
            return "length"
        return None

    def _control(self) -> FinishReason | None:
        """Let the controls intervene, up to the first that forces tokens; return the reason if the reply ends."""
        if self.pending:
            return None
        if self.repeats_itself(self.generated, self.forced_n):
            return "repetition"
        for control in () if self.is_constrained else self.controls:
            intervention = control.intervene(self.text, self.generated)
            match intervention:
                case str():
                    return intervention
                case Force(tokens):
                    self._force(tokens)
                    break
            self.bias = intervention or self.bias
        return None

    def close_reasoning(self) -> bool:
        """End the reasoning where the model ends its turn in it although an answer has to match a grammar."""
        closing = self.text.closing
        if not closing or not self.request.has_grammar:
            return False
        self._force(closing)
        return True

    def _force(self, tokens: TokenIds) -> None:
        self.forced.append(Forced(self.request.rules.prefix_tokens + len(self.generated), len(tokens)))
        self.pending.extend(tokens)

    def report_prefill(self) -> None:
        """Report prefill progress, unless the prompt is evaluated again after a preemption."""
        if not self.generated:
            self.emit(PromptEvent(self.id, self.evaluated, len(self.prompt)))

    def tokens_from(self, position: int, count: int) -> Tokens:
        """Up to `count` token ids of prompt and reply from a position."""
        prompt = self.prompt
        end = position + count
        if end <= len(prompt):
            return prompt[position:end]
        start = max(0, position - len(prompt))
        return (*prompt[position:], *self.generated[start : end - len(prompt)])

    def follow(self, context_size: int) -> Sequence | None:
        """The sequence that asks the request's follow-up; None without one, and if the context is too small for it."""
        request = self.request.follow_up
        if request is None or self.length + len(request.prompt_tokens) >= context_size:
            return None
        request = replace(request, prompt_tokens=(*self.tokens, *request.prompt_tokens))
        return Sequence(self.id._replace(turn=1), request, self.seed, self.emit, followed=self)

    def finish(self, reason: FinishReason, context_size: int, load_s: float, is_followed: bool = False) -> FinishEvent:
        """The last event, with elapsed times in seconds, which include sampling and waiting for other sequences."""
        first = last = perf_counter()
        admitted = self.admitted_at or first
        if self.sampled_at:
            first = self.sampled_at[0]
            last = self.sampled_at[-1]
        timings = Timings(
            load_s=load_s,
            prefill_s=first - admitted,
            ttft_s=first - self.arrival_time,
            decode_s=last - first,
            prefill_tokens=min(self.evaluated, len(self.prompt)) - self.cached_tokens,
            decode_steps=max(0, len(self.sampled_at) - 1),
            draft_n=self.draft_n,
            draft_n_accepted=self.draft_n_accepted,
        )
        return self.finish_event(
            reason,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.generated),
            context_size=context_size,
            timings=timings,
            by_stop_string=self.text.is_stopped,
            is_followed=is_followed,
        )


Work = Collection["Sequence | ScoreJob"]


def fail_work(work: Work, error: BaseException) -> None:
    for item in work:
        item.emit(error)
