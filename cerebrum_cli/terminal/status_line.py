"""One redrawn line on standard error, and in it the stage that a reply waits for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cerebrum_cli.core.controls import strip_controls
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    SequenceId,
    ServersEvent,
    StageEvent,
    TallyEvent,
    TokenEvent,
)
from cerebrum_cli.core.text import one_line, truncate
from cerebrum_cli.terminal.streams import Streams, columns, is_plain_terminal

SHOW_AFTER_S = 1.0  # shorter waits show nothing
LOG_EVERY_S = 60.0
PLAIN_EVERY_S = 5.0  # on a terminal without redrawn lines, where somebody waits
DRAWS_PER_S = 10
ECHO_COLUMNS = 3  # columns left free for the ^C that a terminal echoes, which must not wrap
HINT_GAP = "    "
MAX_TEXT = 10_000  # characters of a text that is not drawn
MIN_ANSWER = 12  # characters of the answers of a vote
MIN_SPEED_S = 1.0  # a speed of less time is unsteady

Segment = tuple[str, str]  # a text and its color, which may be empty
Segments = Iterator[Segment]


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

    def render(self, width: int) -> Segments:
        raise NotImplementedError

    def emit(self, event: Event) -> None:
        """Print a notice where the line was, or take any other event into account."""
        if isinstance(event, NoticeEvent):
            self.erase()
            self.streams.report(event)
        else:
            self.take(event)

    def take(self, event: Event) -> None:
        raise NotImplementedError

    def show(self, now: bool = False) -> None:
        """Show the line, after its delay, until `erase` or `keep`; redraw it `now` if it shows."""
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
        self.erase()

    def erase(self) -> None:
        """Erase the line; needed before anything else is written to the terminal. It can be shown again."""
        if self._thread:
            self._stopped.set()
            self._thread.join()
            self._thread = None
        if self._drawn:
            self.streams.draw("\r\x1b[K")
            self._drawn = ""

    def keep(self) -> None:
        self.erase()
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
        with self._lock:
            for text, color in self.render(room):
                text = strip_controls(text)
                if cell_len(text) > room:
                    text = set_cell_size(text, room).rstrip()
                room -= cell_len(text)
                drawn += self.streams.on_stderr.styled(text, color)
            if drawn != self._drawn:
                self.streams.draw(f"\r\x1b[K{drawn}")
                self._drawn = drawn


class RunningVote:
    """A vote while its samples run: the tally, how many have started, and their speed."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self._tally = TallyEvent((), 0, minimum, maximum)
        self._started = set[int]()
        self._tokens = Counter[SequenceId]()
        self._since = 0.0  # when a sample began to generate

    def take(self, event: Event) -> bool:
        """Add an event of a sample, or a tally. Returns whether one generates, so that there is a text."""
        match event:
            case TallyEvent():
                self._tally = event
            case PromptEvent(sequence, evaluated, total):
                self._started.add(sequence.sample)
                if evaluated < total and not self._tokens.total():
                    return False
            case TokenEvent(sequence):
                self._started.add(sequence.sample)
                self._tokens[sequence] += max(1, len(event.tokens))  # some servers send only text
            case FinishEvent(sequence) if not event.has_all_tokens:
                self._tokens[sequence] = event.completion_tokens
            case FinishEvent():
                pass
            case _:
                return False
        self._since = self._since or time.monotonic()
        return True

    def text(self, width: int) -> str:
        """Its answers, leading first: "4/5 x5 · 0.9 x1 (6 of 3-16 samples, 8 started, 810 tokens, 38 t/s)"."""
        tally = self._tally
        planned = str(tally.maximum)
        if tally.minimum < tally.maximum:
            planned = f"{tally.minimum}-{tally.maximum}"
        counts = [f"{tally.samples} of {planned} samples"]
        if self._started:
            counts.append(f"{len(self._started)} started")
        tokens = self._tokens.total()
        if tokens:
            counts.append(f"{tokens} tokens")
        seconds = time.monotonic() - self._since
        if tokens and seconds > MIN_SPEED_S:
            speed = tokens / seconds
            counts.append(f"{speed:.{0 if speed >= 10 else 1}f} t/s")
        answers = " · ".join(f"{one_line(answer)} x{count}" for answer, count in tally.tally) or "no answer yet"
        counted = f" ({', '.join(counts)})"
        if len(answers) + len(counted) > width and tokens:
            counted = f" ({', '.join(count for count in counts if not count.endswith('tokens'))})"
        return truncate(answers, max(MIN_ANSWER, width - len(counted))) + counted


class StatusLine(Line):
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
        hint: Callable[[], str] = str,
        counts_answer: bool = False,
        vote: tuple[int, int] | None = None,
        is_hidden: bool = False,
        hides_reasoning: bool = False,
        separates: bool = False,
        is_blocked: Callable[[], bool] = bool,
    ) -> None:
        super().__init__(streams, streams.can_redraw and not is_hidden, SHOW_AFTER_S, log_every=PLAIN_EVERY_S)
        if streams.err_is_terminal and is_plain_terminal() and not (streams.is_quiet or is_hidden):
            self.log = lambda: self._text(MAX_TEXT)
        self._hides_reasoning = hides_reasoning
        self._separates = separates
        self._is_blocked = is_blocked
        self._model = model
        self._hint = hint
        self._counts_answer = counts_answer
        self._vote = RunningVote(*vote) if vote else None
        self._tokens = Counter[str]()
        self._text: Callable[[int], str] = lambda _: ""  # for a number of columns
        self._has_hint = False

    def take(self, event: Event) -> None:
        if self._separates and isinstance(event, (PromptEvent, TokenEvent)):
            self._separates = False
            self.erase()
            self.streams.blank_line()
        if isinstance(event, ServersEvent) or not (self.draws or self.log):
            return
        self._has_hint = isinstance(event, TokenEvent) and event.channel == "thinking"
        if isinstance(event, TokenEvent):
            self._tokens[event.channel] += max(1, len(event.tokens))
        if self._is_blocked():
            self.erase()
            return
        if self._vote and self._vote.take(event):
            self._text = self._vote.text
        elif text := self._reply_text(event):
            self._text = lambda _: text
        else:
            self.erase()
            return
        self.show(now=not isinstance(event, TokenEvent))

    def _reply_text(self, event: Event) -> str | None:
        match event:
            case LoadEvent(fraction):
                return f"loading {self._model} {fraction:.0%}"
            case StageEvent(stage):
                return stage
            case PromptEvent(_, evaluated, total) if evaluated < total:
                return f"prompt: {evaluated} of {total} tokens"
            case TokenEvent(channel="thinking") if not self._hides_reasoning:
                return f"reasoning: {self._tokens['thinking']} tokens"
            case TokenEvent(channel="thinking"):
                return None
            case TokenEvent() if self._counts_answer:
                return f"answer: {self._tokens['answer']} tokens"
        return None

    def render(self, width: int) -> Segments:
        text = self._text(width)
        yield text, ""
        if self._has_hint and (hint := self._hint()):
            hint = HINT_GAP + hint
            if len(text) + len(hint) <= width:
                yield hint, ""
