"""A server's reply as events, equal to those of a model on this machine wherever all token ids arrived."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeAlias

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EndpointError, GrammarError
from cerebrum_cli.core.events import (
    Channel,
    FinishEvent,
    FinishReason,
    Forced,
    Origin,
    PromptEvent,
    RefusedEvent,
    SequenceId,
    Timings,
    TokenEvent,
)
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.control import EndReply, Force, Intervention
from cerebrum_cli.engine.remote.client import RefusedRequestError
from cerebrum_cli.engine.remote.kind import ReplyChunk, StopReason
from cerebrum_cli.engine.sequence import Request, continuation, token_events
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText, SplitText

SampleEvent: TypeAlias = PromptEvent | TokenEvent | FinishEvent | RefusedEvent

JSON_STARTS = '{["-0123456789tfn'
ENDED = -1  # the token that ends a reply, whatever it is
OVERHANG = "the answer begins in the token that ends the reasoning, so the server cannot apply the grammar"


@dataclass(eq=False)
class RemoteSample:
    """One sample of a request: what has arrived of it from a server. All of a reply that does not stream is one event.

    It `needs_turn` while the controls want it continued by another request. A `replace` of it starts over.
    """

    id: SequenceId
    request: Request
    seed: int
    vocabulary: Vocabulary
    context_size: int = 0
    origin: Origin | None = None

    def __post_init__(self) -> None:
        request = self.request
        self.tokens, self.has_all_tokens, self.needs_turn = 0, True, False
        self._takes_messages = request.conversation is not None
        self._started_at = perf_counter()
        self._first_at: float | None = None
        self._prompt_tokens = 0 if self._takes_messages else len(request.prompt_tokens)
        self._cached = 0  # tokens of the prompt
        self._timings = Timings()  # as stated by the server
        self._forced: list[Forced] = []
        self._ids = array("i")
        self._pieces: list[SplitText] = []
        self._logprobs: list[float | None] = []
        self._unsent = b""  # of the tokens: the server still holds it back
        self._is_ended = False  # no further token is part of the reply
        self._end_token: tuple[int, ...] = ()
        self._by_stop_string = False
        stop = () if self._takes_messages else request.params.stop  # such a server has matched them, reasoning apart
        self.text = ReplyText(request.rules, stop)
        self._turns = Turns(request, self.text, self.vocabulary)  # which applies controls: servers know none
        self._turn = request

    def take_turn(self) -> Request:
        self.needs_turn = False
        self._turn = self._turns.next_request(self._ids, self.tokens)
        return self._turn

    def add(self, chunk: ReplyChunk) -> Iterator[SampleEvent]:
        """Yield the events of a part of the reply; no more is read of a turn once it `needs_turn` or has ended.

        Raises EndpointError if it belongs to another prompt, and RefusedRequestError if it does not fit the grammar.
        """
        if chunk.progress:
            if not self.tokens:
                self._cached = chunk.cached
                yield PromptEvent(self.id, *chunk.progress)
            return
        if chunk.tokens or chunk.text:
            self._first_at = self._first_at or perf_counter()
        if chunk.total is not None:
            yield from self._decode_counted(chunk, chunk.total)
        else:
            yield from self._decode_text(chunk, chunk.text) if chunk.text else self._decode(chunk)
        # A server knows no control, and may not know a stop string: it would continue.
        is_left = self._turns.intervention or (self._by_stop_string and not self.request.rules.stops_anywhere)
        if chunk.end or is_left:
            yield from self._end(chunk)

    def _decode_counted(self, chunk: ReplyChunk, total: int) -> Iterator[SampleEvent]:
        """Decode tokens, or those of the text since the last one if ids are missing."""
        total += self._turns.start
        if self._is_ended or total == self.tokens + len(chunk.tokens):
            self._unsent = b"" if chunk.text else self._unsent + b"".join(map(self._piece, chunk.tokens))
            yield from self._decode(chunk)
        elif chunk.text or chunk.end:
            unknown = chunk.text.encode().removeprefix(self._unsent).decode("utf-8", "replace")
            yield from self._decode_text(chunk, unknown)
            self.tokens = total

    def _decode_text(self, chunk: ReplyChunk, text: str) -> Iterator[SampleEvent]:
        """Decode a text whose ids are not known, by some with the same text."""
        self._unsent, self.has_all_tokens = b"", False
        yield from self._decode(replace(chunk, tokens=continuation(self.vocabulary, (Text(text),))))

    def _decode(self, chunk: ReplyChunk) -> Iterator[SampleEvent]:
        """Decode tokens up to one that ends the reply, or after which the controls intervene."""
        turns = self._turns
        logprobs = chunk.logprobs or [None] * len(chunk.tokens)
        for token, logprob in zip(chunk.tokens, logprobs, strict=True):
            if self._is_ended or turns.intervention or turns.starts_answer(token):
                return
            if self.vocabulary.is_eog(token) and not self.request.ignore_eos:
                self._is_ended, self._end_token = True, (token,)
                return
            yield from self._add(token, (logprob,) if chunk.logprobs else ())

    def _piece(self, token: int) -> bytes:
        return self.vocabulary.piece(token, token in self.request.visible_tokens)

    def _add(self, token: int, logprobs: Sequence[float | None] = (), is_forced: bool = False) -> Iterator[SampleEvent]:
        """Add a token, which may complete a stop string; if not, controls may intervene after it."""
        pieces = self.text.feed(self._piece(token), (token,))
        self._by_stop_string = self._is_ended = self.text.is_stopped
        self.tokens += 1
        self._ids.append(token)
        if not self._is_ended:
            self._turns.feed((token,), is_forced)
        self._pieces += pieces
        if self.request.stream:
            yield from token_events(self.id, pieces, self.text.channel, (token,), logprobs)
        elif self.request.logprobs:
            self._logprobs += logprobs or [None]

    def _end(self, chunk: ReplyChunk) -> Iterator[SampleEvent]:
        """End the running turn with its last part, or the one after which the rest is left."""
        sent, turns = len(self._turn.prompt_tokens), self._turns
        end: StopReason = "limit" if chunk.end in (None, "unstated") else chunk.end
        if self._takes_messages:
            self._prompt_tokens = chunk.prompt_tokens or 0
        elif chunk.prompt_tokens not in (None, sent):
            problem = f"the server evaluated {chunk.prompt_tokens} prompt tokens instead of {sent}"
            raise EndpointError(problem, "its model has a different vocabulary; name that model with -m")
        self._require_grammar(sent - len(self.request.prompt_tokens))
        self._cached = self._cached if turns.start else chunk.cached or self._cached
        self._timings = Timings() if turns.start else chunk.timings
        if end == "eos":
            turns.starts_answer(ENDED)
        is_over = self._is_ended or isinstance(turns.intervention, EndReply)
        is_shortened = end == "limit" and not is_over and turns.was_shortened(self.tokens)
        if isinstance(turns.intervention, Force) or is_shortened:
            yield from self._force()
            if not (self._is_ended or self._is_full):
                self.needs_turn = True
                return
            turns.intervention, end = None, "limit"
        yield from self._finish_reply(end)

    def _force(self) -> Iterator[SampleEvent]:
        turns = self._turns
        tokens = turns.intervention.tokens if isinstance(turns.intervention, Force) else ()
        if tokens and not (turns.is_before_answer and self.text.stage == "undecided"):  # where it is markup
            self._forced.append(Forced(self.tokens, len(tokens)))
        for token in tokens:
            if self._is_ended or self._is_full:
                return
            yield from self._add(token, is_forced=True)

    def _finish_reply(self, end: StopReason) -> Iterator[SampleEvent]:
        is_stopped = self._is_ended or end != "limit"
        last = self.text.finish(is_truncated=not is_stopped)
        if self.request.stream:
            for channel, text in last:
                yield TokenEvent(self.id, text, channel)
        else:
            joined = join_pieces(self._pieces + last)
            yield from token_events(self.id, joined, self.text.channel, self._ids, self._logprobs)
        self._by_stop_string = self.text.is_stopped or end == "stop string"
        is_limited = self._takes_messages and self.request.params.max_tokens is not None
        reason: FinishReason = "length" if self._is_at_limit or is_limited else "context"
        if isinstance(self._turns.intervention, EndReply):
            reason = self._turns.intervention.reason
        elif is_stopped or self._by_stop_string:
            reason = "stop"
        yield self.finish(reason)

    @property
    def _is_at_limit(self) -> bool:
        limit = self.request.params.max_tokens
        return limit is not None and self.tokens >= limit

    @property
    def _is_full(self) -> bool:
        return self._is_at_limit or len(self.request.prompt_tokens) + self.tokens >= self.context_size

    def _require_grammar(self, start: int) -> None:
        """Raise RefusedRequestError if the grammar rejects the tokens of this turn: some servers ignore it."""
        grammar = self._turn.grammar
        if grammar is None or not (tokens := (*self._ids[start:], *self._end_token)):
            return
        try:
            if self._takes_messages:  # of JSON, whose schema the server has, only the beginning is checked
                answer = "".join(text for channel, text in self._pieces if channel == "answer")
                matches = answer.lstrip()[:1] in JSON_STARTS
            else:
                matches = self.vocabulary.matches_grammar(grammar, tokens)
        except GrammarError as error:
            raise RefusedRequestError(error) from error
        if not matches:
            problem = "the reply does not match the grammar or schema: the server ignored it"
            raise RefusedRequestError(EndpointError(problem, "update the server, or use another"))

    @property
    def _measured_timings(self) -> Timings:
        """The server's times, or those measured here where it states none, and with several turns."""
        now, stated = perf_counter(), self._timings
        first, steps = self._first_at or now, max(0, self.tokens - 1)
        ttft_s = first - self._started_at
        if not (stated.decode_s or self.request.stream):
            return Timings(ttft_s=ttft_s, decode_s=now - self._started_at, decode_steps=self.tokens)
        if not stated.decode_s:
            return Timings(prefill_s=ttft_s, ttft_s=ttft_s, decode_s=now - first, decode_steps=steps)
        return replace(stated, ttft_s=ttft_s if self.request.stream else stated.prefill_s, decode_steps=steps)

    def finish(self, reason: FinishReason) -> FinishEvent:
        """The last event, now: that of a sample which ends here, not on the server, is `cancelled`."""
        return FinishEvent(
            self.id,
            reason,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached,
            completion_tokens=self.tokens,
            seed=self.seed,
            context_size=0 if self._takes_messages else self.context_size,
            timings=self._measured_timings,
            by_stop_string=self._by_stop_string,
            has_all_tokens=self.has_all_tokens,
            forced=tuple(self._forced),
            origin=self.origin,
            in_reasoning=self.text.stage == "thinking",
        )


