"""Requests for replies, the stream of their events, the replies, and the objects that `--json` prints of them."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from math import exp, fsum
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import (
    Channel,
    Event,
    FinishEvent,
    FinishReason,
    Forced,
    NoticeEvent,
    RefusedEvent,
    SequenceId,
    TokenEvent,
    answer_text,
)
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.engine import CancelScope, Engine
from cerebrum_cli.engine.sequence import Request, Tokens
from cerebrum_cli.formats.thinking import SplitText, ThoughtMarkup, ThoughtSplitter

PROBABILITY_DIGITS = 5  # further digits depend on what else ran; samples with the same text must be equal
WINDOW = 16  # tokens; DeepConf (arXiv:2508.15260) takes 2,048, of replies of up to 130,000
SLOW_PREFILL_S = 0.25  # shared prefixes that take longer to evaluate are cached on disk
LONG_PROMPT = 256  # tokens; longer prompts are cached on disk


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """A conversation, and how to sample `n` replies to it, or up to `max_n` in the end.

    `prefix_tokens` are the tokens of a reply to continue. With `logprobs`, each token event has its log probability.
    With `ignore_eos`, neither the model's end-of-text token nor the format's stop strings end a reply. With `stream`, a
    server sends tokens as they are sampled, not the whole reply at the end.
    """

    conversation: Conversation
    settings: Settings
    grammar: str | None = None
    n: int = 1
    prefix_tokens: tuple[int, ...] = ()
    logprobs: bool = False
    ignore_eos: bool = False
    max_n: int = 1
    stream: bool = False


class Continuation(NamedTuple):
    """A text without a prompt format, by its last tokens, of which `n` continuations are sampled."""

    text: str
    tokens: tuple[int, ...]
    settings: Settings
    n: int = 1


@dataclass(frozen=True, slots=True)
class ReplyChannels:
    """Creates splitters of a reply's text into reasoning and answer.

    `thought` is the reasoning block that the prompt leaves open, and `prefix_text` the text of the reply to continue.
    """

    thoughts: tuple[ThoughtMarkup, ...]
    thought: ThoughtMarkup | None = None
    prefix_text: str = ""

    def splitter(self) -> ThoughtSplitter:
        return self.split_prefix()[0]

    def split_prefix(self) -> tuple[ThoughtSplitter, list[SplitText]]:
        """A splitter, and what it has assigned of the text of the reply to continue."""
        splitter = ThoughtSplitter(self.thoughts, self.thought)
        return splitter, splitter.feed(self.prefix_text)


class Reply:
    """One reply: its texts, its tokens and how it finished. Iterate it for the pieces of its answer as they come.

    Its properties wait for the whole reply, except while it is iterated: then they are of what there is so far. A reply
    of many that run together has no events of its own, and is fed with `emit`.
    """

    def __init__(self, events: Generator[Event, None, None] | None = None, conversation: Conversation | None = None):
        self.index = 0  # of the question among several
        self._events = events
        self._conversation = conversation
        self._texts: dict[Channel, list[str]] = {"answer": [], "thinking": []}
        self._tokens = array("i")
        self._logprobs = array("d")
        self._finish: FinishEvent | None = None
        self._prefix_length = 0  # tokens of the reply that this one continues
        self._prefix_forced: tuple[Forced, ...] = ()

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces of the answer as they come; leaving the loop ends the reply."""
        with closing(self.events()) as events:
            for event in events:
                if text := answer_text(event):
                    yield text

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the pieces of the answer, waiting for events in a thread, so that an event loop runs on.

        A task that is cancelled ends the reply at its next event.
        """
        import asyncio

        events = self.events()
        waiting = None
        try:
            while True:
                waiting = asyncio.ensure_future(asyncio.to_thread(next, events, None))
                event = await asyncio.shield(waiting)
                if event is None:
                    return
                if text := answer_text(event):
                    yield text
        finally:
            if waiting:
                await asyncio.wait([waiting])  # a generator that runs cannot be closed
            await asyncio.to_thread(events.close)

    def events(self) -> Generator[Event, None, None]:
        """All events of loading the model and of the reply, once; nothing later."""
        events, self._events = self._events, None
        return self._recorded(events)

    def _recorded(self, events: Generator[Event, None, None] | None) -> Generator[Event, None, None]:
        if events is None:
            return
        with closing(events):
            for event in events:
                self.emit(event)
                yield event

    def begin(self, tokens: Sequence[int], texts: Iterable[SplitText], forced: tuple[Forced, ...] = ()) -> None:
        """Add the tokens and texts of the reply that this one continues, and where tokens were forced into it."""
        self._tokens.extend(tokens)
        self._prefix_length, self._prefix_forced = len(tokens), forced
        for channel, text in texts:
            self._texts[channel].append(text)

    def emit(self, event: Event) -> None:
        """Add what an event of the reply holds."""
        if isinstance(event, TokenEvent):
            self._texts[event.channel].append(event.text)
            self._tokens.extend(event.tokens)
            self._logprobs.extend(logprob for logprob in event.logprobs if logprob is not None)
        elif isinstance(event, FinishEvent):
            forced = (place._replace(at=self._prefix_length + place.at) for place in event.forced)
            self._finish = replace(event, forced=(*self._prefix_forced, *forced))

    def wait(self) -> Reply:
        """Generate the rest of a reply that nobody iterates, and return it. Raises what makes the reply fail."""
        for _ in self.events():
            pass
        return self

    @property
    def is_finished(self) -> bool:
        """Whether it has come to an end by now; one whose loop was left, or that failed, never does."""
        return self._finish is not None

    @property
    def finish(self) -> FinishEvent:
        """How it finished."""
        finish = self.wait()._finish
        if finish is None:
            raise UsageError("the reply has not finished", "iterate it to its end")
        return finish

    @property
    def text(self) -> str:
        """The answer, without the reasoning."""
        return "".join(self.wait()._texts["answer"])

    @property
    def reasoning(self) -> str | None:
        """The reasoning; None if the model has not marked any."""
        return "".join(self.wait()._texts["thinking"]) or None

    @property
    def final_answer(self) -> str | None:
        """The final answer stated in the text; None without one."""
        from cerebrum_cli.answers.extract import final_answer  # compiling its patterns is slow

        return final_answer(self.text, is_complete=self.finish_reason == "stop")

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended: "stop" if by itself, "cancelled" also if its loop was left."""
        finish = self.wait()._finish
        return finish.reason if finish else "cancelled"

    @property
    def usage(self) -> Usage:
        """Numbers of tokens of the prompt, of those that were cached, and of the reply."""
        finish = self.finish
        return Usage(finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens)

    @property
    def conversation(self) -> Conversation:
        """The conversation with this reply: add a question with `user`, and it continues."""
        if self._conversation is None:
            raise UsageError("the reply continues a text, not a conversation", "ask a question")
        return self._conversation.assistant(self.text, self.tokens, self.reasoning)

    @property
    def sampled(self) -> Tokens:
        """All tokens, including those of the reasoning and of a stop string."""
        return self._tokens

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The tokens to save in a conversation; None if they are not all known, or the text lacks a stop string's."""
        if not self.is_finished or (self.finish.has_all_tokens and not self.finish.by_stop_string):
            return tuple(self._tokens)
        return None

    @property
    def probability(self) -> float:
        """Geometric mean of the tokens' probabilities; 0 unless the request asked for log probabilities."""
        return mean_probability(self._logprobs)

    @property
    def lowest_window(self) -> float:
        """Geometric mean of the probabilities of the least likely WINDOW consecutive tokens, or 0."""
        return lowest_window(self._logprobs)

    @property
    def has_long_prompt(self) -> bool:
        """Whether it evaluated so much of the prompt that the prompt is worth caching on disk."""
        return self.finish.reason != "cancelled" and self.evaluated > LONG_PROMPT

    def has_slow_prefill(self, tokens: int) -> bool:
        """Whether it evaluated the first tokens of its prompt, and this many take long to evaluate."""
        speed, finish = self.finish.timings.prompt_tokens_per_second, self.finish
        return finish.reason != "cancelled" and finish.cached_tokens < tokens and tokens > SLOW_PREFILL_S * speed

    @property
    def evaluated(self) -> int:
        """Number of prompt tokens that were not cached."""
        return self.finish.prompt_tokens - self.finish.cached_tokens

    @property
    def thought_closed_at(self) -> int | None:
        """Number of tokens after which the reasoning was ended; None if it came to its end by itself."""
        return self.finish.forced[0].at if self.finish.forced else None

    @property
    def vote(self) -> str | None:
        """The answer that counts in a vote; None without one, and for a reply that ended in a repetition."""
        return None if self.finish.reason == "repetition" else self.final_answer


