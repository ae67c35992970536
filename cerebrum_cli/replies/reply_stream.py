"""The events of requests that run together, with the text of their tokens split into reasoning and answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, SequenceId, TokenEvent
from cerebrum_cli.engine.engine import CancelScope, Engine
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.formats.thinking import ReasoningMarkup, ReasoningSplitter


@dataclass(frozen=True, slots=True)
class ReplyChannels:
    """Creates splitters of a reply's text into reasoning and answer.

    `open_markup` is that of reasoning that the prompt leaves open, `prefix_text` the text of the reply to continue.
    """

    markups: tuple[ReasoningMarkup, ...]
    open_markup: ReasoningMarkup | None = None
    prefix_text: str = ""

    def splitter(self) -> ReasoningSplitter:
        """A splitter that has read the text of the reply to continue."""
        splitter = ReasoningSplitter(self.markups, self.open_markup)
        splitter.feed(self.prefix_text)
        return splitter


@dataclass(slots=True)
class PreparedReply:
    """A tokenized request, and what splits its text into channels; None for text without channels.

    `follow_up` splits that of the reply to the request's follow-up.
    """

    request: Request
    channels: ReplyChannels | None
    follow_up: ReplyChannels | None = field(default=None, kw_only=True)


P = TypeVar("P", bound=PreparedReply)


class ReplyStream(Generic[P]):
    """The events of several requests that run together; a FinishEvent is the last event of each sample.

    `SequenceId.request` counts the requests in the order given, and `replies` has them by this number; remove those
    whose further events do not matter. Close the stream to stop what still runs.
    """

    def __init__(self, engine: Engine, replies: Iterable[P], scope: CancelScope | None = None) -> None:
        self.replies: dict[int, P] = {}
        self._splitters: dict[SequenceId, ReasoningSplitter | None] = {}
        requests = (self.replies.setdefault(index, reply).request for index, reply in enumerate(replies))
        self.completions = engine.complete(requests, scope)
        self.close = self.completions.close

    def __iter__(self) -> Iterator[Event]:
        for event in self.completions:
            if isinstance(event, (TokenEvent, FinishEvent)):
                if event.sequence not in self._splitters:
                    reply = self.replies.get(event.sequence.request)
                    channels = reply and (reply.follow_up if event.sequence.turn else reply.channels)
                    self._splitters[event.sequence] = channels.splitter() if channels else None
                splitter = self._splitters[event.sequence]
                yield from split_channels(event, splitter) if splitter else (event,)
            else:
                yield event
            if isinstance(event, (FinishEvent, RefusedEvent)):
                self._splitters.pop(event.sequence, None)


def split_channels(event: TokenEvent | FinishEvent, splitter: ReasoningSplitter) -> Iterator[Event]:
    """Split the text of an event by channel; the last of the texts has the tokens."""
    if isinstance(event, TokenEvent):
        texts = splitter.feed(event.text) or [("thinking" if splitter.open_markup else "answer", "")]
        for channel, text in texts[:-1]:
            yield TokenEvent(event.sequence, text, channel)
        channel, text = texts[-1]
        yield replace(event, text=text, channel=channel)
        return
    for channel, text in splitter.flush():
        yield TokenEvent(event.sequence, text, channel)
    yield event
