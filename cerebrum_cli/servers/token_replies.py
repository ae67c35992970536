"""Replies of servers that take and send token ids: the events equal those of a model on this machine."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EndpointError, GrammarError, NoAnswer
from cerebrum_cli.core.events import FinishReason, Forced, Logprobs, OpeningEvent, PromptEvent, Timings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import Vocabulary, continuation
from cerebrum_cli.engine.requests import Force, Request
from cerebrum_cli.formats.reply_text import ReplyRules
from cerebrum_cli.servers.faults import RefusedRequestError
from cerebrum_cli.servers.kind import ReplyChunk, StopReason
from cerebrum_cli.servers.replies import IGNORED_HINT, RemoteSample, SampleEvents

OVERHANG = "the answer begins in the token that ends the reasoning, so the server cannot apply the grammar"


@dataclass(eq=False)
class TokenSample(RemoteSample):
    """A reply in turns, each of which continues what has arrived of it, with the same seed.

    Servers know no controls, and their grammars apply from the first token. So a stream is left where a control forces
    tokens, or where an answer begins that has to match a grammar; another request continues from there.
    """

    vocabulary: Vocabulary = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prompt_tokens = len(self.request.prompt_tokens)
        self._unsent = b""  # of the tokens: the server still holds it back
        self._begin_turn(self.request)

    def take_turn(self) -> Request:
        """The next request: for the reply, or for what is left of it."""
        request = self.request
        turn = request
        if self._ids:
            limit = request.params.max_tokens
            left = replace(request.params, max_tokens=None if limit is None else limit - self.tokens)
            turn = replace(request, prompt_tokens=array("i", (*request.prompt_tokens, *self._ids)), params=left)
        if self.awaits_answer:
            turn = replace(turn, ask=replace(request.ask, grammar=None))
        elif request.ask.grammar:  # all of it is the answer
            turn = replace(turn, rules=ReplyRules())
        self._begin_turn(turn)
        return turn

    def _begin_turn(self, turn: Request) -> None:
        self.needs_turn = False
        self._turn = turn
        self._turn_start = self.tokens
        self._has_end_token = False
        self._intervention: FinishReason | Force | None = None

    # Parts of its reply.

    def add(self, chunk: ReplyChunk) -> SampleEvents:
        if chunk.progress:
            if self.request.ask.stream and not self.tokens:
                self._cached = chunk.cached
                yield PromptEvent(self.id, *chunk.progress)
            return
        if chunk.likeliest:
            yield OpeningEvent(self.id, chunk.likeliest)
        if chunk.tokens or chunk.text or chunk.total:
            self._first_at = self._first_at or perf_counter()
        yield from self._add_tokens(chunk)
        # A server knows no control, and may not know a stop string: it would continue.
        is_stopped = self.text.is_stopped and not self.request.rules.stops_anywhere
        if chunk.end or self._intervention or is_stopped:
            yield from self._end(chunk)

    def _add_tokens(self, chunk: ReplyChunk) -> SampleEvents:
        """Add tokens, or those of the text since the last ones if ids are missing, as within characters."""
        total = None if chunk.total is None else chunk.total + self._turn_start
        if total is None or self._is_over or total == self.tokens + len(chunk.tokens):
            if chunk.text:
                self._unsent = b""
            elif total is not None:
                self._unsent += self._bytes_of(chunk.tokens)
            yield from self._read(chunk.tokens, chunk.logprobs)
        elif chunk.text or chunk.end:
            text = chunk.text.encode().removeprefix(self._unsent).decode(errors="replace")
            self._unsent = b""
            self.has_all_tokens = False
            yield from self._read(continuation(self.vocabulary, (Text(text),)), ())
            self.tokens = total

    def _read(self, tokens: Sequence[int], logprobs: Logprobs) -> SampleEvents:
        """Read tokens up to one that ends the turn, or after which a control intervenes."""
        for at, token in enumerate(tokens):
            if self._is_over or self._intervention or self._starts_answer(token):
                return
            if self.vocabulary.is_eog(token) and not self.request.ask.ignore_eos:
                self._has_end_token = True
                return
            is_constrained = self.is_constrained
            yield from self._add(token, logprobs[at : at + 1])
            if not (is_constrained or self._is_over):
                self._control()

    @property
    def _is_over(self) -> bool:
        """Whether no further token is part of the turn."""
        return self._has_end_token or self.text.is_stopped

    def _bytes_of(self, tokens: Sequence[int]) -> bytes:
        return b"".join(map(self.vocabulary.piece, tokens, map(self.request.is_visible, tokens)))

    def _add(self, token: int, logprobs: Logprobs = ()) -> SampleEvents:
        """Add a token, which may complete a stop string."""
        pieces = self.text.feed(self._bytes_of((token,)), (token,))
        self.tokens += 1
        self._ids.append(token)
        if self.request.ask.logprobs and not self.request.ask.stream:
            self._logprobs += logprobs or (None,)
        yield from self._emit(pieces, (token,), logprobs)

    # Where the reply is left, to be continued by another request.

    def _control(self) -> None:
        """Let the controls intervene after the last token. Raises RefusedRequestError."""
        if self.is_constrained:
            self._leave_answer()
        elif self.repetition_end(self._ids, len(self._ids) - 1) is not None:
            self._intervention = "repetition"
        else:
            for control in self.controls:
                intervention = control.intervene(self.text, self._ids)
                if isinstance(intervention, (str, Force)):
                    self._intervention = intervention
                    return

    def _starts_answer(self, token: int | None) -> bool:
        """Whether a token, or the end of the turn, does not precede the answer, which is then asked for."""
        text = self.text
        if not self.awaits_answer or self._intervention:
            return False
        if text.stage == "thinking":
            has_ended = token is None or self.vocabulary.is_eog(token)
            if not (has_ended and text.closing):
                return False
            self._intervention = Force(text.closing)  # the model ends its turn, but the answer is still to come
            return True
        if token is not None:
            piece = self.vocabulary.piece(token, special=True)
            if text.precedes_answer(token, piece.decode(errors="replace")):
                return False
        self._leave_answer()
        return True

    def _leave_answer(self) -> None:
        """Leave the answer to another request. Raises RefusedRequestError if part of it is in the token before it."""
        if self.text.answer_start:
            raise RefusedRequestError(GrammarError(OVERHANG, "ask again, or use --think off"))
        self._intervention = Force(())

    def _end(self, chunk: ReplyChunk) -> SampleEvents:
        """End the running turn with its last part, or the one after which the rest is left."""
        self._check_prompt(chunk.prompt_tokens)
        if self._turn_start:
            self._timings = Timings()
        else:
            self._cached = chunk.cached or self._cached
            self._timings = chunk.timings
        end: StopReason = chunk.end or "limit"
        if breach := self._breach():
            yield from self._finish_reply(end, refusal=breach)
            return
        if end == "eos":
            self._starts_answer(None)
        if not isinstance(self._intervention, Force):
            yield from self._finish(end)
            return
        yield from self._force(self._intervention.tokens)
        if self._is_over or self._is_full:
            yield from self._finish("limit")
        else:
            self.needs_turn = True

    def _check_prompt(self, prompt_tokens: int | None) -> None:
        sent = len(self._turn.prompt_tokens)
        if prompt_tokens not in (None, sent):
            problem = f"the server evaluated {prompt_tokens} prompt tokens instead of {sent}"
            raise EndpointError(problem, "its model has a different vocabulary; name that model with -m")

    def _force(self, tokens: TokenIds) -> SampleEvents:
        """Add tokens that a control forces, or the markup before the answer; a grammar applies from there."""
        if tokens and not (self.awaits_answer and self.text.stage == "undecided"):  # where it is markup
            self.forced.append(Forced(self.request.rules.prefix_tokens + self.tokens, len(tokens)))
        for token in tokens:
            if self._is_over or self._is_full:
                return
            yield from self._add(token)
        if self.request.ask.grammar:
            self.text.begin_answer()

    def _finish(self, end: StopReason) -> SampleEvents:
        reason: FinishReason | None = None
        if isinstance(self._intervention, str):
            reason = self._intervention
        if self._is_over and end != "stop string":
            end = "eos"
        return self._finish_reply(end, reason)

    @property
    def _is_full(self) -> bool:
        return self._is_at_limit or self.prompt_tokens + self.tokens >= self.context_size

    def _breach(self) -> NoAnswer | None:
        """The error if the grammar rejects the text of this turn: some servers ignore it."""
        grammar = self._turn.ask.grammar
        if grammar is None or grammar.is_schema:
            return None
        from cerebrum_cli.grammars.guidance import is_allowed

        text = self._bytes_of(self._ids[self._turn_start :])
        if is_allowed(grammar, text, is_whole=self._has_end_token):
            return None
        return NoAnswer("the reply does not match the grammar: the server did not enforce it", IGNORED_HINT)