class Usage(NamedTuple):
    """Numbers of tokens; of a server that does not state them, 0."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Preview(NamedTuple):
    """A prompt as the model would get it: as text, special tokens spelled out, and as token ids."""

    prompt: str
    token_ids: tuple[int, ...]


def mean_probability(logprobs: Sequence[float]) -> float:
    """Geometric mean of probabilities, from their logarithms; 0 without any."""
    return round(exp(fsum(logprobs) / len(logprobs)), PROBABILITY_DIGITS) if logprobs else 0.0


def lowest_window(logprobs: Sequence[float]) -> float:
    """Lowest `mean_probability` of WINDOW consecutive tokens; that of all of them if they are fewer."""
    windows = (logprobs[at : at + WINDOW] for at in range(max(1, len(logprobs) - WINDOW + 1)))
    return mean_probability(min(windows, key=fsum))


class PreparedReply(NamedTuple):
    """A tokenized request, and what splits its text into channels; None for text without channels."""

    request: Request
    channels: ReplyChannels | None


class ReplyStream:
    """The events of several requests that run together; a FinishEvent is the last event of each sample.

    `SequenceId.request` counts the requests in the order given. Close the stream to stop what still runs.
    """

    def __init__(
        self, engine: Engine, replies: Iterable[PreparedReply | None], scope: CancelScope | None = None
    ) -> None:
        self._channels: dict[int, ReplyChannels | None] = {}
        self._splitters: dict[SequenceId, ThoughtSplitter | None] = {}
        self._completions = engine.complete(self._read(replies), scope)
        self.inspect = self._completions.inspect
        self.add_samples = self._completions.add_samples
        self.abort = self._completions.abort
        self.close = self._completions.close

    def __iter__(self) -> Iterator[Event]:
        for event in self._completions:
            if isinstance(event, (TokenEvent, FinishEvent)) and (splitter := self._splitter(event.sequence)):
                yield from split_channels(event, splitter)
            else:
                yield event
            if isinstance(event, (FinishEvent, RefusedEvent)):
                self._splitters.pop(event.sequence, None)

    def forget(self, index: int) -> None:
        """Free the state of a request whose further events do not matter: all requests may not fit into memory."""
        self._channels.pop(index, None)

    def _read(self, replies: Iterable[PreparedReply | None]) -> Iterator[Request | None]:
        indexes = count()
        for reply in replies:
            if reply:
                self._channels[next(indexes)] = reply.channels
            yield reply.request if reply else None

    def _splitter(self, sequence: SequenceId) -> ThoughtSplitter | None:
        """Splitter of a sample's text; None for text without channels, or of a forgotten request."""
        if sequence not in self._splitters:
            channels = self._channels.get(sequence.request)
            self._splitters[sequence] = channels.splitter() if channels else None
        return self._splitters[sequence]


