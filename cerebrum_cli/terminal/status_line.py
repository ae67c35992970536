"""One redrawn line on standard error, and in it the stage that a reply waits for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    ServersEvent,
    StageEvent,
    TallyEvent,
    TokenEvent,
)
from cerebrum_cli.core.text import one_line
from cerebrum_cli.terminal.streams import Streams, columns, is_plain_terminal, strip_controls

SHOW_AFTER_S = 1.0  # shorter waits show nothing
LOG_EVERY_S = 60.0
PLAIN_EVERY_S = 5.0  # on a terminal without redrawn lines, where somebody waits
DRAWS_PER_S = 10
ECHO_COLUMNS = 3  # columns left free for the ^C that a terminal echoes, which must not wrap
HINT_GAP = "    "

Segment = tuple[str, str]  # a text and its color, which may be empty


@dataclass(eq=False)
class Line:
    """A line on standard error that is redrawn while it shows, each time with what `render` returns for a width.

    If it does not draw, the text of `log`, if there is one, is printed every `log_every` seconds instead.
    """

    streams: Streams
    draws: bool
    delay: float = 0.0
    log: Callable[[], str] | None = None
    log_every: float = LOG_EVERY_S
    _last_log: float = field(default_factory=time.monotonic)
    _thread: threading.Thread | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _drawn: str = ""

    def render(self, width: int) -> Iterable[Segment]:
        raise NotImplementedError

    def show(self, now: bool = False) -> None:
        """Show the line, after its delay, until `close` or `keep`; redraw it `now` if it shows."""
        if self.draws and self._thread is None:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        if now and self.draws and (self._drawn or not self.delay):
            self._draw()
        elif self.log and not self.draws and time.monotonic() - self._last_log >= self.log_every:
            self._last_log = time.monotonic()
            self.streams.report(self.log())

    def close(self) -> None:
        """Erase the line; needed before anything else is written to the terminal. It can be shown again."""
        if self._thread:
            self._stopped.set()
            self._thread.join()
            self._thread = None
        if self._drawn:
            self.streams.draw("\r\x1b[K")
            self._drawn = ""

    def keep(self) -> None:
        self.close()
        self._draw()
        self.streams.draw("\n")
        self._drawn = ""

    def _run(self) -> None:
        pause = self.delay
        while not self._stopped.wait(pause):
            self._draw()
            pause = 1 / DRAWS_PER_S

    def _draw(self) -> None:
        from rich.cells import cell_len, set_cell_size  # characters may be two columns wide

        room = columns(self.streams.err) - ECHO_COLUMNS
        drawn = ""
        has_colors = environment("NO_COLOR") is None
        with self._lock:
            for text, color in self.render(room):
                text = strip_controls(text)
                text = text if cell_len(text) <= room else set_cell_size(text, room).rstrip()
                room -= cell_len(text)
                drawn += f"\x1b[{color}m{text}\x1b[0m" if color and has_colors else text
            if drawn != self._drawn:
                self.streams.draw(f"\r\x1b[K{drawn}")
                self._drawn = drawn


class StatusLine(Line):
    """Notices of a reply, and the stage that it waits for, shown if it takes longer than a second.

    `hint` is shown beside reasoning where there is room. `counts_answer`: the answer is printed at the end, and its
    tokens are counted until then. `vote` bounds the number of a vote's samples, whose tally is shown. A line that
    `is_hidden` only prints notices; one that `hides_reasoning` leaves that to another sink. A plain terminal gets a
    line every few seconds.
    """

    def __init__(
        self,
        streams: Streams,
        model: str,
        hint: Callable[[], str] = str,
        counts_answer: bool = False,
        vote: tuple[int, int] | None = None,
        is_hidden: bool = False,
        hides_reasoning: bool = False,
    ) -> None:
        is_plain = streams.err_is_terminal and is_plain_terminal() and not (streams.is_quiet or is_hidden)
        super().__init__(
            streams,
            streams.can_redraw and not is_hidden,
            SHOW_AFTER_S,
            (lambda: self._text) if is_plain else None,
            PLAIN_EVERY_S,
        )
        self._hides_reasoning = hides_reasoning
        self._model = model
        self._hint = hint
        self._counts_answer = counts_answer
        self._tally = TallyEvent((), 0, *vote) if vote else None
        self._tokens = Counter[str]()
        self._text = ""
        self._has_hint = False

    def emit(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):
            self.close()
            self.streams.report(event)
        elif (self.draws or self.log) and not isinstance(event, ServersEvent):
            if isinstance(event, TokenEvent):
                self._tokens[event.channel] += max(1, len(event.tokens))
            text = self._vote_text(event)
            self._has_hint = text is None and isinstance(event, TokenEvent) and event.channel == "thinking"
            text = text or self._reply_text(event)
            if text is None:
                self.close()
            else:
                self._text = text
                self.show(now=not isinstance(event, TokenEvent))

    def _vote_text(self, event: Event) -> str | None:
        """The tally of a running vote: "4/5 x5 · 0.9 x1 (6 of 3-16 samples, 81 tokens)"."""
        if isinstance(event, TallyEvent):
            self._tally = event
        tally, tokens = self._tally, self._tokens.total()
        is_prompt = isinstance(event, PromptEvent) and event.evaluated < event.total and not tokens
        if tally is None or is_prompt or not isinstance(event, (PromptEvent, TokenEvent, FinishEvent, TallyEvent)):
            return None
        answers = " · ".join(f"{one_line(answer)} x{count}" for answer, count in tally.tally) or "no answer yet"
        planned = f"{tally.minimum}-{tally.maximum}" if tally.minimum < tally.maximum else tally.maximum
        counted = f", {tokens} tokens" if tokens else ""  # a server may send whole replies
        return f"{answers} ({tally.samples} of {planned} samples{counted})"

    def _reply_text(self, event: Event) -> str | None:
        match event:
            case LoadEvent(fraction):
                return f"loading {self._model} {fraction:.0%}"
            case StageEvent(stage):
                return stage
            case PromptEvent(_, evaluated, total) if evaluated < total:
                return f"prompt: {evaluated} of {total} tokens"
            case TokenEvent(channel="thinking"):
                return None if self._hides_reasoning else f"reasoning: {self._tokens['thinking']} tokens"
            case TokenEvent() if self._counts_answer:
                return f"answer: {self._tokens['answer']} tokens"
        return None

    def render(self, width: int) -> Iterator[Segment]:
        yield self._text, ""
        hint = self._hint() if self._has_hint else ""
        if hint and len(self._text + HINT_GAP + hint) <= width:
            yield HINT_GAP + hint, ""
