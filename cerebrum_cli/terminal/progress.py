"""Progress on standard error: one redrawn line, or a line per minute where nothing can be redrawn."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.events import (
    EvalProgress,
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    RefusedEvent,
    RowCounts,
    RowEvent,
    SequenceId,
    ServersEvent,
    ServerTokens,
    StageEvent,
    TallyEvent,
    TokenEvent,
)
from cerebrum_cli.core.text import format_count, format_duration, format_size, one_line
from cerebrum_cli.terminal.escapes import strip_controls
from cerebrum_cli.terminal.streams import Streams, columns
from cerebrum_cli.terminal.tables import server_rates

SHOW_AFTER_S = 1.0  # shorter waits show nothing
LOG_EVERY_S = 60.0
DRAWS_PER_S = 10
ECHO_COLUMNS = 3  # columns left free for the ^C that a terminal echoes, which must not wrap
HINT_GAP = "    "
MIN_BAR, STAGE_BAR = 8, 20  # columns
BAR_COLUMNS = 57  # that a bar of stages or files needs
GREEN, RED, MAGENTA, GRAY = "32", "31", "35", "90"

Segment = tuple[str, str]  # a text and its color, which may be empty
Counts = RowEvent | EvalProgress
SAMPLE_EVENTS = (PromptEvent, TokenEvent, FinishEvent, TallyEvent)


@dataclass(slots=True)
class Line:
    """A line on standard error that is redrawn while it shows, each time with what `render` returns for a width.

    If it is not to be drawn, the text of `log`, if there is one, is printed once a minute instead.
    """

    streams: Streams
    render: Callable[[int], Iterable[Segment]]
    draws: bool
    delay: float = 0.0
    log: Callable[[], str] | None = None
    _last_log: float = field(default_factory=time.monotonic, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _drawn: str = field(default="", init=False)

    def show(self, now: bool = False) -> None:
        """Show the line, after its delay, until `erase` or `keep`; redraw it `now` if it shows."""
        if self.draws and self._thread is None:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        if now and self.draws and (self._drawn or not self.delay):
            self._draw()
        elif self.log and not self.draws and time.monotonic() - self._last_log >= LOG_EVERY_S:
            self._last_log = time.monotonic()
            self.streams.report(self.log())

    def erase(self) -> None:
        """Erase the line; needed before anything else is written to the terminal."""
        if self._thread:
            self._stopped.set()
            self._thread.join()
            self._thread = None
        if self._drawn:
            self.streams.draw("\r\x1b[K")
            self._drawn = ""

    def keep(self) -> None:
        """Draw the line a last time, and leave it on the screen."""
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
        drawn, has_colors = "", environment("NO_COLOR") is None
        with self._lock:
            for text, color in self.render(room):
                text = strip_controls(text)
                text = text if cell_len(text) <= room else set_cell_size(text, room).rstrip()
                room -= cell_len(text)
                drawn += f"\x1b[{color}m{text}\x1b[0m" if color and has_colors else text
            if drawn != self._drawn:
                self.streams.draw(f"\r\x1b[K{drawn}")
                self._drawn = drawn


@dataclass
class StatusLine:
    """The stage that a reply waits for, shown if it takes longer than a second.

    `hint` is shown beside reasoning where there is room. `counts_answer`: the answer is printed at the end, and its
    tokens are counted until then. `vote` bounds the number of a vote's samples, whose tally is shown.
    """

    streams: Streams
    model: str
    hint: Callable[[], str] = str
    counts_answer: bool = False
    vote: tuple[int, int] | None = None
    _tokens: dict[str, int] = field(default_factory=lambda: {"thinking": 0, "answer": 0})
    _text: str = ""
    _has_hint: bool = False

    def __post_init__(self) -> None:
        self._line = Line(self.streams, self._render, self.streams.can_redraw, SHOW_AFTER_S)
        self._tally = TallyEvent((), 0, *self.vote) if self.vote else None

    def emit(self, event: Event) -> None:
        """Update the line, or erase it if the event ends the wait."""
        if not self._line.draws or isinstance(event, ServersEvent):
            return
        if isinstance(event, TokenEvent):
            self._tokens[event.channel] += max(1, len(event.tokens))
        text = self._vote_text(event)
        self._has_hint = text is None and isinstance(event, TokenEvent) and event.channel == "thinking"
        text = text or self._reply_text(event)
        if text is None:
            self.close()
        else:
            self._text = text
            self._line.show(now=not isinstance(event, TokenEvent))

    def close(self) -> None:
        self._line.erase()

    def _vote_text(self, event: Event) -> str | None:
        """The tally of a running vote: "4/5 x5 · 0.9 x1 (6 of 3-16 samples, 81 tokens)"."""
        if isinstance(event, TallyEvent):
            self._tally = event
        tally, tokens = self._tally, sum(self._tokens.values())
        is_prompt = isinstance(event, PromptEvent) and event.evaluated < event.total and not tokens
        if tally is None or is_prompt or not isinstance(event, SAMPLE_EVENTS):
            return None
        answers = " · ".join(f"{one_line(answer)} x{count}" for answer, count in tally.tally) or "no answer yet"
        planned = f"{tally.minimum}-{tally.maximum}" if tally.minimum < tally.maximum else tally.maximum
        counted = f", {tokens} tokens" if tokens else ""  # a server may send whole replies
        return f"{answers} ({tally.samples} of {planned} samples{counted})"

    def _reply_text(self, event: Event) -> str | None:
        if isinstance(event, LoadEvent):
            return f"loading {self.model} {event.fraction:.0%}"
        if isinstance(event, StageEvent):
            return event.stage
        if isinstance(event, PromptEvent) and event.evaluated < event.total:
            return f"prompt: {event.evaluated} of {event.total} tokens"
        if isinstance(event, TokenEvent) and (event.channel == "thinking" or self.counts_answer):
            name = "reasoning" if event.channel == "thinking" else "answer"
            return f"{name}: {self._tokens[event.channel]} tokens"
        return None

    def _render(self, width: int) -> Iterator[Segment]:
        yield self._text, ""
        hint = self.hint() if self._has_hint else ""
        if hint and len(self._text + HINT_GAP + hint) <= width:
            yield HINT_GAP + hint, ""


class BatchProgress:
    """Progress of a batch or an evaluation: a bar if `draws`, otherwise a line per minute; a summary line at the end.

    A status line shows the loading of `model`, if given.
    """

    def __init__(self, streams: Streams, draws: bool, model: str | None = None) -> None:
        self._streams = streams
        self._line = Line(streams, self._render, draws, log=self._summary)
        self._status = StatusLine(streams, model) if model else None
        self._rows: Counts | None = None
        self._before: int | None = None  # rows answered by earlier runs
        self._running = set[SequenceId]()
        self._servers: tuple[ServerTokens, ...] = ()
        self._phase = "preparing prompts"
        self._tokens = 0
        self._started = self._latest = 0.0  # when tokens and rows were reported; Ray takes seconds to stop after that

    def emit(self, event: Event) -> None:
        if isinstance(event, (LoadEvent, StageEvent)):
            if self._status:
                self._status.emit(event)
            return
        if self._status:
            self._status.close()
        if isinstance(event, NoticeEvent):
            self._line.erase()
            self._streams.report(event)
            if self._rows:
                self._line.show()
            return
        if isinstance(event, (PromptEvent, TokenEvent)):
            self._running.add(event.sequence)
        elif isinstance(event, (FinishEvent, RefusedEvent)):
            self._running.discard(event.sequence)
        if isinstance(event, PromptEvent) and self._phase != "generating":
            self._phase = "reading prompts" if event.evaluated < event.total else "generating"
            self._started = self._started or time.monotonic()
        elif isinstance(event, TokenEvent):
            self._phase = "generating"
            self._tokens += len(event.tokens)
        elif isinstance(event, ServersEvent):
            self._servers = event.servers
        elif isinstance(event, Counts):
            self._rows = event
            self._before = answered(event) if self._before is None else self._before
        else:
            return
        self._latest = time.monotonic()
        if self._rows:
            self._line.show()

    def close(self) -> None:
        if self._status:
            self._status.close()
        self._line.erase()
        if self._rows and not isinstance(sys.exception(), BrokenPipeError) and not self._streams.is_quiet:
            self._streams.write_line("", self._summary())
            if isinstance(self._rows, RowEvent):
                self._write_errors(self._rows.counts)

    def _write_errors(self, counts: RowCounts) -> None:
        for message in counts.errors:
            self._streams.write_line("  ", message)
        if counts.errors and (more := counts.failed - len(counts.errors)):
            self._streams.write_line("  ", f"and {more} more")

    @property
    def _all_tokens(self) -> int:
        return max(self._tokens, sum(server.tokens for server in self._servers))  # some servers send no ids

    def _summary(self) -> str:
        assert self._rows
        speed, seconds, tokens = "", self._latest - (self._started or self._latest), self._all_tokens
        if tokens and seconds:
            rates = server_rates([server._replace(is_lost=False) for server in self._servers], seconds)
            rate = f"{tokens / seconds:.1f} t/s" + (f": {rates}" if rates else "")
            speed = f"{tokens} tokens in {seconds:.1f} s ({rate})"
        done, total = counter(self._rows)
        of = format_count(total, "question") if isinstance(self._rows, EvalProgress) else total
        return ", ".join(filter(None, [f"{done} of {of} done", *exceptions(self._rows), speed]))

    def _render(self, width: int) -> Iterator[Segment]:
        rows, seconds = self._rows, time.monotonic() - self._started if self._started else 0.0
        assert rows
        done = answered(rows) - (self._before or 0)
        left = self._phase
        if done:
            running = len({each.request for each in self._running})
            left = f"{format_duration(seconds_left(seconds, done, running, rows.total - rows.done))} left"
        speeds = []
        if seconds > 1 and self._all_tokens:
            speed, rates = f"{self._all_tokens / seconds:.1f} tokens/s", server_rates(self._servers, seconds)
            speeds = [f"{speed} ({rates})", speed] if rates else [speed]
        for texts in batch_texts(rows, speeds, left):
            done_text, clauses, tail = texts
            room = width - len(" ".join(filter(None, texts)))
            if room >= 0:
                break
        yield f"{done_text} ", GREEN
        if room > MIN_BAR:
            yield from (*bar(rows.done, rows.total, room - 1), (" ", ""))
        yield f"{clauses} " if clauses else "", RED if isinstance(rows, RowEvent) else ""
        yield tail, ""


class StageProgress:
    """Progress of a long operation and its current stage: a bar on a terminal, otherwise a line per minute."""

    def __init__(self, streams: Streams) -> None:
        self._line = Line(streams, self._render, streams.can_redraw, log=self._text)
        self._started = time.monotonic()
        self._stage = StageEvent("", 0, 1)

    def emit(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):  # which is printed next
            self.close()
        elif isinstance(event, StageEvent):
            self._stage = event
            self._line.show(now=True)

    def close(self) -> None:
        self._line.erase()

    def _text(self) -> str:
        return f"{self._stage.done} of {self._stage.total}: {self._stage.stage}"

    def _render(self, width: int) -> Iterator[Segment]:
        stage = self._stage
        yield f"{stage.done:{len(str(stage.total))}}/{stage.total} ", GREEN
        if width >= BAR_COLUMNS:
            yield f"{format_duration(time.monotonic() - self._started)} ", ""
            yield from (*bar(stage.done, stage.total, STAGE_BAR), (" ", ""))
        yield stage.stage, ""


class FileProgress(AbstractContextManager["FileProgress"]):
    """Progress of files: a bar for each stage on a terminal, otherwise lines at its start, every minute and its end."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._line = Line(streams, self._render, streams.can_redraw)
        self._current = ("", 0, 0)  # the stage, its bytes and their total
        self._started: dict[str, tuple[float, int]] = {}  # of each stage: the time, and the bytes there were
        self._shown: dict[str, tuple[float, int]] = {}

    def __exit__(self, *_: object) -> None:
        self.pause()

    def pause(self) -> None:
        self._line.erase()

    def notice(self, event: NoticeEvent) -> None:
        self.pause()
        self._streams.report(f"note: {event.message}: {event.hint}")

    def update(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        self._started.setdefault(stage, (now, done))
        last, shown = self._shown.get(stage, (now - LOG_EVERY_S, 0))
        is_end = done >= total > shown
        self._current = stage, done, total
        if is_end and self._line.draws:
            self._line.keep()
        elif self._line.draws and done < total:
            self._line.show()
        elif not self._line.draws and (is_end or now - last >= LOG_EVERY_S):
            self._streams.report(f"{stage}: {self._text()}")
        if is_end or now - last >= LOG_EVERY_S:
            self._shown[stage] = now, done

    def _render(self, width: int) -> Iterator[Segment]:
        stage, done, total = self._current
        yield f"{stage:<8} ", ""
        if width >= BAR_COLUMNS:
            yield from (*bar(done, total, STAGE_BAR), (" ", ""))
        yield self._text(), ""

    def _text(self) -> str:
        """Bytes done, speed and remaining time: "15 MB of 30 MB, 5 MB/s, 0:03 left"."""
        stage, done, total = self._current
        started, first = self._started[stage]
        seconds = time.monotonic() - started
        text = f"{format_size(done)} of {format_size(total)}"
        if done <= first or seconds <= 0:  # no speed yet
            return text
        speed = (done - first) / seconds
        left = f", {format_duration((total - done) / speed)} left" if done < total else ""
        return f"{text}, {format_size(int(speed))}/s{left}"


def bar(done: int, total: int, width: int) -> Iterator[Segment]:
    filled = min(width, int(width * done / total)) if total else width
    yield "━" * filled, MAGENTA if done < total else GREEN
    yield "━" * (width - filled), GRAY


def batch_texts(event: Counts, speeds: Sequence[str], left: str) -> Iterator[tuple[str, str, str]]:
    """Yield rows done, exceptions or a score, and speed and remaining time, each time with less of them.

    `speeds` are ways to state the speed, the longest first.
    """
    finished, total = counter(event)
    done, clauses = f"{finished:{len(str(total))}}/{total}", list(exceptions(event))
    yield from ((done, ", ".join(clauses), f"{speed} {left}") for speed in speeds)
    yield from ((done, ", ".join(clauses[:count]), left) for count in range(len(clauses), 0, -1))
    if isinstance(event, EvalProgress) and event.accuracy is not None:
        accuracy = f"accuracy {event.accuracy:.3f}"
        yield done, accuracy, left
        yield done, accuracy, ""
    yield done, "", left


def counter(event: Counts) -> tuple[int, int]:
    return (event.questions, event.all_questions) if isinstance(event, EvalProgress) else (event.done, event.total)


def seconds_left(seconds: float, done: int, running: int, remaining: int) -> float:
    """Estimate of the time for the remaining rows: those that run now are half done on average."""
    return seconds / (done + running / 2) * max(0.0, remaining - running / 2)


def answered(event: Counts) -> int:
    """The number of rows that took time: errors are mostly found before anything is generated."""
    return event.done - (event.counts.failed if isinstance(event, RowEvent) else 0)


def exceptions(event: Counts) -> Iterator[str]:
    if isinstance(event, RowEvent):
        counts = event.counts
        named = ((counts.failed, "failed"), (counts.truncated, "truncated"), (counts.undecided, "undecided"))
        yield from (f"{count} {text}" for count, text in named if count)
        return
    if event.accuracy is not None and event.interval is not None:
        low, high = event.interval
        yield f"accuracy {event.accuracy:.3f} ({low:.3f} to {high:.3f})"
    for share, text in ((event.no_answer, "no answer"), (event.cut_off, "truncated")):
        if share:
            yield f"{share:.0%} {text}"
    if event.skipped:
        yield f"{event.skipped} skipped"