def split_channels(event: TokenEvent | FinishEvent, splitter: ThoughtSplitter) -> Iterator[Event]:
    """Split the text of an event by channel; the last of the texts has the tokens."""
    if isinstance(event, TokenEvent):
        texts = splitter.feed(event.text) or [("thinking" if splitter.open_thought else "answer", "")]
        for channel, text in texts[:-1]:
            yield TokenEvent(event.sequence, text, channel)
        channel, text = texts[-1]
        yield replace(event, text=text, channel=channel)
        return
    for channel, text in splitter.flush():
        yield TokenEvent(event.sequence, text, channel)
    yield event


def reply_notice(reply: Reply, larger_context: str) -> NoticeEvent | None:
    """A notice that the answer is truncated or blank, or None. `larger_context` is that of the engine."""
    finish = reply.finish
    if finish.reason == "context":
        size = f" of {finish.context_size} tokens" if finish.context_size else ""
        problem = f"answer truncated: the context{size} is full"
        return NoticeEvent(problem, f"{larger_context}, or ask for less")
    if finish.reason == "length":
        stage = " of reasoning" if reply.reasoning and not reply.text else ""
        return NoticeEvent(f"answer truncated at {finish.completion_tokens} tokens{stage}", "raise --max-tokens")
    if finish.reason == "repetition":
        problem = f"the reply repeats itself and was stopped after {finish.completion_tokens} tokens"
        return NoticeEvent(problem, "try a higher --temperature, --set repeat_penalty=1.1, or --set loop_check=off")
    if finish.reason == "stop" and not reply.text.strip():
        has_prompt = finish.context_size > 0  # else the server makes it
        hint = "check the prompt format with --dry-run" if has_prompt else "give the server a larger context"
        return NoticeEvent("the model's answer is blank", f"{hint}, or ask again")
    return None


