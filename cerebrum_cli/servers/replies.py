"""A server's reply as events: what all have in common, and replies to messages, of which text arrives."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import TypeAlias

from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.events import (
    Channel,
    FinishEvent,
    FinishReason,
    Logprobs,
    OpeningEvent,
    Origin,
    PromptEvent,
    RefusedEvent,
    Timings,
    TokenEvent,
)
from cerebrum_cli.core.tools import ToolCalls
from cerebrum_cli.engine.requests import ReplySample, Request
from cerebrum_cli.formats.reply_text import SplitText
from cerebrum_cli.servers.kind import ReplyChunk, StopReason

SampleEvent: TypeAlias = PromptEvent | TokenEvent | OpeningEvent | FinishEvent | RefusedEvent
SampleEvents: TypeAlias = Iterator[SampleEvent]

IGNORED_HINT = "ask again, or update the server"
WITHHELD_HINT = "rephrase the question, or check the server's log"


@dataclass(eq=False)
class RemoteSample(ReplySample):
    """A sample on a server, and what has arrived of it. All of a reply that does not stream is one event.

    One that `needs_turn` is continued by another request. A `replace` of it starts over.
    """

    context_size: int = 0
    origin: Origin | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs_turn = False
        self.tokens = self.prompt_tokens = 0
        self.has_all_tokens = True
        self._started_at = perf_counter()
        self._first_at: float | None = None
        self._cached = 0
        self._calls: ToolCalls = ()
        self._timings = Timings()  # as stated by the server
        self._ids = array("i")
        self._texts: dict[Channel, list[str]] = {}
        self._logprobs: list[float | None] = []

    @abstractmethod
    def take_turn(self) -> Request:
        """The next request: for the reply, or for a part of it."""

    @abstractmethod
    def add(self, chunk: ReplyChunk) -> SampleEvents:
        """Yield the events of a part of the reply; no more is read of a turn once it `needs_turn` or has ended.

        The last is a RefusedEvent if the server withheld the rest, or ignored the grammar. Raises EndpointError if it
        belongs to another prompt.
        """

    def _emit(self, pieces: list[SplitText], tokens: Sequence[int] = (), logprobs: Logprobs = ()) -> SampleEvents:
        match self.text.correction:
            case "thinking":
                self._texts = {"thinking": [*chain.from_iterable(self._texts.values())]}
            case "answer":
                self._texts.pop("thinking", None)
        if not self.request.ask.stream:  # all is sent at the end
            self.text.correction = None
        for channel, text in pieces:
            self._texts.setdefault(channel, []).append(text)
        if self.request.ask.stream:
            yield from self.token_events(pieces, tokens, logprobs)

    def _finish_reply(
        self, end: StopReason, reason: FinishReason | None = None, refusal: CerebrumError | None = None
    ) -> SampleEvents:
        is_stopped = end in ("eos", "stop string") or (end == "unstated" and not self._is_at_limit)
        last = self.text.finish(is_truncated=not is_stopped)
        if last or self.text.correction:
            yield from self._emit(last)
        if not self.request.ask.stream:
            pieces = [(channel, "".join(texts)) for channel, texts in self._texts.items()]
            yield from self.token_events(pieces, self._ids, self._logprobs)
        if refusal:
            yield RefusedEvent(self.id, refusal, self.origin, "".join(self._texts.get("answer", ())) or None)
            return
        by_stop_string = self.text.is_stopped or end == "stop string"
        if reason is None:
            reason = "stop" if is_stopped or by_stop_string else self._truncation
        yield self.finish(reason, by_stop_string)

    @property
    def _truncation(self) -> FinishReason:
        """Why a reply is truncated: by its limit, or by the context."""
        return "length" if self._is_at_limit else "context"

    @property
    def _is_at_limit(self) -> bool:
        limit = self.request.params.max_tokens
        return limit is not None and self.tokens >= limit

    @property
    def _measured_timings(self) -> Timings:
        """The server's times, or those measured here where it states none, and with several turns."""
        now = perf_counter()
        ttft_s = 0.0
        if self.request.ask.stream:
            ttft_s = (self._first_at or now) - self._started_at
        steps = max(0, self.tokens - 1)
        if self._timings.decode_s:
            return self._timings._replace(ttft_s=ttft_s or self._timings.prefill_s, decode_steps=steps)
        return Timings(prefill_s=ttft_s, ttft_s=ttft_s, decode_s=now - self._started_at - ttft_s, decode_steps=steps)

    def finish(self, reason: FinishReason, by_stop_string: bool = False) -> FinishEvent:
        """The last event, now: that of a sample which ends here, not on the server, is `cancelled`."""
        return self.finish_event(
            reason,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self._cached,
            completion_tokens=self.tokens,
            context_size=self.context_size,
            timings=self._measured_timings,
            by_stop_string=by_stop_string,
            has_all_tokens=self.has_all_tokens,
            origin=self.origin,
            calls=self._calls,
        )


class MessageSample(RemoteSample):
    """A reply to messages, of which the server knows the markup, the stop strings and the grammar."""

    def take_turn(self) -> Request:
        return self.request

    def add(self, chunk: ReplyChunk) -> SampleEvents:
        self.has_all_tokens = False
        text = chunk.reasoning + chunk.text
        if text or chunk.total:
            self._first_at = self._first_at or perf_counter()
        if chunk.likeliest:
            yield OpeningEvent(self.id, chunk.likeliest)
        pieces = self.text.feed_text(chunk.reasoning, "thinking") if chunk.reasoning else []
        pieces += self.text.feed_text(chunk.text)
        if text:
            yield from self._emit(pieces)
        if chunk.total is not None:
            self.tokens = chunk.total
        if chunk.end:
            self._calls = chunk.calls
            self.prompt_tokens = chunk.prompt_tokens or 0
            refusal = None
            if chunk.withheld:
                refusal = EndpointError(f"the server ended the reply: {chunk.withheld}", WITHHELD_HINT)
            yield from self._finish_reply(chunk.end, refusal=refusal)

    @property
    def _truncation(self) -> FinishReason:
        """That of a limit if there is one: the server may count other tokens, and does not state its context."""
        return "context" if self.request.params.max_tokens is None else "length"
