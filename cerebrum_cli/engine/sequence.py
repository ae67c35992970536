"""A request, and one sample of it: its prompt, its text, its generated tokens, its place, and its times."""

from __future__ import annotations

import secrets
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.declaration import TokenBias
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import (
    AlternativesEvent,
    Event,
    FinishEvent,
    FinishReason,
    Forced,
    PromptEvent,
    SequenceId,
    Timings,
    TokenEvent,
    TokenLogprob,
)
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.sampling import SEEDS, SamplingParams
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.token_ids import NO_TOKEN, TokenIds, TokenPredicate, Tokens
from cerebrum_cli.engine.control import Constraint, ControlFactory, Force, ReplyControl
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText, SplitText

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend, Sampler
    from cerebrum_cli.engine.drafter import Drafter

OnSampleEvent: TypeAlias = "Callable[[Event | BaseException], None]"  # receives events of a sample, or its error

OPENING_TOKENS = 16  # more than most formats begin a reply with
EXPECTED_REPLY_TOKENS = 1024  # for unlimited replies, where memory is shared out among several


@frozen
class Request:
    """A prompt with its sampling parameters, for what is asked.

    The grammar and the stop strings apply where the text is the answer by the `rules`. The text includes a control
    token only if it `is_visible`. If `speculative`, tokens may be drafted and verified in one step. `controls` may end
    a sample or force tokens into it, but not where a grammar other than a schema applies.

    The last `opening` tokens of a prompt begin the reply; the prompt of the next turn may differ from there on.
    A sample that ends by itself is followed by a reply to `follow_up`, whose prompt tokens continue it.

    `as_messages`, a server gets the conversation and applies its own chat template: the tokens of the prompt only
    estimate its length, and the grammar is of a JSON Schema. With `inspected` tokens, nothing is generated: each of
    them, which followed the prompt, is reported with the `likeliest` tokens in its place. All but the last end
    `prompt_tokens`.
    """

    prompt_tokens: Tokens
    params: SamplingParams = field(default_factory=SamplingParams)
    ask: Ask = field(default_factory=Ask)
    is_visible: TokenPredicate = NO_TOKEN
    speculative: bool = False
    controls: tuple[ControlFactory, ...] = ()
    rules: ReplyRules = field(default_factory=ReplyRules)
    opening: int = OPENING_TOKENS
    follow_up: Request | None = None
    as_messages: bool = False
    inspected: TokenIds = ()
    likeliest: int = 0

    @classmethod
    def inspection(cls, prompt: Iterable[int], reply: TokenIds, likeliest: int = 0) -> Self:
        """A request to report the tokens of a given reply, each with the `likeliest` tokens in its place."""
        params = SamplingParams(max_tokens=1)
        return cls((*prompt, *reply[:-1]), params, inspected=reply, likeliest=likeliest)

    def first_seed(self) -> int:
        """Seed of the first sample: that requested, or a random one. Raises UsageError if the prompt is empty."""
        if not self.prompt_tokens:
            raise UsageError("the prompt is empty", "write a prompt")
        return secrets.randbelow(SEEDS) if self.params.seed is None else self.params.seed

    @property
    def stop_anywhere(self) -> Texts:
        """The stop strings that a server may look for, which knows no reasoning."""
        if self.rules.stops_anywhere:
            return self.params.stop
        return ()

    @property
    def stop(self) -> Texts:
        """The stop strings to find in a reply; a server of conversations has found them, reasoning apart."""
        if self.as_messages:
            return ()
        return self.params.stop

    @property
    def has_grammar(self) -> bool:
        """Whether the answer has to match a grammar here; a server of conversations has its schema."""
        return self.ask.grammar is not None and not self.as_messages

    @property
    def beginning(self) -> tuple[Tokens, list[SplitText]]:
        """The tokens and texts of the reply that the request continues."""
        at = len(self.prompt_tokens) - self.rules.prefix_tokens
        return self.prompt_tokens[at:], ReplyText(replace(self.rules, prefix="")).feed_text(self.rules.prefix)

    def max_length(self, context_size: int) -> int:
        """Maximum length of a sample, in tokens of prompt and reply."""
        limit = self.params.max_tokens
        if limit is None:
            return context_size
        return min(context_size, len(self.prompt_tokens) + limit)

    def expected_length(self, context_size: int, generated: int = 0) -> int:
        """Length to reserve memory for at least; more is reserved if a sample outgrows it."""
        return min(self.max_length(context_size), len(self.prompt_tokens) + max(EXPECTED_REPLY_TOKENS, 2 * generated))


