"""A server's reply as events, equal to those of a model on this machine wherever all token ids arrived."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress, count
from time import perf_counter
from typing import TypeAlias

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.errors import EndpointError, GrammarError, NoAnswer
from cerebrum_cli.core.events import (
    Channel,
    FinishEvent,
    FinishReason,
    Forced,
    Logprobs,
    Origin,
    PromptEvent,
    RefusedEvent,
    Timings,
    TokenEvent,
)
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.tools import ToolCalls
from cerebrum_cli.core.vocabulary import Vocabulary, continuation
from cerebrum_cli.engine.engine import ReplySample
from cerebrum_cli.engine.requests import Force, Request
from cerebrum_cli.formats.reply_text import ReplyRules, SplitText
from cerebrum_cli.servers.client import RefusedRequestError
from cerebrum_cli.servers.kind import ReplyChunk, StopReason

SampleEvent: TypeAlias = PromptEvent | TokenEvent | FinishEvent | RefusedEvent
SampleEvents: TypeAlias = Iterator[SampleEvent]

OVERHANG = "the answer begins in the token that ends the reasoning, so the server cannot apply the grammar"
IGNORED_HINT = "ask again, or update the server"


@dataclass(eq=False)
class RemoteSample(ReplySample):
    """A sample on a server, and what has arrived of it. All of a reply that does not stream is one event.

    Servers know no controls, and their grammars apply from the first token. So where reasoning has a limit, or a
    grammar that applies to the answer, the first request is for the reasoning, without the grammar; the sample then
    `needs_turn`: another request that continues it, with the same seed. A `replace` of it starts over.
    """

    vocabulary: Vocabulary
    context_size: int = 0
    origin: Origin | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        request = self.request
        self.tokens = 0
        self.has_all_tokens = True
        self._takes_messages = request.as_messages
        self._started_at = perf_counter()
        self._first_at: float | None = None
        self._prompt_tokens = self._cached = 0
        self._calls: ToolCalls = ()
        self._timings = Timings()  # as stated by the server
        self._ids = array("i")
        self._characters = array("i")  # of a reply without ids
        self._texts: dict[Channel, list[str]] = {}
        self._logprobs: list[float | None] = []
        self._unsent = b""  # of the tokens: the server still holds it back
        if not self._takes_messages:
            self._prompt_tokens = len(request.prompt_tokens)
        self._markup = self.text.open_markup  # of the last reasoning
        self._begin_turn(request)

    # Its requests.

    def take_turn(self) -> Request:
        """The next request: for the reply, for its reasoning, or for what is left of it."""
        request = self.request
        params = request.params
        is_first = self._turn is request
        limit = params.max_tokens
        rules = request.rules
        if rules.reasoning_end and is_first and not request.ask.stream:
            limit = min(limit or rules.reasoning_end, rules.reasoning_end)
        if limit is not None:
            params = replace(params, max_tokens=limit - self.tokens)
        turn = replace(request, params=params)
        if self._ids:
            turn = replace(turn, prompt_tokens=array("i", (*request.prompt_tokens, *self._ids)))
        if self.awaits_answer:
            turn = replace(turn, ask=replace(request.ask, grammar=None))
            if not request.ask.stream:  # it ends with the reasoning
                closings = tuple(markup.close for markup in rules.markups)
                turn = replace(turn, params=replace(params, stop=closings), rules=ReplyRules())
        elif request.ask.grammar and not self._takes_messages:  # all of it is the answer
            turn = replace(turn, rules=ReplyRules())
        self._begin_turn(turn)
        return turn

    def _begin_turn(self, turn: Request) -> None:
        self.needs_turn = False
        self._turn = turn
        self._turn_start = self.tokens
        self._end_token: TokenIds = ()
        self._intervention: FinishReason | Force | None = None

    # Parts of its reply.

    def add(self, chunk: ReplyChunk) -> SampleEvents:
        """Yield the events of a part of the reply; no more is read of a turn once it `needs_turn` or has ended.

        Raises EndpointError if it belongs to another prompt, and RefusedRequestError if it does not fit the grammar.
        """
        if chunk.progress:
            if not self.tokens:
                self._cached = chunk.cached
                yield PromptEvent(self.id, *chunk.progress)
            return
        if chunk.tokens or chunk.text or chunk.reasoning or chunk.total:
            self._first_at = self._first_at or perf_counter()
        if self._takes_messages:
            yield from self._add_text(chunk)
        else:
            yield from self._add_tokens(chunk)
        # A server knows no control, and may not know a stop string: it would continue.
        is_stopped = self.text.is_stopped and not self.request.rules.stops_anywhere
        if chunk.end or self._intervention or is_stopped:
            yield from self._end(chunk)

    def _add_text(self, chunk: ReplyChunk) -> SampleEvents:
        """Add text whose ids are not known."""
        self.has_all_tokens = False
        pieces = self.text.feed_text(chunk.reasoning, "thinking") if chunk.reasoning else []
        pieces += self.text.feed_text(chunk.text)
        if text := chunk.reasoning + chunk.text:
            self.tokens += 1
            yield from self._emit(pieces)
            checked = len(self._characters)
            self._characters.extend(map(ord, text))
            self._check_loop(self._characters, checked)
        if chunk.total is not None:
            self.tokens = chunk.total
        self._calls = chunk.calls

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
        if not self._is_read_by_token:
            yield from self._read_whole(tokens, logprobs)
            return
        for at, token in enumerate(tokens):
            if self._is_over or self._intervention or self._starts_answer(token):
                return
            if self.vocabulary.is_eog(token) and not self.request.ask.ignore_eos:
                self._end_token = (token,)
                return
            is_constrained = self.is_constrained
            yield from self._add((token,), logprobs[at : at + 1])
            if not (is_constrained or self._is_over):
                self._control()

    @property
    def _is_read_by_token(self) -> bool:
        """Whether the reply may end, or continue otherwise, after any of its tokens."""
        request = self.request
        has_late_stop = request.params.stop and not request.rules.stops_anywhere
        return bool(request.ask.stream or request.controls or has_late_stop or self.awaits_answer)

    @property
    def _is_over(self) -> bool:
        """Whether no further token is part of the turn."""
        return bool(self._end_token) or self.text.is_stopped

    def _bytes_of(self, tokens: Sequence[int]) -> bytes:
        return b"".join(map(self.vocabulary.piece, tokens, map(self.request.is_visible, tokens)))

    def _read_whole(self, tokens: Sequence[int], logprobs: Logprobs) -> SampleEvents:
        """Add all of a turn that nothing but its own end, or a loop, can end."""
        if not self.request.ask.ignore_eos:
            ends = compress(count(), map(self.vocabulary.is_eog, tokens))  # a reply may have thousands of tokens
            if (end := next(ends, None)) is not None:
                self._end_token = (tokens[end],)
                tokens = tokens[:end]
        if not self.is_constrained:
            tokens = tokens[: self._check_loop(array("i", tokens))]
        yield from self._add(tokens, logprobs[: len(tokens)])

    def _check_loop(self, tokens: array[int], checked: int = 0) -> int:
        """The number of tokens after which they repeat themselves, or of all; the first `checked` do not."""
        end = self.cycle_end(tokens, checked)
        if end is None:
            return len(tokens)
        self._intervention = "repetition"
        return end

    def _add(self, tokens: Sequence[int], logprobs: Logprobs = ()) -> SampleEvents:
        """Add tokens, of which the last may complete a stop string."""
        pieces = self.text.feed(self._bytes_of(tokens), tokens)
        self._markup = self.text.open_markup or self._markup
        self.tokens += len(tokens)
        self._ids.extend(tokens)
        if self.request.ask.logprobs and not self.request.ask.stream:
            self._logprobs += logprobs or [None] * len(tokens)
        yield from self._emit(pieces, tokens, logprobs)

    def _emit(self, pieces: list[SplitText], tokens: Sequence[int] = (), logprobs: Logprobs = ()) -> SampleEvents:
        if self.text.was_reasoning:
            self._texts = {"thinking": [*chain.from_iterable(self._texts.values())]}
            self.text.was_reasoning = self.request.ask.stream  # else all is sent at the end
        for channel, text in pieces:
            self._texts.setdefault(channel, []).append(text)
        if self.request.ask.stream:
            yield from self.token_events(pieces, tokens, logprobs)

    # Where the reply is left, to be continued by another request.

    def _control(self) -> None:
        """Let the controls intervene after the last token. Raises RefusedRequestError."""
        if self.is_constrained:
            self._leave_answer()
            return
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
            if text.passes(token, piece.decode(errors="replace")):
                return False
        self._leave_answer()
        return True

    def _leave_answer(self) -> None:
        """Leave the answer to another request. Raises RefusedRequestError if part of it is in the token before it."""
        if self.text.held:
            raise RefusedRequestError(GrammarError(OVERHANG, "ask again, or use --think off"))
        self._intervention = Force(())

    def _end(self, chunk: ReplyChunk) -> SampleEvents:
        """End the running turn with its last part, or the one after which the rest is left."""
        self._check_prompt(chunk.prompt_tokens)
        self._require_grammar()
        if self._turn_start:
            self._timings = Timings()
        else:
            self._cached = chunk.cached or self._cached
            self._timings = chunk.timings
        end: StopReason = chunk.end or "limit"
        if end == "eos":
            self._starts_answer(None)
        elif end == "stop string" and self.awaits_answer:
            self._intervention = Force(self._rest_of_markup)
        if not isinstance(self._intervention, Force) and not self._is_shortened(end):
            yield from self._finish_reply(end)
            return
        yield from self._force()
        if self._is_over or self._is_full:
            self._intervention = None
            yield from self._finish_reply("limit")
        else:
            self.needs_turn = True

    def _check_prompt(self, prompt_tokens: int | None) -> None:
        if self._takes_messages:
            self._prompt_tokens = prompt_tokens or 0
            return
        sent = len(self._turn.prompt_tokens)
        if prompt_tokens not in (None, sent):
            problem = f"the server evaluated {prompt_tokens} prompt tokens instead of {sent}"
            raise EndpointError(problem, "its model has a different vocabulary; name that model with -m")

    def _is_shortened(self, end: StopReason) -> bool:
        """Whether the turn has ended where no more tokens were asked for, but the reply has not."""
        limit = self._turn.params.max_tokens
        if end != "limit" or limit is None or self._is_over or self._intervention:
            return False
        return self.tokens - self._turn_start >= limit and not self._is_full

    @property
    def _rest_of_markup(self) -> TokenIds:
        """Tokens of the markup between the end of the reasoning, which may be missing itself, and the answer."""
        if self.text.stage == "thinking":
            return self.text.closing
        if self._markup is None:
            return ()
        _, close, rest = self._markup.ending().rpartition(self._markup.close)
        begun = self.text.tail.rpartition(close)[2]
        return continuation(self.vocabulary, (Text(rest.removeprefix(begun), trusted=True),))

    def _force(self) -> SampleEvents:
        """Add tokens that a control forces, or the markup before the answer; a grammar applies from there."""
        tokens = self._intervention.tokens if isinstance(self._intervention, Force) else ()
        if tokens and not (self.awaits_answer and self.text.stage == "undecided"):  # where it is markup
            self.forced.append(Forced(self.request.rules.prefix_tokens + self.tokens, len(tokens)))
        for token in tokens:
            if self._is_over or self._is_full:
                return
            yield from self._add((token,))
        if self.request.ask.grammar:
            self.text.begin_answer()

    def _finish_reply(self, end: StopReason) -> SampleEvents:
        is_stopped = self._is_over or end in ("eos", "stop string") or (end == "unstated" and not self._is_at_limit)
        last = self.text.finish(is_truncated=not is_stopped)
        if last or self.text.was_reasoning:
            yield from self._emit(last)
        if not self.request.ask.stream:
            pieces = [(channel, "".join(texts)) for channel, texts in self._texts.items()]
            yield from self.token_events(pieces, self._ids, self._logprobs)
        if is_stopped:
            self._require_schema()
        by_stop_string = self.text.is_stopped or end == "stop string"
        yield self.finish(self._reason(is_stopped or by_stop_string), by_stop_string)

    def _reason(self, is_stopped: bool) -> FinishReason:
        if isinstance(self._intervention, str):
            return self._intervention
        if is_stopped:
            return "stop"
        is_limited = self._takes_messages and self.request.params.max_tokens is not None
        return "length" if self._is_at_limit or is_limited else "context"

    @property
    def _is_at_limit(self) -> bool:
        limit = self.request.params.max_tokens
        return limit is not None and self.tokens >= limit

    @property
    def _is_full(self) -> bool:
        return self._is_at_limit or len(self.request.prompt_tokens) + self.tokens >= self.context_size

    def _require_grammar(self) -> None:
        """Raise RefusedRequestError if the grammar rejects the text of this turn: some servers ignore it."""
        grammar = self._turn.ask.grammar
        if grammar is None or grammar.is_schema:
            return
        from cerebrum_cli.engine.local import is_allowed

        text = self._bytes_of(self._ids[self._turn_start :])
        if not is_allowed(grammar, text, is_whole=bool(self._end_token)):
            problem = "the reply does not match the grammar: the server did not enforce it"
            raise RefusedRequestError(NoAnswer(problem, IGNORED_HINT))

    def _require_schema(self) -> None:
        """Raise RefusedRequestError if the whole answer, unless there is none, does not match the schema."""
        grammar = self.request.ask.grammar
        answer = "".join(self._texts.get("answer", ()))
        if grammar is None or not grammar.is_schema or not answer.strip():
            return
        from cerebrum_cli.servers.json_schemas import schema_problem

        if problem := schema_problem(grammar.text, answer):
            raise RefusedRequestError(NoAnswer(f"the reply does not match the schema: {problem}", IGNORED_HINT))

    # Its end.

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
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached,
            completion_tokens=self.tokens,
            context_size=0 if self._takes_messages else self.context_size,
            timings=self._measured_timings,
            by_stop_string=by_stop_string,
            has_all_tokens=self.has_all_tokens,
            origin=self.origin,
            calls=self._calls,
        )
