"""A server's reply as events, equal to those of a model on this machine wherever all token ids arrived.

The tokens of a whole reply are decoded together, with Python's work for each reply, not for each token.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import compress, count
from time import perf_counter

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EndpointError, GrammarError
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    FinishReason,
    Forced,
    Origin,
    PromptEvent,
    SequenceId,
    Timings,
    TokenEvent,
)
from cerebrum_cli.engine.backend import Vocabulary, continuation
from cerebrum_cli.engine.control import Controls, EndReply, Force, Upcoming
from cerebrum_cli.engine.detokenizer import Detokenizer, TokenTable
from cerebrum_cli.engine.remote.client import LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.kind import ReplyChunk, ReplyEnd
from cerebrum_cli.engine.remote.turns import ENDED, Turns
from cerebrum_cli.engine.sequence import Request


class TokenTables:
    """What is known of the tokens of a vocabulary: their bytes, and which end a reply."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.is_end = TokenTable(vocabulary.is_eog)
        self._pieces: dict[frozenset[int], TokenTable[bytes]] = {}

    def pieces(self, visible: frozenset[int]) -> TokenTable[bytes]:
        """The bytes of tokens, those of the visible control tokens spelled out."""
        if visible not in self._pieces:
            piece = self.vocabulary.piece
            self._pieces[visible] = TokenTable(lambda token: piece(token, special=token in visible))
        return self._pieces[visible]

    def length(self, tokens: Sequence[int]) -> int:
        """Number of tokens before the one that ends a reply."""
        return next(compress(count(), map(self.is_end.__getitem__, tokens)), len(tokens))


