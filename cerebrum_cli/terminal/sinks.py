"""Where the events of one reply go: text to a pipe, Markdown to a terminal, an object or only the answer at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from cerebrum_cli.core.events import Event, NoticeEvent, PromptEvent, SequenceId, TokenEvent
from cerebrum_cli.terminal.control import ControlFilter
from cerebrum_cli.terminal.interrupts import CancelOnInterrupt, Interrupts
from cerebrum_cli.terminal.streams import Streams, plain_terminal

if TYPE_CHECKING:
    from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

T = TypeVar("T")


class Sink(Protocol):
    """Something that follows a reply."""

    def emit(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """The stream of events has ended, well or not."""


class TextSink:
    """The answer as plain text, ending in a line break."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._filter = ControlFilter() if streams.out_is_terminal else None
        self._last = ""  # the last text written

    def emit(self, event: Event) -> None:
        """Write answer text as it comes."""
        if isinstance(event, TokenEvent) and event.channel == "answer" and event.text:
            self._write(self._filter.feed(event.text) if self._filter else event.text)

    def close(self) -> None:
        """End the last line."""
        if self._filter:
            self._write(self._filter.flush())
        if self._last and not self._last.endswith("\n"):
            self._streams.answer("\n")

    def _write(self, text: str) -> None:
        self._streams.answer(text)
        self._last = text or self._last


class MarkdownSink:
    """The answer as Markdown on a terminal."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._filter = ControlFilter()
        self._stream: MarkdownStream | None = None

    def emit(self, event: Event) -> None:
        """Draw answer text as it comes."""
        if isinstance(event, TokenEvent) and event.channel == "answer" and event.text:
            if self._stream is None:
                from rich.console import Console

                from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

                self._stream = MarkdownStream(Console(file=self._streams.out))
            with self._streams.answering():
                self._stream.feed(self._filter.feed(event.text))

    def close(self) -> None:
        """Print the last block for good."""
        if self._stream:
            with self._streams.answering():
                self._stream.feed(self._filter.flush())
                self._stream.close()


class ThoughtSink:
    """Thought the model marks as such, folded to one line on standard error when it is done."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._began: float | None = None
        self._tokens = 0

    def emit(self, event: Event) -> None:
        """Count what is thought, and tell of it before the answer begins."""
        if not isinstance(event, TokenEvent) or not event.text:
            return
        if event.channel == "answer":
            self.close()
            return
        if self._began is None:
            self._began = time.monotonic()
        self._tokens += 1

    def close(self) -> None:
        """Tell of a thought that has ended, or was ended."""
        if self._began is not None:
            seconds = time.monotonic() - self._began
            self._streams.info(f"thought for {seconds:.1f} s, {self._tokens} tokens; /think shows it")
            self._began = None


class NoticeSink:
    """Notices go to standard error."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def emit(self, event: Event) -> None:
        """Tell a notice."""
        if isinstance(event, NoticeEvent):
            self._streams.notice(event)

    def close(self) -> None:
        """Nothing is open."""


def answer_sink(streams: Streams, markdown: bool) -> Sink:
    """Return the sink for an answer people or programs read: Markdown on a terminal that can be drawn on."""
    if markdown and streams.out_is_terminal and not plain_terminal():
        return MarkdownSink(streams)
    return TextSink(streams)


def show_answer(streams: Streams, text: str, markdown: bool) -> None:
    """Show an answer that was given before as it was shown then."""
    sink = answer_sink(streams, markdown)
    sink.emit(TokenEvent(SequenceId(0), text))
    sink.close()


def render(
    events: Generator[Event, None, None],
    cancel: Callable[[], None],
    sinks: Iterable[Sink],
    interrupts: Callable[[Callable[[], None]], AbstractContextManager[CancelOnInterrupt]] = Interrupts,
) -> None:
    """Send all events to all sinks; a signal cancels the reply, is played out, and then raises Interrupted.

    From the first PromptEvent on a sequence is there to be cancelled; before that, a signal raises at once.
    """
    sinks = tuple(sinks)
    with interrupts(cancel) as cancelling:
        try:
            for event in events:
                cancelling.talking = cancelling.talking or isinstance(event, (PromptEvent, TokenEvent))
                for sink in sinks:
                    sink.emit(event)
        finally:
            events.close()
            for sink in sinks:
                sink.close()


def render_stages(events: Generator[Event, None, T], sink: Sink) -> T:
    """Show what a piece of work tells while it is done, and return what it comes to."""
    try:
        while True:
            try:
                sink.emit(next(events))
            except StopIteration as stopped:
                return cast("T", stopped.value)
    finally:
        sink.close()
