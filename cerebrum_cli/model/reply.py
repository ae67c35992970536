"""Requests for replies, the stream of their events, the replies, and the objects that `--json` prints of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import exp, fsum
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Channel, Event, FinishEvent, NoticeEvent, RefusedEvent, SequenceId, TokenEvent
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


@dataclass(frozen=True, slots=True)
class ReplyChannels:
    """Creates splitters of a reply's text into reasoning and answer.

    `thought` is the reasoning block that the prompt leaves open, and `prefix_text` the text of the reply to continue.
    """

    thoughts: tuple[ThoughtMarkup, ...]
    thought: ThoughtMarkup | None = None
    prefix_text: str = ""

    def __call__(self) -> ThoughtSplitter:
        return self.split_prefix()[0]

    def split_prefix(self) -> tuple[ThoughtSplitter, list[SplitText]]:
        """A splitter, and what it has assigned of the text of the reply to continue."""
        splitter = ThoughtSplitter(self.thoughts, self.thought)
        return splitter, splitter.feed(self.prefix_text)


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished reply: its answer, its reasoning if the model marks it, and how it finished.

    `sampled` holds all tokens, including those of the reasoning and of a stop string. `probability` is the geometric
    mean of their probabilities, `lowest_window` that of the least likely WINDOW consecutive ones; 0 unless the request
    asked for log probabilities.
    """

    text: str
    reasoning: str | None
    finish: FinishEvent
    sampled: Tokens = ()
    probability: float = 0.0
    lowest_window: float = 0.0

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The tokens to save in a conversation; None if they are not all known, or the text lacks a stop string's."""
        return tuple(self.sampled) if self.finish.has_all_tokens and not self.finish.by_stop_string else None

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
    def final_answer(self) -> str | None:
        """The final answer stated in the text; None without one."""
        from cerebrum_cli.answers.extract import final_answer  # compiling its patterns is slow

        return final_answer(self.text, is_complete=self.finish.reason == "stop")

    @property
    def thought_closed_at(self) -> int | None:
        """Number of tokens after which the reasoning was ended; None if it came to its end by itself."""
        return self.finish.forced[0].at if self.finish.forced else None

    @property
    def vote(self) -> str | None:
        """The answer that counts in a vote; None without one, and for a reply that ended in a repetition."""
        return None if self.finish.reason == "repetition" else self.final_answer


class Preview(NamedTuple):
    """A prompt as the model would get it: as text, special tokens spelled out, and as token ids."""

    prompt: str
    token_ids: tuple[int, ...]


class ReplyCollector:
    def __init__(self) -> None:
        self._texts: dict[Channel, list[str]] = {"answer": [], "thinking": []}
        self._tokens = array("i")
        self._logprobs = array("d")
        self._finish: FinishEvent | None = None

    def begin(self, tokens: Sequence[int], texts: Iterable[SplitText]) -> None:
        """Add the tokens and texts of the reply that is continued."""
        self._tokens.extend(tokens)
        for channel, text in texts:
            self._texts[channel].append(text)

    def emit(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            self._texts[event.channel].append(event.text)
            self._tokens.extend(event.tokens)
            self._logprobs.extend(each for each in event.logprobs if each is not None)
        elif isinstance(event, FinishEvent):
            self._finish = event

    def close(self) -> None:
        """Do nothing: a collector holds no resources."""

    @property
    def text(self) -> str:
        return "".join(self._texts["answer"])

    @property
    def reasoning(self) -> str | None:
        """The reasoning so far; None if the model has not marked any."""
        return "".join(self._texts["thinking"]) or None

    @property
    def tokens(self) -> Tokens:
        return self._tokens

    @property
    def reply(self) -> Reply | None:
        """The reply; None until it has finished."""
        if self._finish is None:
            return None
        figures = mean_probability(self._logprobs), lowest_window(self._logprobs)
        return Reply(self.text, self.reasoning, self._finish, self._tokens, *figures)


def mean_probability(logprobs: Sequence[float]) -> float:
    """Geometric mean of probabilities, from their logarithms; 0 without any."""
    return round(exp(fsum(logprobs) / len(logprobs)), PROBABILITY_DIGITS) if logprobs else 0.0


def lowest_window(logprobs: Sequence[float]) -> float:
    """Lowest `mean_probability` of WINDOW consecutive tokens; that of all of them if they are fewer."""
    windows = (logprobs[at : at + WINDOW] for at in range(max(1, len(logprobs) - WINDOW + 1)))
    return mean_probability(min(windows, key=fsum))


class ReplyStream:
    """The events of several requests that run together; a FinishEvent is the last event of each sample.

    `SequenceId.request` counts the requests in the order given. Close the stream to stop what still runs.
    """

    def __init__(self, engine: Engine, requests: Iterable[Request | None], scope: CancelScope | None = None) -> None:
        self._requests: dict[int, Request] = {}
        self._splitters: dict[SequenceId, ThoughtSplitter | None] = {}
        self._completions = engine.complete(self._read(requests), scope)

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
        self._requests.pop(index, None)

    def inspect(self, index: int, replies: Mapping[int, tuple[int, ...]]) -> bool:
        """Evaluate the tokens of finished samples of one request again, if the engine can; return whether it does."""
        return self._completions.inspect(index, replies)

    def add_samples(self, index: int, count: int) -> None:
        """Start more samples of one request; their seeds follow those of its other samples."""
        self._completions.add_samples(index, count)

    def abort(self, index: int) -> None:
        """Stop the running samples of one request; they finish as `cancelled`."""
        self._completions.abort(index)

    def close(self) -> None:
        self._completions.close()

    def _read(self, requests: Iterable[Request | None]) -> Iterator[Request | None]:
        indexes = count()
        for each in requests:
            if each:
                self._requests[next(indexes)] = each
            yield each

    def _splitter(self, sequence: SequenceId) -> ThoughtSplitter | None:
        """Splitter of a sample's text; None for text without channels, or of a forgotten request."""
        if sequence not in self._splitters:
            request = self._requests.get(sequence.request)
            self._splitters[sequence] = request.channels() if request and request.channels else None
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
