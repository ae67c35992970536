"""A server's reply as events: what all have in common, and replies to messages, of which text arrives."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TypeAlias

from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.events import (
    FinishEvent,
    FinishReason,
    OpeningEvent,
    Origin,
    PromptEvent,
    RefusedEvent,
    Timings,
    TokenEvent,
    answer_text,
)
from cerebrum_cli.core.tools import ToolCalls
from cerebrum_cli.engine.requests import ReplySample, Request
from cerebrum_cli.servers.kind import ReplyChunk, StopReason

SampleEvent: TypeAlias = PromptEvent | TokenEvent | OpeningEvent | FinishEvent | RefusedEvent
SampleEvents: TypeAlias = Iterator[SampleEvent]

WITHHELD_HINT = "rephrase the question, or check the server's log"


@dataclass(eq=False)
class RemoteSample(ReplySample):
    """A sample on a server, and what has arrived of it. One that `needs_turn` is continued by another request.

    A `replace` of it starts over, so the events of a reply that does not stream are held until its end.
    """

    context_size: int = 0
    origin: Origin | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs_turn = False
        self.tokens = self.prompt_tokens = 0
        self.has_all_tokens = True
        self._events: list[SampleEvent] = []
        self._started_at = perf_counter()
        self._first_at: float | None = None
        self._cached = 0
        self._calls: ToolCalls = ()
        self._timings = Timings()  # as stated by the server
        self._ids = array("i")

    @abstractmethod
    def take_turn(self) -> Request:
        """The next request: for the reply, or for a part of it."""

    @abstractmethod
    def read(self, chunk: ReplyChunk) -> SampleEvents:
        """Yield the events of a part of the reply, the last of which is a RefusedEvent if it cannot be used."""

    def add(self, chunk: ReplyChunk) -> Iterable[SampleEvent]:
        """Read a part of the reply, and return the events that are due."""
        if chunk.total or chunk.tokens or chunk.text:
            self._first_at = self._first_at or perf_counter()
        self._events += self.read(chunk)
        is_over = bool(self._events) and isinstance(self._events[-1], (FinishEvent, RefusedEvent))
        if not (self.request.ask.stream or is_over):
            return ()
        events, self._events = self._events, []
        return events

    def _end_reply(
        self, end: StopReason, reason: FinishReason | None = None, refusal: CerebrumError | None = None
    ) -> SampleEvents:
        is_complete = end == "eos" or self.text.is_stopped
        last = list(self.text_events(self.text.finish(is_truncated=not is_complete)))
        yield from last
        if refusal:
            yield RefusedEvent(self.id, refusal, self.origin, answer_of((*self._events, *last)) or None)
        else:
            yield self.finish(reason or ("stop" if is_complete else self._truncation))

    @property
    def _truncation(self) -> FinishReason:
        """Why a reply is truncated: by its limit, or by the context."""
        return "length" if self._is_at_limit else "context"

    @property
    def _is_at_limit(self) -> bool:
        limit = self.request.params.max_tokens
        return limit is not None and self.tokens >= limit

    def finish(self, reason: FinishReason) -> FinishEvent:
        """The last event, now: that of a sample which ends here, not on the server, is `cancelled`."""
        now = perf_counter()
        first_at = self._first_at or now
        times = self._timings
        if not times.decode_s:  # the server does not state them, or there were several requests
            times = Timings(prefill_s=first_at - self._started_at, decode_s=now - first_at)
        return self.finish_event(
            reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self._cached,
            completion_tokens=self.tokens,
            context_size=self.context_size,
            timings=times._replace(ttft_s=first_at - self._started_at, decode_steps=max(0, self.tokens - 1)),
            by_stop_string=self.text.is_stopped,
            has_all_tokens=self.has_all_tokens,
            origin=self.origin,
            calls=self._calls,
        )


class MessageSample(RemoteSample):
    """A reply to messages, of which the server knows the markup, the stop strings and the grammar."""

    def take_turn(self) -> Request:
        return self.request

    def read(self, chunk: ReplyChunk) -> SampleEvents:
        self.has_all_tokens = False
        if chunk.likeliest and not chunk.withheld:
            yield OpeningEvent(self.id, chunk.likeliest)
        pieces = self.text.feed_text(chunk.reasoning, "thinking") if chunk.reasoning else []
        pieces += self.text.feed_text(chunk.text)
        yield from self.text_events(pieces)
        if chunk.total is not None:
            self.tokens = chunk.total
        if chunk.end:
            if self.request.ask.conversation.tools:
                self._calls = chunk.calls
            self.prompt_tokens = chunk.prompt_tokens or 0
            refusal = None
            if chunk.withheld:
                refusal = EndpointError(f"the server ended the reply: {chunk.withheld}", WITHHELD_HINT)
            yield from self._end_reply(chunk.end, refusal=refusal)

    @property
    def _truncation(self) -> FinishReason:
        """That of a limit if there is one: the server may count other tokens, and does not state its context."""
        return "context" if self.request.params.max_tokens is None else "length"


def answer_of(events: Sequence[SampleEvent]) -> str:
    """The answer so far; after a correction, the events repeat what is of it."""
    texts: list[str] = []
    for event in events:
        if isinstance(event, TokenEvent) and event.is_correction:
            texts.clear()
        texts.append(answer_text(event))
    return "".join(texts)
