"""Send the events of a reply to sinks: plain text, Markdown, and what is shown and done while it reasons."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from cerebrum_cli.core.events import Event, PromptEvent, SequenceId, TokenEvent, answer_text
from cerebrum_cli.terminal.interrupts import Signals
from cerebrum_cli.terminal.keyboard import ANSWER_KEY_NAME, Keyboard
from cerebrum_cli.terminal.streams import Streams, strip_complete, strip_controls

if TYPE_CHECKING:
    from cerebrum_cli.replies.loaded_model import LoadedModel
    from cerebrum_cli.terminal.markdown.renderer import MarkdownStream

T = TypeVar("T")


class Sink(Protocol):
    def emit(self, event: Event) -> None:
        """Consume one event."""

    def close(self) -> None:
        """Finish after the last event, or after an error."""


class AnswerSink:
    """The text of an answer; on a terminal without its control sequences, and rendered if it is to be `markdown`."""

    def __init__(self, streams: Streams, markdown: bool) -> None:
        self._streams = streams
        self._renders = markdown and streams.can_style
        self._held = ""  # a control sequence that is not complete
        self._stream: MarkdownStream | None = None
        self._last = ""  # last text written

    def emit(self, event: Event) -> None:
        text = answer_text(event)
        if self._streams.out_is_terminal:
            text, self._held = strip_complete(self._held + text)
        if not text:
            return
        self._last = text
        if self._renders:
            self._render(text)
        else:
            self._streams.answer(text)

    def close(self) -> None:
        if self._held:
            text, self._held = strip_controls(self._held), ""
            self.emit(TokenEvent(SequenceId(0), text))
        if self._stream:
            with self._streams.writing_answer():
                self._stream.close()
        elif self._last and not self._last.endswith("\n"):
            self._streams.answer("\n")

    def _render(self, text: str) -> None:
        if self._stream is None:
            from rich.console import Console

            from cerebrum_cli.terminal.markdown.renderer import STYLES, MarkdownStream

            self._stream = MarkdownStream(Console(file=self._streams.out, theme=STYLES))
        with self._streams.writing_answer():
            self._stream.feed(text)


@dataclass(slots=True)
class ReasoningSink:
    """Lets a key end the reasoning of a reply; afterwards a line sums it up. `shows` prints it as it comes, dimmed."""

    _keyboard: Keyboard
    _model: LoadedModel
    _streams: Streams | None = None
    shows: bool = False
    _started: float | None = None
    _tokens: int = 0

    @property
    def hint(self) -> str:
        return (
            f"{ANSWER_KEY_NAME}: answer now" if self._keyboard.takes_key and self._model.answer_now.is_watched else ""
        )

    def emit(self, event: Event) -> None:
        if not isinstance(event, TokenEvent) or not event.text:
            return
        if event.channel == "answer":
            self.close()
            return
        if self._started is None:
            self._started = time.monotonic()
            if self.hint:
                self._keyboard.bind_key(self._model.answer_now.request)
        self._tokens += 1
        if self._streams and self.shows:
            text = strip_controls(event.text)
            self._streams.draw(f"\x1b[2m{text}\x1b[0m" if self._streams.can_redraw else text)

    def close(self) -> None:
        if self._started is None:
            return
        self._keyboard.unbind_key()
        if self._streams:
            seconds = time.monotonic() - self._started
            if self.shows:
                self._streams.draw("\n")
            summary = f"reasoned for {seconds:.1f} s, {self._tokens} tokens"
            self._streams.write_line("", summary if self.shows else f"{summary}; /think shows it")
        self._started = None


def show_answer(streams: Streams, text: str, markdown: bool) -> None:
    sink = AnswerSink(streams, markdown)
    sink.emit(TokenEvent(SequenceId(0), text))
    sink.close()


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