def mismatch_notice(reply: Reply, larger_context: str) -> NoticeEvent | None:
    """A notice of why a reply under a grammar is incomplete, and so does not match it; None if it is complete."""
    is_limited = reply.finish.reason == "length"
    if reply.reasoning and not reply.text.strip() and (is_limited or reply.finish.reason == "stop"):
        problem = "the reply ended while reasoning, before an answer"
        shorter = "limit reasoning with --think N or --think off"
        return NoticeEvent(problem, f"raise --max-tokens, or {shorter}" if is_limited else f"ask again, or {shorter}")
    return reply_notice(reply, larger_context)


def length_notice(tokens: int, context_size: int) -> NoticeEvent | None:
    """A notice about a prompt that fits the context, but takes more than half of it; None for any other."""
    if not context_size < 2 * tokens < 2 * context_size:
        return None
    problem = f"the prompt has {tokens} tokens, more than half of the context of {context_size}"
    return NoticeEvent(problem, f"there is room for a reply of {context_size - tokens} tokens")


def reply_object(
    reply: Reply,
    model: str,
    file: Path | None,
    format_name: str,
    final_answer: str | None,
    votes: Mapping[str, Any] | None = None,
    extracted: str | None = None,
) -> dict[str, Any]:
    """The object `ask --json` prints; `file` is the model file used, None behind a server. Rates are per second."""
    finish = reply.finish
    timings = finish.timings
    return {
        "model": model,
        "file": file and str(file),
        "format": format_name,
        "text": reply.text,
        "final_answer": final_answer,
        "extracted": extracted,
        "finish_reason": finish.reason,
        "thought_closed_at": reply.thought_closed_at,
        "prompt_tokens": finish.prompt_tokens or None,
        "cached_tokens": finish.cached_tokens if finish.context_size else None,
        "completion_tokens": finish.completion_tokens,
        "seed": finish.seed,
        "reasoning": reply.reasoning,
        "votes": votes,
        "timings": {
            "load_s": round(timings.load_s, 4),
            "prefill_s": round(timings.prefill_s, 4),
            "ttft_s": round(timings.ttft_s, 4),
            "decode_s": round(timings.decode_s, 4),
            "prompt_tokens_per_second": round(timings.prompt_tokens_per_second, 2),
            "tokens_per_second": round(timings.tokens_per_second, 2),
            "draft_n": timings.draft_n,
            "draft_n_accepted": timings.draft_n_accepted,
        },
    }


def prompt_object(preview: Preview, model: str, format_name: str) -> dict[str, Any]:
    """The object `ask --dry-run --json` prints."""
    return {
        "prompt": preview.prompt,
        "prompt_tokens": len(preview.token_ids),
        "token_ids": list(preview.token_ids),
        "format": format_name,
        "model": model,
    }