class Turns:
    """The turns of one reply, each a request of its own; `start` is the number of tokens before the running one.

    Servers know no controls, and their grammars apply from the first token: so a turn ends where a control intervenes,
    and where the answer starts. Under a grammar, turns are asked for without it until the answer starts: its
    first token ends the turn, and is asked for again. A whole turn comes without a chance to intervene before, so it is
    asked for no longer than its controls need to decide.
    """

    def __init__(self, request: Request, text: ReplyText, vocabulary: Vocabulary) -> None:
        self.start = 0
        self.intervention: Intervention | None = None
        self._end: int | None = None  # up to which the running one is asked for
        self._request, self._text, self._vocabulary = request, text, vocabulary
        self._controls = [create() for create in request.controls]
        self._applies_late = request.grammar is not None and request.conversation is None
        self._has_applied = self._applies_late and text.stage == "answer"  # the grammar

    def next_request(self, tokens: Sequence[int], generated: int) -> Request:
        """The request that continues the reply after these tokens, as far as they are known of those generated."""
        self.start, self.intervention, request = generated, None, self._request
        grammar = None if self.is_before_answer else request.grammar  # of one turn only
        horizons = [horizon for control in self._controls if (horizon := control.horizon(self._text)) is not None]
        limits = request.params.max_tokens, None if request.stream or grammar else min(horizons, default=None)
        self._end = min((limit for limit in limits if limit is not None and limit > generated), default=None)
        params = replace(request.params, max_tokens=None if self._end is None else self._end - generated)
        prompt = array("i", (*request.prompt_tokens, *tokens)) if tokens else request.prompt_tokens
        rules = ReplyRules() if grammar else request.rules  # all of the turn is the answer
        return replace(request, prompt_tokens=prompt, params=params, grammar=grammar, rules=rules)

    @property
    def is_before_answer(self) -> bool:
        """Whether there is a grammar that does not apply yet."""
        return self._applies_late and self._text.stage != "answer"

    def starts_answer(self, token: int) -> bool:
        """Whether a token does not precede the answer, so that the running turn ends before it."""
        text = self._text
        if not self.is_before_answer:
            return False
        if text.stage == "thinking":
            has_ended = token == ENDED or self._vocabulary.is_eog(token)
            if not (has_ended and text.closing) or self.intervention:
                return False
            self.intervention = Force(text.closing)  # the model ends its turn, but the answer is still to come
            return True
        piece = b"" if token == ENDED else self._vocabulary.piece(token, special=True)
        if text.passes(token, piece.decode("utf-8", "replace")):
            return False
        self.intervention = Force(continuation(self._vocabulary, (Text(text.rest, trusted=True),)))
        if not text.rest:
            text.begin_answer()
            self._has_applied = True
        return True

    def feed(self, tokens: Sequence[int], is_forced: bool = False) -> None:
        """Add tokens, after which controls may intervene unless they are forced. Raises RefusedRequestError."""
        if self._has_applied:
            return
        for control in self._controls:
            control.feed(tokens, self._text)
        self._has_applied = self._applies_late and self._text.stage == "answer"
        if self._has_applied and self._text.held:
            raise RefusedRequestError(GrammarError(OVERHANG, "ask again, or use --think off"))
        if is_forced:
            return
        if self._has_applied:
            self.intervention = Force(())
            return
        interventions = (control.intervene(self._text) for control in self._controls)
        self.intervention = next(
            (intervention for intervention in interventions if isinstance(intervention, (EndReply, Force))), None
        )

    def was_shortened(self, generated: int) -> bool:
        """Whether the running turn ended where no more tokens were asked for."""
        return self._end is not None and self._end <= generated


def join_pieces(pieces: Iterable[SplitText]) -> list[SplitText]:
    """Join the texts of each channel."""
    texts: dict[Channel, list[str]] = {}
    for channel, text in pieces:
        texts.setdefault(channel, []).append(text)
    return [(channel, "".join(parts)) for channel, parts in texts.items()]
