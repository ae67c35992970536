"""What is redrawn on standard error while something runs, by rich: the stage of a reply, or the bars of files.

A pipe gets none.
"""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cerebrum_cli.core.events import (
    Event,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    ServersEvent,
    StageEvent,
    TallyEvent,
    TokenEvent,
)
from cerebrum_cli.core.text import one_line, strip_controls, truncate
from cerebrum_cli.terminal.streams import Streams, columns, is_plain_terminal
from cerebrum_cli.terminal.styles import styled_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress
    from rich.text import Text

SHOW_AFTER_S = 1.0  # shorter waits show nothing
PLAIN_EVERY_S = 5.0  # on a terminal without redrawn lines, where somebody waits
HINT_GAP = "    "
MIN_ANSWER = 12  # characters of the answers of a vote
ECHO_COLUMNS = 3  # columns left free for the ^C that a terminal echoes, which must not wrap
DRAWS_PER_S = 10
BAR_COLUMNS, SPEED_COLUMNS = 60, 44  # of a terminal that has room for a bar, and for the speed

Segment = tuple[str, str]  # a text and its style, which may be empty
Segments = Iterable[Segment]


class LiveLine:
    """A line that shows what `render` returns for a number of columns, after a delay in seconds."""

    def __init__(self, streams: Streams, render: Callable[[int], Segments], delay: float = 0.0) -> None:
        self._streams = streams
        self._render = render
        self._delay = delay
        self._timer: threading.Timer | None = None
        self._live: Live | None = None

    def show(self) -> None:
        """Show the line, after the delay, until `erase`."""
        if self._timer is None:
            self._timer = threading.Timer(self._delay, self._start)
            self._timer.daemon = True
            self._timer.start()

    def erase(self) -> None:
        """Erase the line; needed before anything else is written to the terminal. It can be shown again."""
        if self._timer:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
        if self._live:
            self._live.stop()
            self._live = None

    def _start(self) -> None:
        from rich.live import Live

        console = error_console(self._streams)
        self._live = Live(
            console=console,
            get_renderable=self._text,
            refresh_per_second=DRAWS_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)
        console.show_cursor()

    def _text(self) -> Text:
        from rich.text import Text

        width = columns(self._streams.err) - ECHO_COLUMNS
        segments = [(strip_controls(text), style) for text, style in self._render(width)]
        line = Text.assemble(*segments, no_wrap=True)
        line.truncate(width, overflow="crop")
        line.rstrip()
        return line


def file_bars(streams: Streams) -> Progress:
    """Bars with size, speed and remaining time, which stay when they are stopped; started, with a visible cursor."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.table import Column

    one_row = Column(no_wrap=True)
    width = columns(streams.err)
    bars = Progress(
        TextColumn("{task.description:<8}"),
        *([BarColumn(20, table_column=one_row)] if width >= BAR_COLUMNS else []),
        DownloadColumn(table_column=one_row),
        *([TransferSpeedColumn(table_column=one_row)] if width >= SPEED_COLUMNS else []),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=one_row),
        console=error_console(streams),
        refresh_per_second=DRAWS_PER_S,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bars.start()
    bars.console.show_cursor()  # a process that is killed would leave it hidden
    return bars


def error_console(streams: Streams) -> Console:
    return styled_console(ErrorFile(streams), force_terminal=True)


class ErrorFile(io.StringIO):
    """Standard error as the file of a console, whose failures are ignored."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self._streams = streams

    def write(self, text: str) -> int:
        self._streams.draw(text, is_styled=True)
        return len(text)


