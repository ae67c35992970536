"""Send the events of a reply to sinks: plain text, Markdown, a key that ends reasoning."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from cerebrum_cli.core.environment import set_environment_default
from cerebrum_cli.core.events import Event, PromptEvent, SequenceId, TokenEvent, answer_text
from cerebrum_cli.terminal.escapes import ControlFilter, strip_controls
from cerebrum_cli.terminal.interrupts import Signals
from cerebrum_cli.terminal.keyboard import ANSWER_KEY_NAME, Keyboard
from cerebrum_cli.terminal.streams import Streams, columns

if TYPE_CHECKING:
    from cerebrum_cli.model.loaded_model import LoadedModel
    from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

T = TypeVar("T")


class Sink(Protocol):
    def emit(self, event: Event) -> None:
        """Consume one event."""

    def close(self) -> None:
        """Finish after the last event, or after an error; most sinks have nothing to finish."""
        return


class TextSink:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._filter = ControlFilter() if streams.out_is_terminal else None
        self._last = ""  # last text written

    def emit(self, event: Event) -> None:
        if text := answer_text(event):
            text = self._filter.feed(text) if self._filter else text
            self._streams.answer(text)
            self._last = text or self._last

    def close(self) -> None:
        if self._filter and (text := self._filter.flush()):
            self._streams.answer(text)
            self._last = text
        if self._last and not self._last.endswith("\n"):
            self._streams.answer("\n")


class MarkdownSink:
    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._filter = ControlFilter()
        self._stream: MarkdownStream | None = None

    def emit(self, event: Event) -> None:
        if text := answer_text(event):
            if self._stream is None:
                from rich.console import Console

                from cerebrum_cli.terminal.markdown.elements import STYLES
                from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

                self._stream = MarkdownStream(Console(file=self._streams.out, theme=STYLES))
            with self._streams.writing_answer():
                self._stream.feed(self._filter.feed(text))

    def close(self) -> None:
        if self._stream:
            with self._streams.writing_answer():
                self._stream.feed(self._filter.flush())
                self._stream.close()


@dataclass(slots=True)
class AnswerKeySink:
    """Lets a key end the reasoning of a reply while it streams."""

    _keyboard: Keyboard
    _model: LoadedModel
    _is_bound: bool = False

    @property
    def hint(self) -> str:
        return f"{ANSWER_KEY_NAME}: answer now" if self._keyboard.takes_key and self._model.can_answer_now else ""

    def emit(self, event: Event) -> None:
        if not isinstance(event, TokenEvent) or not event.text:
            return
        if event.channel == "answer":
            self.close()
        elif not self._is_bound and self.hint:
            self._is_bound = True
            self._keyboard.bind_key(self._model.answer_now)

    def close(self) -> None:
        if self._is_bound:
            self._is_bound = False
            self._keyboard.unbind_key()


def answer_sink(streams: Streams, markdown: bool) -> Sink:
    """Choose the sink for an answer: Markdown if enabled and the terminal can be redrawn, else plain text."""
    if markdown and streams.can_style:
        return MarkdownSink(streams)
    return TextSink(streams)


def show_answer(streams: Streams, text: str, markdown: bool) -> None:
    sink = answer_sink(streams, markdown)
    sink.emit(TokenEvent(SequenceId(0), text))
    sink.close()


def page_markdown(streams: Streams, text: str) -> None:
    """Show a Markdown document: rendered, in the user's pager, at a terminal that can show it; else as it is."""
    if not streams.can_style:
        streams.answer(text)
        return
    from pydoc import pager

    from cerebrum_cli.terminal.markdown.renderer import rendered

    set_environment_default("LESS", "-FRX")  # less quits if all fits, shows colors and leaves the text on the screen
    pager(rendered(strip_controls(text), columns(streams.out)))


def render(
    events: Generator[Event, None, None],
    cancel: Callable[[], None],
    sinks: Iterable[Sink],
    chat_signals: Signals | None = None,
) -> None:
    """Send all events to all sinks. A signal cancels the reply; after its last events Interrupted is raised.

    A sequence exists, and can be canceled, from the first PromptEvent on; before that a signal raises immediately.
    """
    sinks = tuple(sinks)
    with nullcontext(chat_signals) if chat_signals else Signals() as signals, signals.generating(cancel):
        try:
            for event in events:
                signals.can_cancel = signals.can_cancel or isinstance(event, (PromptEvent, TokenEvent))
                for sink in sinks:
                    sink.emit(event)
        finally:
            events.close()
            for sink in sinks:
                sink.close()


def render_stages(events: Generator[Event, None, T], sink: Sink) -> T:
    try:
        while True:
            try:
                sink.emit(next(events))
            except StopIteration as stopped:
                return cast("T", stopped.value)
    finally:
        sink.close()
