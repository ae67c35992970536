"""Requests for replies, and the stream of their events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.engine import CancelScope, Engine
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.formats.thinking import ThoughtMarkup, ThoughtSplitter


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
    """Creates what splits the text of a reply into reasoning and answer.

    `thought` is the reasoning block that the prompt leaves open, and `prefix_text` the text of the reply to continue.
    """

    thoughts: tuple[ThoughtMarkup, ...]
    thought: ThoughtMarkup | None = None
    prefix_text: str = ""

    def __call__(self) -> ThoughtSplitter:
        splitter = ThoughtSplitter(self.thoughts, self.thought)
        splitter.feed(self.prefix_text)
        return splitter


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
        """Free what is held of a request whose further events do not matter: there may be more than fit into memory."""
        self._requests.pop(index, None)

    def add_samples(self, index: int, count: int) -> None:
        """Start more samples of one request; their seeds follow those of its other samples."""
        self._completions.add_samples(index, count)

    def abort(self, index: int) -> None:
        """Stop the running samples of one request; they finish as `cancelled`."""
        self._completions.abort(index)

    def close(self) -> None:
        self._completions.close()

    def _read(self, requests: Iterable[Request | None]) -> Iterator[Request | None]:
        """Yield the requests as the engine takes them."""
        indexes = count()
        for each in requests:
            if each:
                self._requests[next(indexes)] = each
            yield each

    def _splitter(self, sequence: SequenceId) -> ThoughtSplitter | None:
        """What splits the text of a sample; None for text without channels, or whose request was forgotten."""
        if sequence not in self._splitters:
            request = self._requests.get(sequence.request)
            self._splitters[sequence] = request.channels() if request and request.channels else None
        return self._splitters[sequence]


def split_channels(event: TokenEvent | FinishEvent, splitter: ThoughtSplitter) -> Iterator[Event]:
    """Split the text of an event by channel; the last of the texts has the token's id."""
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
