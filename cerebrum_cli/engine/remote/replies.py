"""A server's reply as events, equal to those of a model on this machine wherever all token ids arrived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from time import perf_counter

from cerebrum_cli.core.errors import EndpointError, GrammarError
from cerebrum_cli.core.events import Event, FinishEvent, FinishReason, PromptEvent, SequenceId, Timings, TokenEvent
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.detokenizer import Detokenizer
from cerebrum_cli.engine.remote.failures import RefusedRequestError
from cerebrum_cli.engine.remote.kind import End, Part
from cerebrum_cli.engine.sequence import Request


@dataclass(slots=True)
class RemoteSample:
    """One sample of a request: what has arrived of it."""

    id: SequenceId
    request: Request
    seed: int
    vocabulary: Vocabulary
    context_size: int = 0
    started_at: float = field(default_factory=perf_counter)
    first_at: float | None = None
    tokens: int = 0
    has_all_tokens: bool = True
    is_finished: bool = False
    _decoded: list[int] = field(default_factory=list)  # with a grammar: the tokens, and the one that ends the reply
    _detokenizer: Detokenizer = field(init=False)
    _is_ended: bool = field(init=False)  # no further token is part of the reply
    _by_stop_string: bool = field(init=False)

    def __post_init__(self) -> None:
        self.restart(self.context_size)

    def restart(self, context_size: int) -> None:
        """Forget what has arrived: a server with such a context starts to generate it."""
        self.context_size, self.started_at = context_size, perf_counter()
        self.first_at, self.tokens, self.has_all_tokens = None, 0, True
        self._detokenizer, self._is_ended, self._by_stop_string = Detokenizer(self.request.params.stop), False, False
        self._decoded.clear()

    def add(self, part: Part) -> Iterator[Event]:
        """Yield the events of a part of the reply.

        Raises EndpointError if it belongs to another prompt, and RefusedRequestError if it does not fit the grammar.
        """
        if part.progress:
            yield PromptEvent(self.id, *part.progress)
            return
        if part.tokens or part.text:
            self.first_at = self.first_at or perf_counter()
        yield from self._decode(part) if part.text is None else self._show_text(part, part.text)
        if part.end:
            yield from self._end(part.end)

    def cancelled(self) -> FinishEvent:
        """The last event of a sample that was stopped from here."""
        return self._finish("cancelled", 0, self._measured)

    def _decode(self, part: Part) -> Iterator[Event]:
        """Decode tokens as on this machine, up to one that ends the reply."""
        vocabulary, request = self.vocabulary, self.request
        for token, logprob in zip(part.tokens, part.logprobs or repeat(None), strict=False):
            if self._is_ended:
                return
            if request.grammar:
                self._decoded.append(token)
            self._is_ended = vocabulary.is_eog(token) and not request.ignore_eos
            if self._is_ended:
                return
            self.tokens += 1
            piece = vocabulary.piece(token, special=token in request.visible_tokens)
            text, self._by_stop_string = self._detokenizer.feed(piece)
            self._is_ended = self._by_stop_string
            yield TokenEvent(self.id, text, token=token, logprob=logprob)

    def _show_text(self, part: Part, text: str) -> Iterator[Event]:
        """Pass on the server's text, with the ids that came with it."""
        vocabulary, request = self.vocabulary, self.request
        tokens = [token for token in part.tokens if request.ignore_eos or not vocabulary.is_eog(token)]
        self.tokens += len(tokens)
        if len(tokens) == len(part.tokens):
            has_ids = bool(tokens) or not text if part.total is None else part.total == self.tokens
            self.has_all_tokens = self.has_all_tokens and has_ids
        if not text and tokens and tokens[-1] in request.visible_tokens:
            text = vocabulary.piece(tokens[-1], special=True).decode("utf-8", "replace")
        if text or tokens:
            yield TokenEvent(self.id, text, token=tokens[-1] if tokens else None)

    def _end(self, end: End) -> Iterator[Event]:
        given = len(self.request.prompt_tokens)
        if end.prompt_tokens not in (None, given):
            problem = f"the server evaluated {end.prompt_tokens} prompt tokens instead of {given}"
            raise EndpointError(problem, "its model has another vocabulary: name its model with -m")
        self._require_grammar()
        is_stopped = self._is_ended or end.reason != "limit"
        text, stopped_at_end = self._detokenizer.flush(is_truncated=not is_stopped)
        if text:
            yield TokenEvent(self.id, text)
        if end.tokens is not None and not self._is_ended and end.tokens != self.tokens:
            self.tokens, self.has_all_tokens = end.tokens, False
        self._by_stop_string = self._by_stop_string or stopped_at_end or end.reason == "stop string"
        limit = self.request.params.max_tokens
        is_limited = limit is not None and (self.tokens >= limit or self._has_room_for(limit))
        reason: FinishReason = "stop" if is_stopped or self._by_stop_string else "length" if is_limited else "context"
        yield self._finish(reason, end.cached_tokens, self._timings(end.timings))

    def _has_room_for(self, limit: int) -> bool:
        """Whether the limit ends a reply, not the context: what is known if the tokens could not be counted."""
        return not self.has_all_tokens and len(self.request.prompt_tokens) + limit <= self.context_size

    def _require_grammar(self) -> None:
        """Raise RefusedRequestError for a reply that the grammar does not allow: some servers ignore fields."""
        grammar, decoded = self.request.grammar, self._decoded
        try:
            is_allowed = not (grammar and decoded) or self.vocabulary.matches_grammar(grammar, decoded)
        except GrammarError as error:
            raise RefusedRequestError(error) from error
        if not is_allowed:
            problem = "the reply does not match the grammar or schema: the server ignores it"
            raise RefusedRequestError(EndpointError(problem, "update the server, or ask another"))

    def _timings(self, stated: Timings) -> Timings:
        """The server's times, or those measured here where it states none."""
        measured = self._measured
        if not stated.decode_s:
            return measured
        ttft_s = stated.prefill_s
        if self.request.stream:
            ttft_s = measured.ttft_s
        elif self.request.n == 1:  # several samples come together: the time is that of the longest
            ttft_s = max(ttft_s, perf_counter() - self.started_at - stated.decode_s)
        return replace(stated, ttft_s=ttft_s, decode_steps=measured.decode_steps)

    @property
    def _measured(self) -> Timings:
        now = perf_counter()
        first = self.first_at or now
        ttft_s = first - self.started_at
        steps = max(0, self.tokens - 1)
        return Timings(prefill_s=ttft_s, ttft_s=ttft_s, decode_s=now - first, decode_steps=steps)

    def _finish(self, reason: FinishReason, cached_tokens: int, timings: Timings) -> FinishEvent:
        self.is_finished = True
        return FinishEvent(
            self.id,
            reason,
            prompt_tokens=len(self.request.prompt_tokens),
            cached_tokens=cached_tokens,
            completion_tokens=self.tokens,
            seed=self.seed,
            context_size=self.context_size,
            timings=timings,
            by_stop_string=self._by_stop_string,
            has_all_tokens=self.has_all_tokens,
        )
