"""Replies of servers that take and send token ids: the events equal those of a model on this machine."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import index

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import GrammarError, NoAnswer
from cerebrum_cli.core.events import FinishReason, Forced, OpeningEvent, PromptEvent, Timings
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import Vocabulary, continuation
from cerebrum_cli.engine.requests import Force, Request
from cerebrum_cli.servers.kind import ReplyChunk, StopReason
from cerebrum_cli.servers.replies import RemoteSample, SampleEvents

OVERHANG = "the answer begins in the token that ends the reasoning, so the server cannot apply the grammar"
IGNORED_HINT = "ask again, or update the server"


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
        self._begin_turn()

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
        self._begin_turn()
        return turn

    def _begin_turn(self) -> None:
        self.needs_turn = False
        self._turn_start = self.tokens
        self._is_answer = self.is_constrained
        self._has_end_token = False
        self._intervention: FinishReason | Force | None = None

    def read(self, chunk: ReplyChunk) -> SampleEvents:
        if chunk.progress:
            if self.request.ask.stream and not self.tokens:
                self._cached = chunk.cached
                yield PromptEvent(self.id, *chunk.progress)
            return
        if chunk.likeliest and not self.tokens:
            yield OpeningEvent(self.id, chunk.likeliest)
        had_end_token = self._has_end_token
        yield from self._read_tokens(chunk)
        # A server knows no control and no stop string, and may not know an end token: it would continue.
        if chunk.end or self._intervention or self.text.is_stopped or had_end_token:
            yield from self._end_turn(chunk)

    def _read_tokens(self, chunk: ReplyChunk) -> SampleEvents:
        """Read tokens, or those of the text since the last ones if ids are missing, as within characters."""
        total = None if chunk.total is None else chunk.total + self._turn_start
        if total is None or self._is_over or total == self.tokens + len(chunk.tokens):
            yield from self._add_tokens(chunk.tokens)
        elif chunk.text or chunk.end:
            self.has_all_tokens = False
            yield from self._add_tokens(continuation(self.vocabulary, (Text(chunk.text),)))
            self.tokens = total

    def _add_tokens(self, tokens: Sequence[int]) -> SampleEvents:
        """Add tokens up to one that ends the turn, or after which a control intervenes."""
        for token in map(index, tokens):
            if self._is_over or self._intervention or self._starts_answer(token):
                return
            if self.vocabulary.is_eog(token) and not self.request.ask.ignore_eos:
                self._has_end_token = True
                return
            is_constrained = self.is_constrained
            yield from self._add_token(token)
            if not self._is_over:
                self._control(is_constrained)

    @property
    def _is_over(self) -> bool:
        """Whether no further token is part of the turn."""
        return self._has_end_token or self.text.is_stopped

    def _piece(self, token: int) -> bytes:
        return self.vocabulary.piece(token, self.request.is_visible(token))

    def _add_token(self, token: int) -> SampleEvents:
        """Add a token, which may complete a stop string."""
        pieces = self.text.feed(self._piece(token), (token,))
        self.tokens += 1
        self._ids.append(token)
        yield from self.text_events(pieces, (token,))

    # Where the reply is left, to be continued by another request.

    def _control(self, was_constrained: bool) -> None:
        """Let the controls intervene after the last token. Raises GrammarError."""
        if self.repeats_itself(self._ids):
            self._intervention = "repetition"
        elif was_constrained:
            return
        elif self.is_constrained:
            self._leave_answer()
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
        """Leave the answer to another request. Raises GrammarError if part of it is in the token before it."""
        if self.text.answer_start:
            raise GrammarError(OVERHANG, "ask again, or use --think off")
        self._intervention = Force(())

    def _end_turn(self, chunk: ReplyChunk) -> SampleEvents:
        """End the running turn with its last part, or the one after which the rest is left."""
        if self._turn_start:
            self._timings = Timings()
        else:
            self._cached = chunk.cached or self._cached
            self._timings = chunk.timings
        end: StopReason = "eos" if self._is_over else chunk.end or "limit"
        if self._is_answer and (breach := self._breach()):
            yield from self._end_reply(end, refusal=breach)
            return
        if end == "eos":
            self._starts_answer(None)
        if not isinstance(self._intervention, Force):
            yield from self._end_reply(end, self._intervention)
            return
        yield from self._force(self._intervention.tokens)
        if self._is_over or self._is_full:
            yield from self._end_reply("eos" if self._is_over else "limit")
        else:
            self.needs_turn = True

    def _force(self, tokens: TokenIds) -> SampleEvents:
        """Add tokens that a control forces, or the markup before the answer; a grammar applies from there."""
        if tokens and not (self.awaits_answer and self.text.stage == "undecided"):  # where it is markup
            self.forced.append(Forced(self.request.rules.prefix_tokens + self.tokens, len(tokens)))
        for token in tokens:
            if self._is_over or self._is_full:
                return
            yield from self._add_token(token)
        if self.request.ask.grammar:
            self.text.begin_answer()

    @property
    def _is_full(self) -> bool:
        return self._is_at_limit or self.prompt_tokens + self.tokens >= self.context_size

    def _breach(self) -> NoAnswer | None:
        """The error if the grammar rejects the text of this turn: vLLM ignores it if it does not know the field."""
        grammar = self.request.ask.grammar
        if grammar is None or grammar.is_schema:
            return None
        from cerebrum_cli.grammars.guidance import is_allowed

        text = b"".join(map(self._piece, self._ids[self._turn_start :]))
        if is_allowed(grammar, text, is_whole=self._has_end_token):
            return None
        return NoAnswer("the reply does not match the grammar: the server did not enforce it", IGNORED_HINT)