class StatusLine:
    """Notices of a reply, and the stage that it waits for, shown if it takes longer than a second.

    `hint` is shown beside reasoning where there is room. `counts_answer`: the answer is printed at the end, and its
    tokens are counted until then. `vote` bounds the number of a vote's samples, whose tally is shown. A line that
    `is_hidden` only prints notices; one that `hides_reasoning` leaves that to another sink. One that `separates` writes
    a blank line where a reply begins. Nothing is drawn while it `is_blocked` by text in the same row. A plain terminal
    gets a line every few seconds.
    """

    def __init__(
        self,
        streams: Streams,
        model: str,
        hint: Callable[[], str] = lambda: "",
        counts_answer: bool = False,
        vote: tuple[int, int] | None = None,
        is_hidden: bool = False,
        hides_reasoning: bool = False,
        separates: bool = False,
        is_blocked: Callable[[], bool] = lambda: False,
    ) -> None:
        self.streams = streams
        self.plain_every = PLAIN_EVERY_S
        self._line = LiveLine(streams, self._render, SHOW_AFTER_S)
        self._draws = streams.can_redraw and not is_hidden
        self._is_plain = streams.err_is_terminal and is_plain_terminal() and not (streams.is_quiet or is_hidden)
        self._last_plain = time.monotonic()
        self._hides_reasoning = hides_reasoning
        self._separates = separates
        self._is_blocked = is_blocked
        self._model = model
        self._hint = hint
        self._counts_answer = counts_answer
        self._tally = TallyEvent((), 0, *vote) if vote else None
        self._tokens = Counter[str]()
        self._text: str | TallyEvent = ""  # a tally is written for the width of the line
        self._has_hint = False

    def emit(self, event: Event) -> None:
        """Print a notice where the line was, or take any other event into account."""
        if isinstance(event, NoticeEvent):
            self.erase()
            self.streams.note(event)
            return
        if isinstance(event, ServersEvent):
            return
        if self._separates and isinstance(event, (PromptEvent, TokenEvent)):
            self._separates = False
            self.erase()
            if self.streams.out_is_terminal:
                self.streams.answer("\n")
        if isinstance(event, TokenEvent):
            self._tokens[event.channel] += len(event.tokens) or 1  # some servers send only text
        self._has_hint = isinstance(event, TokenEvent) and event.channel == "thinking"
        self._text = "" if self._is_blocked() else self._stage(event)
        if not self._text:
            self.erase()
        elif self._draws:
            self._line.show()
        elif self._is_plain and time.monotonic() - self._last_plain >= self.plain_every:
            self._last_plain = time.monotonic()
            self.streams.note("".join(text for text, _ in self._render(10_000)))

    def close(self) -> None:
        self.erase()

    def erase(self) -> None:
        """Erase the line; needed before anything else is written to the terminal."""
        self._line.erase()

    def _stage(self, event: Event) -> str | TallyEvent:
        tokens = self._tokens
        match event:
            case LoadEvent(fraction):
                return f"loading {self._model} {fraction:.0%}"
            case StageEvent(stage):
                return stage
            case PromptEvent(_, evaluated, total) if evaluated < total and not (self._tally and tokens):
                return f"reading {evaluated:,} of {total:,} tokens"
            case TallyEvent():
                self._tally = event
        if self._tally:
            return self._tally
        match event:
            case TokenEvent(channel="thinking") if not self._hides_reasoning:
                return f"reasoning: {tokens['thinking']} tokens"
            case TokenEvent(channel="answer") if self._counts_answer:
                return f"answer: {tokens['answer']} tokens"
        return ""

    def _render(self, width: int) -> Segments:
        text = self._text
        if isinstance(text, TallyEvent):
            text = vote_text(text, self._tokens.total(), width)
        yield text, "dim"
        if self._has_hint and (hint := self._hint()):
            hint = HINT_GAP + hint
            if len(text) + len(hint) <= width:
                yield hint, "dim"


def vote_text(vote: TallyEvent, tokens: int, width: int) -> str:
    """A vote while its samples run, the leading answer first: "4/5 x5 · 0.9 x1 (6 of 3-16 samples, 810 tokens)"."""
    planned = str(vote.maximum)
    if vote.minimum < vote.maximum:
        planned = f"{vote.minimum}-{vote.maximum}"
    counted = f" ({vote.samples} of {planned} samples, {tokens} tokens)"
    answers = " · ".join(f"{one_line(answer)} x{count}" for answer, count in vote.tally) or "no answer yet"
    return truncate(answers, max(MIN_ANSWER, width - len(counted))) + counted
