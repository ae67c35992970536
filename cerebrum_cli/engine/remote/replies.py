"""A server's reply as events, equal to those of a model on this machine wherever all token ids arrived."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import Event, FinishEvent, FinishReason, PromptEvent, SequenceId, Timings, TokenEvent
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.detokenizer import Detokenizer
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

    def restart(self, context_size: int) -> None:
        """Forget what has arrived: a server with such a context starts to generate it."""
        self.context_size, self.started_at = context_size, perf_counter()
        self.first_at, self.tokens, self.has_all_tokens = None, 0, True

    def add_chunk(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the events of one part of a streamed reply; the last part holds no text.

        A part holds one id. Text is held back while it ends within a character, and with it ids are lost.
        """
        if progress := chunk.get("prompt_progress"):
            yield PromptEvent(self.id, int(progress["processed"]), int(progress["total"]))
            return
        if chunk.get("stop"):
            self.has_all_tokens = self.has_all_tokens and self.tokens == self._predicted(chunk)
            self.tokens = self._predicted(chunk)
            yield self._finish_of(chunk, chunk.get("stop_type") == "word")
            return
        self.first_at = self.first_at or perf_counter()
        tokens = [int(token) for token in chunk.get("tokens", ())]
        if len(tokens) == 1 and self.vocabulary.is_eog(tokens[0]) and not self.request.ignore_eos:
            return
        self.tokens += len(tokens)
        self.has_all_tokens = self.has_all_tokens and self.tokens == chunk.get("tokens_predicted", self.tokens)
        text = _text(chunk)
        if not text and tokens and tokens[-1] in self.request.visible_tokens:
            text = self.vocabulary.piece(tokens[-1], special=True).decode("utf-8", "replace")
        yield TokenEvent(self.id, text, token=tokens[-1] if tokens else None)

    def add_reply(self, reply: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the events of a whole reply: its text is decoded from the ids, as on this machine."""
        tokens = [int(token) for token in reply.get("tokens", ())]
        if len(tokens) != int(reply.get("tokens_predicted", len(tokens))):
            yield from self._text_only(reply)
            return
        request, vocabulary = self.request, self.vocabulary
        logprobs = _logprobs(reply, tokens) if request.logprobs else [None] * len(tokens)
        detokenizer, stopped = Detokenizer(request.params.stop), False
        for token, logprob in zip(tokens, logprobs, strict=True):
            if vocabulary.is_eog(token) and not request.ignore_eos:
                break
            self.tokens += 1
            text, stopped = detokenizer.feed(vocabulary.piece(token, special=token in request.visible_tokens))
            yield TokenEvent(self.id, text, token=token, logprob=logprob)
            if stopped:
                break
        is_truncated = not stopped and self._reason(reply) != "stop"
        text, stopped_at_end = detokenizer.flush(is_truncated)
        if text:
            yield TokenEvent(self.id, text)
        yield self._finish_of(reply, stopped or stopped_at_end)

    def cancelled(self) -> FinishEvent:
        """The last event of a sample that was stopped from here."""
        now = perf_counter()
        first = self.first_at or now
        timings = Timings(
            prefill_s=first - self.started_at,
            ttft_s=first - self.started_at,
            decode_s=now - first,
            decode_steps=max(0, self.tokens - 1),
        )
        return self._finish("cancelled", 0, timings, by_stop_string=False)

    def _text_only(self, reply: Mapping[str, Any]) -> Iterator[Event]:
        """Yield the events of a reply without all its ids."""
        self.has_all_tokens = False
        self.tokens = self._predicted(reply)
        yield TokenEvent(self.id, _text(reply))
        yield self._finish_of(reply, reply.get("stop_type") == "word")

    def _predicted(self, reply: Mapping[str, Any]) -> int:
        """Number of tokens the server generated, without the one that ended the reply."""
        return int(reply.get("tokens_predicted", self.tokens)) - (reply.get("stop_type") == "eos")

    def _reason(self, reply: Mapping[str, Any]) -> FinishReason:
        if reply.get("stop_type") in ("eos", "word"):
            return "stop"
        limit = self.request.params.max_tokens
        return "length" if limit is not None and self.tokens >= limit else "context"

    def _finish_of(self, reply: Mapping[str, Any], by_stop_string: bool) -> FinishEvent:
        """The last event, with the server's timings. Raises EndpointError if it evaluated another prompt."""
        evaluated, given = reply.get("tokens_evaluated"), len(self.request.prompt_tokens)
        if evaluated is not None and evaluated != given:
            problem = f"the server evaluated {evaluated} prompt tokens instead of {given}"
            raise EndpointError(problem, "its model has another vocabulary: name its model with -m")
        times = reply.get("timings", {})
        prefill_s, decode_s = times.get("prompt_ms", 0.0) / 1000, times.get("predicted_ms", 0.0) / 1000
        elapsed = perf_counter() - self.started_at
        ttft_s = self.first_at - self.started_at if self.first_at else max(prefill_s, elapsed - decode_s)
        timings = Timings(
            prefill_s=prefill_s,
            ttft_s=ttft_s,
            decode_s=decode_s,
            prefill_tokens=int(times.get("prompt_n", 0)),
            decode_steps=max(0, self.tokens - 1),
            draft_n=int(times.get("draft_n", 0)),
            draft_n_accepted=int(times.get("draft_n_accepted", 0)),
        )
        reason = "stop" if by_stop_string else self._reason(reply)
        return self._finish(reason, int(times.get("cache_n", 0)), timings, by_stop_string)

    def _finish(self, reason: FinishReason, cached_tokens: int, timings: Timings, by_stop_string: bool) -> FinishEvent:
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
            by_stop_string=by_stop_string,
            has_all_tokens=self.has_all_tokens,
        )


def _text(reply: Mapping[str, Any]) -> str:
    """The text of a reply or of a part of it, fit to be printed."""
    return well_formed(reply.get("content", ""))


def _logprobs(reply: Mapping[str, Any], tokens: Sequence[int]) -> list[float | None]:
    """Log probabilities of the tokens; None for those that a character or a stop string hides."""
    known = [(int(each["id"]), float(each["logprob"])) for each in reply.get("completion_probabilities", ())]
    at, logprobs = 0, []
    for token in tokens:
        is_known = at < len(known) and known[at][0] == token
        logprobs.append(known[at][1] if is_known else None)
        at += is_known
    return logprobs