class RemoteSample:
    """One sample of a request: what has arrived of it from a server. All of a reply that does not stream is one event.

    `is_finished` once its last event was emitted; `needs_turn` while the controls want it continued by another request.
    """

    def __init__(self, id: SequenceId, request: Request, seed: int, tables: TokenTables) -> None:
        self.id, self.request, self.seed = id, request, seed
        self.tokens, self.has_all_tokens = 0, True
        self.is_finished = self.needs_turn = False
        self._tables, self._vocabulary = tables, tables.vocabulary
        self._pieces = tables.pieces(request.visible_tokens)
        self._context_size = 0  # of the server
        self._origin: Origin | None = None
        self._started_at = perf_counter()
        self._first_at: float | None = None
        self._cached = 0  # tokens of the prompt, as far as known before the end
        self._ids = array("i")
        self._texts: list[str] = []
        self._logprobs: list[float | None] = []
        self._decoded: list[int] = []  # with a grammar: the tokens, and the one that ends the reply
        self._detokenizer: Detokenizer
        self._is_ended = False  # no further token is part of the reply
        self._by_stop_string = False
        self._turns: Turns | None = None
        self._turn = request

    def started(self, context_size: int, origin: Origin | None = None) -> RemoteSample:
        """The sample before anything has arrived from a server; controls are applied here, since that has none."""
        request = self.request
        sample = RemoteSample(self.id, request, self.seed, self._tables)
        sample._context_size, sample._origin = context_size, origin
        sample._detokenizer = Detokenizer(request.params.stop, request.answer_start)
        if request.controls or request.answer_start:
            sample._turns = Turns(request, self._vocabulary, Controls(request.controls), request.constraint)
            sample._turn = sample._turns.next_request()
        return sample

    def take_turn(self) -> Request:
        self.needs_turn = False
        return self._turn

    @property
    def is_interrupted(self) -> bool:
        """Whether nothing else of this turn is used: a control has intervened, or the answer starts."""
        return self._turns is not None and self._turns.intervention is not None

    @property
    def is_cut(self) -> bool:
        """Whether the server would continue a turn of which nothing more is used: it may not know a stop string."""
        return self.is_interrupted or (self._by_stop_string and self.request.answer_start is not None)

    @property
    def was_guessed(self) -> bool:
        """Whether a control has acted on a reply of which not all ids arrived."""
        return not self.has_all_tokens and self._turns is not None and bool(self._turns.start or self.is_interrupted)

    def add(self, chunk: ReplyChunk) -> Iterator[Event]:
        """Yield the events of a part of the reply.

        Raises EndpointError if it belongs to another prompt, and RefusedRequestError if it does not fit the grammar.
        """
        if chunk.progress:
            if not self.tokens:
                self._cached = chunk.cached
                yield PromptEvent(self.id, *chunk.progress)
            return
        if chunk.text is not None and self._turns and not self.request.stream:
            chunk, self.has_all_tokens = replace(chunk, tokens=self._guess_tokens(chunk.text), text=None), False
        if chunk.tokens or chunk.text:
            self._first_at = self._first_at or perf_counter()
        yield from self._decode(chunk) if chunk.text is None else self._show_text(chunk, chunk.text)
        if chunk.end:
            yield from self._end(chunk.end)

    def cancelled(self) -> FinishEvent:
        """The last event of a sample that was stopped from here."""
        return self._finish("cancelled", ReplyEnd("limit", cached_tokens=self._cached))

    def _decode(self, chunk: ReplyChunk) -> Iterator[Event]:
        """Decode tokens up to one that ends the reply: together where nothing can intervene."""
        tokens, at = array("i", chunk.tokens), 0
        end = len(tokens) if self.request.ignore_eos else self._tables.length(tokens)
        while at < len(tokens) and not (self._is_ended or self.is_interrupted or self._starts_answer(tokens[at])):
            if at == end:
                self._is_ended = True
                self._decoded += tokens[at : at + 1] if self._is_bound else ()
                return
            block, pieces = tokens[at:end], list(map(self._pieces.__getitem__, tokens[at:end]))
            if self._turns:
                passed = max(1, self._turns.lets_pass(Upcoming(block, pieces, self._detokenizer.held)))
                block, pieces = block[:passed], pieces[:passed]
            yield from self._add(block, pieces, chunk.logprobs[at : at + len(block)])
            at += len(block)

    def _add(
        self, tokens: array[int], pieces: list[bytes], logprobs: Sequence[float | None] = (), is_forced: bool = False
    ) -> Iterator[Event]:
        """Add tokens, up to one that completes a stop string; controls may intervene after the last of others."""
        text, self._by_stop_string = self._detokenizer.feed(b"".join(pieces))
        self._is_ended = self._by_stop_string
        if self._is_ended and len(tokens) > 1:
            tokens = tokens[: self._length_to_stop(pieces)]
        self.tokens += len(tokens)
        self._ids += tokens
        self._texts.append(text)
        self._decoded += tokens if self._is_bound and not is_forced else ()
        if self._turns and not self._is_ended:
            self._turns.feed(tokens, text, self._spelled(tokens), is_forced)
        logprobs = logprobs[: len(tokens)]
        if self.request.stream:
            yield TokenEvent(self.id, text, tokens=tokens, logprobs=logprobs)
        elif self.request.logprobs:
            self._logprobs += logprobs or [None] * len(tokens)

    def _length_to_stop(self, pieces: Sequence[bytes]) -> int:
        """Number of tokens, of those with these pieces, up to the one that completes a stop string."""
        before = b"".join(map(self._pieces.__getitem__, self._ids))

        def has_stopped(count: int) -> bool:
            detokenizer = Detokenizer(self.request.params.stop, self.request.answer_start)
            return detokenizer.feed(before + b"".join(pieces[:count]))[1]

        return 1 + bisect_left(range(1, len(pieces)), True, key=has_stopped)

    def _spelled(self, tokens: Sequence[int]) -> str:
        return b"".join(map(self._pieces.__getitem__, tokens)).decode("utf-8", "replace")

    @property
    def _is_bound(self) -> bool:
        """Whether the server applies the grammar in the running turn."""
        return self._turn.grammar is not None and self._turn.answer_start is None

    def _starts_answer(self, token: int) -> bool:
        if self._turns is None or self._turns.free_start is None:
            return False
        return self._turns.starts_answer(token, self._vocabulary.piece(token, special=True).decode("utf-8", "replace"))

    def _guess_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a text whose ids did not arrive, as far as the text shows them."""
        markup = [self._vocabulary.piece(token, special=True).decode() for token in self.request.visible_tokens]
        parts = re.split(f"({'|'.join(map(re.escape, markup))})", text) if markup else [text]
        return continuation(self._vocabulary, (Text(part, trusted=part in markup) for part in parts))

    def _show_text(self, chunk: ReplyChunk, text: str) -> Iterator[Event]:
        """Pass on the server's text, with the ids that came with it."""
        request, is_end = self.request, self._tables.is_end
        tokens = [token for token in chunk.tokens if request.ignore_eos or not is_end[token]]
        guessed = tokens or self._guess_tokens(text)
        if self._turns and self._turns.free_start and not tokens and len(guessed) > 1:
            decoder = getincrementaldecoder("utf-8")("replace")
            for token in guessed:  # the answer may start within the chunk
                if not self.is_interrupted:
                    yield from self._show_text(ReplyChunk(total=chunk.total), decoder.decode(self._pieces[token]))
            return
        if any(map(self._starts_answer, guessed[:1])):
            return
        self.tokens += len(tokens)
        if len(tokens) == len(chunk.tokens):
            total = None if chunk.total is None else self._turn_start + chunk.total
            has_ids = bool(tokens) or not text if total is None else total == self.tokens
            self.has_all_tokens = self.has_all_tokens and has_ids
            self.tokens = total or self.tokens
        if not text and tokens and tokens[-1] in request.visible_tokens:
            text = self._spelled(tokens[-1:])
        if text or tokens:
            self._ids.extend(tokens)
            self._texts.append(text)
            if self._turns:
                self._turns.feed(guessed, text, self._spelled(guessed))
            if self.request.answer_start:
                text, self._by_stop_string = self._detokenizer.feed(text.encode("utf-8", "surrogatepass"))
                self._is_ended = self._by_stop_string
            if self.request.stream:
                yield TokenEvent(self.id, text, tokens=tokens)

    def _end(self, end: ReplyEnd) -> Iterator[Event]:
        given = len(self._turn.prompt_tokens)
        if end.prompt_tokens not in (None, given):
            problem = f"the server evaluated {end.prompt_tokens} prompt tokens instead of {given}"
            raise EndpointError(problem, "its model has a different vocabulary; name that model with -m")
        self._require_grammar()
        if end.tokens not in (None, self.tokens - self._turn_start) and not (self._is_ended or self.is_interrupted):
            self.tokens, self.has_all_tokens = self._turn_start + (end.tokens or 0), False
        if turns := self._turns:
            if end.reason == "eos" and turns.free_start and turns.free_start.stage != "thinking":
                turns.starts_answer(*ENDED)
            end = turns.add_end(end)
            is_limited = end.reason == "limit" and not self._is_ended
            if isinstance(turns.intervention, Force) or (is_limited and turns.was_shortened(self.tokens)):
                yield from self._force(turns)
                if not (self._is_ended or self._is_full):
                    known = self._ids if self.has_all_tokens else self._guess_tokens("".join(self._texts))
                    self._turn, self.needs_turn = turns.next_request(known, self.tokens), True
                    return
                turns.intervention, end = None, replace(end, reason="limit")
            end = replace(end, forced=tuple(turns.forced)) if turns.forced else end
        yield from self._finish_reply(end)

    def interrupt(self) -> Iterator[Event]:
        """End the running turn here, since a control has intervened: yield what it forces, or the end of the reply."""
        yield from self._end(ReplyEnd("limit", cached_tokens=self._cached))

    def _force(self, turns: Turns) -> Iterator[Event]:
        """Add the tokens that a control forces, as far as there is room."""
        tokens = turns.intervention.tokens if isinstance(turns.intervention, Force) else ()
        if tokens and not (turns.free_start and turns.free_start.stage == "undecided"):  # where it is markup
            turns.forced.append(Forced(self.tokens, len(tokens)))
        for token in tokens:
            if self._is_ended or self._is_full:
                return
            yield from self._add(array("i", (token,)), [self._pieces[token]], is_forced=True)

    def _finish_reply(self, end: ReplyEnd) -> Iterator[Event]:
        """Yield the text that was held back, and the last event."""
        is_stopped = self._is_ended or end.reason in ("eos", "stop string")
        text, stopped_at_end = self._detokenizer.flush(is_truncated=not is_stopped)
        if not self.request.stream:
            text = "".join((*self._texts, text))
        if text or not self.request.stream:
            yield TokenEvent(self.id, text, tokens=() if self.request.stream else self._ids, logprobs=self._logprobs)
        self._by_stop_string = self._by_stop_string or stopped_at_end or end.reason == "stop string"
        reason: FinishReason = "context"
        intervention = self._turns and self._turns.intervention
        if isinstance(intervention, EndReply):
            reason = intervention.reason
        elif is_stopped or self._by_stop_string:
            reason = "stop"
        elif self._limit is not None and (self.tokens >= self._limit or self._has_room_for(self._limit)):
            reason = "length"
        yield self._finish(reason, end)

    @property
    def _turn_start(self) -> int:
        """Number of tokens before the running turn."""
        return self._turns.start if self._turns else 0

    @property
    def _limit(self) -> int | None:
        return self.request.params.max_tokens

    @property
    def _is_full(self) -> bool:
        """Whether the limit of the reply, or of the context, is reached."""
        is_limited = self._limit is not None and self.tokens >= self._limit
        return is_limited or len(self.request.prompt_tokens) + self.tokens >= self._context_size

    def _has_room_for(self, limit: int) -> bool:
        """Whether the limit ends a reply, not the context: what is known if the tokens could not be counted."""
        return not self.has_all_tokens and len(self.request.prompt_tokens) + limit <= self._context_size

    def _require_grammar(self) -> None:
        """Raise RefusedRequestError for a reply that the grammar does not allow: some servers ignore fields."""
        grammar, decoded = self.request.grammar, self._decoded
        try:
            is_allowed = not (grammar and decoded) or self._vocabulary.matches_grammar(grammar, decoded)
        except GrammarError as error:
            raise RefusedRequestError(error) from error
        if not is_allowed:
            problem = "the reply does not match the grammar or schema: the server ignored it"
            raise RefusedRequestError(EndpointError(problem, "update the server, or use another"))

    def _timings(self, stated: Timings) -> Timings:
        """The server's times, or those measured here where it states none."""
        now = perf_counter()
        first, steps = self._first_at or now, max(0, self.tokens - 1)
        ttft_s = first - self._started_at
        if not stated.decode_s:
            return Timings(prefill_s=ttft_s, ttft_s=ttft_s, decode_s=now - first, decode_steps=steps)
        if not self.request.stream:
            ttft_s = stated.prefill_s
            if self.request.n == 1:  # several samples come together: the time is that of the longest
                ttft_s = max(ttft_s, now - self._started_at - stated.decode_s)
        return replace(stated, ttft_s=ttft_s, decode_steps=steps)

    def _finish(self, reason: FinishReason, end: ReplyEnd) -> FinishEvent:
        return FinishEvent(
            self.id,
            reason,
            prompt_tokens=len(self.request.prompt_tokens),
            cached_tokens=end.cached_tokens,
            completion_tokens=self.tokens,
            seed=self.seed,
            context_size=self._context_size,
            timings=self._timings(end.timings),
            by_stop_string=self._by_stop_string,
            has_all_tokens=self.has_all_tokens,
            forced=end.forced,
            origin=self._origin,
        )


def read_replies(samples: Sequence[RemoteSample], replies: Sequence[ReplyChunk]) -> list[Event]:
    """The events of whole replies, or of whole turns of them. Raises LostServerError if any is missing."""
    if len(replies) != len(samples) or not all(reply.end for reply in replies):
        raise LostServerError(f"{len(replies)} replies instead of {len(samples)}")
    return [event for sample, reply in zip(samples, replies, strict=True) for event in sample.add(reply)]