@dataclass(eq=False)
class ReplySample:
    """One sample of a request, on this machine or on a server: its text, its controls, and where tokens were forced."""

    id: SequenceId
    request: Request
    seed: int
    prompt: Tokens = field(init=False)
    text: ReplyText = field(init=False)
    controls: list[ReplyControl] = field(init=False)
    forced: list[Forced] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.prompt = self.request.prompt_tokens
        self.text = ReplyText(self.request.rules, self.request.stop)
        self.controls = [create() for create in self.request.controls]

    @property
    def is_constrained(self) -> bool:
        """Whether the next token has to match the grammar; controls do not intervene then."""
        return self.request.has_grammar and self.text.stage == "answer"

    @property
    def awaits_answer(self) -> bool:
        """Whether there is a grammar that does not apply yet."""
        return self.request.has_grammar and self.text.stage != "answer"

    def token_events(
        self, pieces: list[SplitText], tokens: Many[int], logprobs: Many[float | None]
    ) -> Iterator[TokenEvent]:
        """The events of some tokens and the pieces of text that they complete, the last of which has the tokens."""
        yield from self._reclassification()
        for channel, text in pieces[:-1]:
            yield TokenEvent(self.id, text, channel)
        channel = self.text.channel
        text = ""
        if pieces:
            channel, text = pieces[-1]
        yield TokenEvent(self.id, text, channel, tokens, logprobs)

    def last_events(self, is_truncated: bool) -> Iterator[TokenEvent]:
        """The events of the text that was held back until the end."""
        pieces = self.text.finish(is_truncated)
        yield from self._reclassification()
        for channel, text in pieces:
            yield TokenEvent(self.id, text, channel)

    def _reclassification(self) -> Iterator[TokenEvent]:
        if self.text.was_reasoning:
            self.text.was_reasoning = False
            yield TokenEvent(self.id, "", "thinking", ends_reasoning=True)

    def finish_event(self, reason: FinishReason, **known: Any) -> FinishEvent:
        """The last event, with what is `known` of counts and times."""
        return FinishEvent(
            self.id,
            reason,
            seed=self.seed,
            forced=tuple(self.forced),
            in_reasoning=self.text.stage == "thinking",
            **known,
        )


@dataclass(eq=False)
class Sequence(ReplySample):
    """A sample on this machine; `evaluated` is the number of its tokens in its slot.

    `draft_n` tokens were drafted. `pending` tokens are forced: they follow instead of sampled ones. `inspected` tokens
    of an inspection are reported. A step of the prompt ends at `checkpoint_at`. A control may have set a `bias` for the
    next token. A reply to a follow-up knows the sample that it has `followed`.
    """

    emit: OnSampleEvent
    followed: Sequence | None = None
    # What it has generated.
    generated: array[int] = field(default_factory=lambda: array("i"))
    pending: deque[int] = field(default_factory=deque)
    bias: TokenBias | None = None
    inspected: int = 0
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
        if self.request.ask.grammar is None:
            return None
        forced = None if self.request.ask.logprobs else self.pending
        return Constraint(self.request.ask.grammar, self.text, forced)

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
    def first_output(self) -> int:
        """Position of the first token whose logits are needed, so that it has to be evaluated: in general the last."""
        if self.request.inspected:
            return self.length - len(self.request.inspected) + self.inspected
        return self.length - 1

    def add(self, token: int, piece: bytes, logprobs: tuple[float, ...] = ()) -> FinishReason | None:
        """Add a token and emit its text; return the reason if it is the last: "stop" means a stop string."""
        self.generated.append(token)
        pieces = self.text.feed(piece, (token,))
        for event in self.token_events(pieces, (token,), logprobs):
            self.emit(event)
        if self.text.is_stopped:
            return "stop"
        self.bias = None
        grammar = self.request.ask.grammar
        may_repeat = self.is_constrained and not (grammar and grammar.is_schema)
        if not may_repeat and (reason := self._control()):
            return reason
        if len(self.generated) == self.request.params.max_tokens:
            return "length"
        return None

    def _control(self) -> FinishReason | None:
        """Let the controls intervene, up to the first that forces tokens; return the reason if one ends the reply."""
        if self.pending:
            return None
        for control in self.controls:
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

    def report_inspected(self, backend: Backend, rows: Iterable[int]) -> None:
        """Report the next tokens of an inspection, each by the row of the last decode that predicts it."""
        request = self.request
        likeliest = tuple[TokenLogprob, ...]()
        for row in rows:
            token = request.inspected[self.inspected]
            given = TokenLogprob(token, backend.logprob(row, token))
            if request.likeliest:
                likeliest = tuple(backend.top_tokens(row, request.likeliest))
            self.emit(AlternativesEvent(self.id, self.inspected, given, likeliest))
            self.inspected += 1

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


def create_sequences(
    index: int, request: Request, emit: OnSampleEvent, samples: Iterable[int], seed: int
) -> list[Sequence]:
    """Create samples of a request; sample `i` has seed `seed + i`."""
    return [Sequence(SequenceId(index, sample), request, (seed + sample) % SEEDS, emit) for sample in samples]
