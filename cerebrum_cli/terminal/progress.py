"""The line standard error shows while a person waits: while a model loads, a prompt is read, a vote is taken."""

from __future__ import annotations

import threading

from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    PromptEvent,
    TallyEvent,
    TokenEvent,
)
from cerebrum_cli.terminal.control import strip_controls
from cerebrum_cli.terminal.streams import Streams, columns
from cerebrum_cli.terminal.tables import tally_text

PATIENCE_S = 1.0  # a wait that is shorter than this shows nothing
THOUGHTS = 10  # tokens of thought after which the line is drawn again
CHAIN_TOKENS = 20  # likewise, of several chains together
ECHO = 3  # columns that are left free: the ^C a terminal echoes must not go to the next line


class StatusLine:
    """One line that is drawn over, shown only when a stage takes longer than a second."""

    def __init__(self, streams: Streams, model: str) -> None:
        self._streams = streams
        self._model = model
        self._draws = streams.can_redraw  # asked once: events come with every token
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._text = ""
        self._shown = False
        self._thought = 0

    def emit(self, event: Event) -> None:
        """Follow the engine's events; anything but loading, reading and thinking clears the line."""
        if not self._draws:
            return
        if isinstance(event, LoadEvent):
            self._show(f"loading {self._model} {event.fraction:.0%}")
        elif isinstance(event, PromptEvent) and event.evaluated < event.total:
            self._show(f"reading the prompt: {event.evaluated} of {event.total} tokens")
        elif isinstance(event, TokenEvent) and event.channel == "thinking":
            self._thought += 1
            if self._thought % THOUGHTS == 1:
                self._show(f"thinking: {self._thought} tokens")
        else:
            self.close()

    def close(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            if self._shown:
                self._streams.draw("\r\x1b[K")
                self._shown = False

    def _show(self, text: str) -> None:
        with self._lock:
            self._text = text
            if self._shown:
                self._draw()
            elif self._timer is None:
                self._timer = threading.Timer(PATIENCE_S, self._first)
                self._timer.daemon = True
                self._timer.start()

    def _first(self) -> None:
        with self._lock:
            if self._timer:
                self._draw()

    def _draw(self) -> None:
        from rich.cells import set_cell_size  # a character may take two columns

        width = columns(self._streams.err) - ECHO
        text = set_cell_size(strip_controls(self._text), width).rstrip()
        self._streams.draw(f"\r\x1b[K{text}")
        self._shown = True


class LoadLine(StatusLine):
    """The status line of a model that loads, and of nothing after that: others draw then."""

    def emit(self, event: Event) -> None:
        """Follow the loading alone."""
        if isinstance(event, LoadEvent):
            super().emit(event)
        else:
            self.close()


class VoteLine(StatusLine):
    """The status line of a vote: how it stands, and how much has been said for it."""

    def __init__(self, streams: Streams, model: str) -> None:
        super().__init__(streams, model)
        self._standing = "no chain is done yet"
        self._tokens = 0

    def emit(self, event: Event) -> None:
        """Follow the chains of a vote."""
        if not isinstance(event, (TokenEvent, TallyEvent, FinishEvent)):
            super().emit(event)
            return
        if isinstance(event, TallyEvent):
            self._standing = tally_text(event)
        self._tokens += isinstance(event, TokenEvent)
        if self._draws and (isinstance(event, TallyEvent) or self._tokens % CHAIN_TOKENS == 1):
            self._show(f"{self._standing} | {self._tokens} tokens")
