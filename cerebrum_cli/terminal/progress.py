"""Status line on standard error: loading, prefill, reasoning, votes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    PromptEvent,
    ServersEvent,
    StageEvent,
    TallyEvent,
    TokenEvent,
)
from cerebrum_cli.terminal.escapes import strip_controls
from cerebrum_cli.terminal.streams import Streams, columns
from cerebrum_cli.terminal.texts import tally_text

SHOW_AFTER_S = 1.0  # shorter waits show nothing
REASONING_TOKENS_PER_DRAW = 10  # reasoning tokens between redraws
ANSWER_TOKENS_PER_DRAW = 10  # tokens of an answer between redraws
VOTE_TOKENS_PER_DRAW = 20  # tokens of all samples between redraws
HINT_GAP = "    "
ECHO_COLUMNS = 3  # columns left free for the ^C that a terminal echoes, which must not wrap


class StatusLine:
    """A redrawn line, shown only while a stage takes longer than a second."""

    def __init__(self, streams: Streams, model: str, reasoning_hint: Callable[[], str] = str) -> None:
        self._streams = streams
        self._model = model
        self._reasoning_hint = reasoning_hint  # shown where there is room
        self._can_redraw = streams.can_redraw  # checked once: there is an event for every token
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._text = self._hint = ""
        self._shown = False
        self._reasoning_tokens = 0

    def emit(self, event: Event) -> None:
        """Update the line; any event of the reply other than prefill and reasoning erases it."""
        if not self._can_redraw or isinstance(event, ServersEvent):
            return
        if isinstance(event, LoadEvent):
            self._show(f"loading {self._model} {event.fraction:.0%}")
        elif isinstance(event, StageEvent):
            self._show(event.stage)
        elif isinstance(event, PromptEvent) and event.evaluated < event.total:
            self._show(f"prompt: {event.evaluated} of {event.total} tokens")
        elif isinstance(event, TokenEvent) and event.channel == "thinking":
            self._reasoning_tokens += 1
            if self._reasoning_tokens % REASONING_TOKENS_PER_DRAW == 1:
                self._show(f"reasoning: {self._reasoning_tokens} tokens", self._reasoning_hint())
        else:
            self.close()

    def close(self) -> None:
        with self._lock:
            if self._timer:
                self._timer.cancel()
                self._timer = None
            if self._shown:
                self._streams.draw("\r\x1b[K")
                self._shown = False

    def _show(self, text: str, hint: str = "") -> None:
        with self._lock:
            self._text, self._hint = text, hint
            if self._shown:
                self._draw()
            elif self._timer is None:
                self._timer = threading.Timer(SHOW_AFTER_S, self._draw_first)
                self._timer.daemon = True
                self._timer.start()

    def _draw_first(self) -> None:
        with self._lock:
            if self._timer:
                self._draw()

    def _draw(self) -> None:
        from rich.cells import cell_len, set_cell_size  # characters may be two columns wide

        width = columns(self._streams.err) - ECHO_COLUMNS
        text = strip_controls(self._text)
        if self._hint and cell_len(text) + len(HINT_GAP + self._hint) <= width:
            text += HINT_GAP + self._hint
        text = set_cell_size(text, width).rstrip()
        self._streams.draw(f"\r\x1b[K{text}")
        self._shown = True


class AnswerLine(StatusLine):
    """A status line that also counts the tokens of an answer, which is printed at the end."""

    def __init__(self, streams: Streams, model: str, reasoning_hint: Callable[[], str] = str) -> None:
        super().__init__(streams, model, reasoning_hint)
        self._tokens = 0

    def emit(self, event: Event) -> None:
        if not isinstance(event, TokenEvent) or event.channel != "answer":
            super().emit(event)
            return
        self._tokens += 1
        if self._can_redraw and self._tokens % ANSWER_TOKENS_PER_DRAW == 1:
            self._show(f"answer: {self._tokens} tokens")


class LoadLine(StatusLine):
    """A status line for loading only, if another display follows."""

    def emit(self, event: Event) -> None:
        if isinstance(event, (LoadEvent, StageEvent)):
            super().emit(event)
        else:
            self.close()


class VoteLine(StatusLine):
    """A status line for a vote: its tally and the number of tokens generated; `bounds` of the number of samples."""

    def __init__(self, streams: Streams, model: str, bounds: tuple[int, int]) -> None:
        super().__init__(streams, model)
        self._tally = TallyEvent((), 0, *bounds)
        self._tokens = 0

    def emit(self, event: Event) -> None:
        if not isinstance(event, (TokenEvent, TallyEvent, FinishEvent)):
            if not (self._tokens and isinstance(event, PromptEvent)):  # of further samples
                super().emit(event)
            return
        if isinstance(event, TallyEvent):
            self._tally = event
        self._tokens += isinstance(event, TokenEvent)
        if self._can_redraw and (isinstance(event, TallyEvent) or self._tokens % VOTE_TOKENS_PER_DRAW == 1):
            self._show(tally_text(self._tally, self._tokens))
