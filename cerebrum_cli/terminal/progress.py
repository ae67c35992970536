"""Progress of long operations on standard error of a terminal, and their interruption."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import CerebrumError, Interrupted
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    PromptEvent,
    RefusedEvent,
    SequenceId,
    ServersEvent,
    StageEvent,
    TokenEvent,
)
from cerebrum_cli.core.row_events import RowEvent
from cerebrum_cli.core.text import format_duration
from cerebrum_cli.terminal.interrupts import Signals, ignore
from cerebrum_cli.terminal.status_line import LiveLine, Segments, StatusLine, file_bars
from cerebrum_cli.terminal.streams import Streams

if TYPE_CHECKING:
    from rich.progress import Progress

MIN_BAR = 8  # columns


class BatchProgress:
    """Progress of a batch or an evaluation: a bar if `draws`, and a summary line at the end.

    A status line shows the loading of `model`, if given.
    """

    def __init__(self, streams: Streams, draws: bool, model: str | None = None) -> None:
        self._streams = streams
        self._draws = draws
        self._line = LiveLine(streams, self.render)
        self._status = StatusLine(streams, model or "", is_hidden=model is None)
        self._rows: RowEvent | None = None
        self._before = 0  # rows answered by earlier runs
        self._running = Counter[SequenceId]()  # tokens of each sequence so far
        self._elsewhere = 0  # tokens without events
        self._phase = "preparing prompts"
        self._tokens = 0
        self._started = self._latest = 0.0  # when tokens and rows were reported; Ray takes seconds to stop after that
        self._began = 0.0  # when rows were reported first: some are answered without tokens

    def emit(self, event: Event) -> None:
        if isinstance(event, (LoadEvent, StageEvent)):
            self._status.emit(event)
            return
        self._status.erase()
        if isinstance(event, NoticeEvent):
            self._line.erase()
            self._streams.note(event)
        else:
            self._count(event)
        if self._rows and self._draws:
            self._line.show()

    def _count(self, event: Event) -> None:
        self._latest = time.monotonic()
        match event:
            case PromptEvent(sequence, evaluated, total):
                self._running[sequence] += 0
                if self._phase != "generating":
                    self._phase = "reading prompts" if evaluated < total else "generating"
                    self._started = self._started or self._latest
            case TokenEvent(sequence):
                self._phase = "generating"
                self._tokens += len(event.tokens)
                self._running[sequence] += len(event.tokens)
            case FinishEvent(sequence) | RefusedEvent(sequence):
                counted = self._running.pop(sequence, 0)
                if isinstance(event, FinishEvent) and not event.has_all_tokens:  # it came without some, or all
                    self._tokens += event.completion_tokens - counted
            case ServersEvent(tokens):
                self._elsewhere = tokens
            case RowEvent():
                if self._rows is None:
                    self._before = event.answered
                    self._began = self._latest
                self._rows = event

    def close(self) -> None:
        self._status.erase()
        self._line.erase()
        if self._rows is None or isinstance(sys.exception(), BrokenPipeError) or self._streams.is_quiet:
            return
        self._streams.note(self._summary())
        counts = self._rows.counts
        for message in counts.errors:
            self._streams.note(f"  {message}")
        more = counts.failed - len(counts.errors)
        if counts.errors and more:
            self._streams.note(f"  and {more} more")

    @property
    def _all_tokens(self) -> int:
        return self._tokens + self._elsewhere

    def _summary(self) -> str:
        assert self._rows
        parts = [f"{self._rows.done} of {self._rows.total} done", *self._rows.counts.clauses]
        if self._rows.earlier:
            parts[0] += f" ({self._rows.earlier} by an earlier run)"
        if self._started and self._all_tokens and self._latest > self._started:
            tokens, seconds = self._all_tokens, self._latest - self._started
            parts.append(f"{tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f} t/s)")
        elif not self._started and (speed := self._speed_text(self._latest - self._began)):
            parts.append(speed)
        return ", ".join(parts)

    def render(self, width: int) -> Segments:
        rows = self._rows
        assert rows
        seconds = time.monotonic() - (self._started or self._began)
        left = self._phase
        if done := rows.answered - self._before:
            running = len({sequence.request for sequence in self._running})
            left = f"{format_duration(seconds_left(seconds, done, running, rows.total - rows.done))} left"
        segments = (
            (f"{rows.done:{len(str(rows.total))}}/{rows.total}", "green"),
            (left, ""),
            (", ".join(rows.counts.clauses), "red"),
            (self._speed_text(seconds), ""),
        )
        for text, color in segments:
            if text:
                yield f"{text} ", color
                width -= len(text) + 1
        if width >= MIN_BAR:
            yield from bar(rows.done, rows.total, width)

    def _speed_text(self, seconds: float) -> str:
        """The speed, of rows if there are no tokens; empty in the first second."""
        assert self._rows
        done = self._rows.answered - self._before
        if seconds <= 1 or not (self._all_tokens or done):
            return ""
        return f"{self._all_tokens / seconds:.1f} tokens/s" if self._all_tokens else f"{done / seconds:.1f} rows/s"


class FileProgress(AbstractContextManager["FileProgress"]):
    """Progress of files on a terminal: a bar for each stage, which stays when the stage is done."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._bar: Progress | None = None
        self._stage, self._done = "", 0  # bytes

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Erase the bar of a stage that is not done."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def notice(self, event: NoticeEvent) -> None:
        self.close()
        self._streams.note(NoticeEvent(f"{event.message}: {event.hint}"))

    def update(self, stage: str, done: int, total: int) -> None:
        if not self._streams.can_redraw:
            return
        if stage != self._stage:
            self.close()
            self._stage, self._done = stage, 0
        if self._done >= total > 0:
            return
        self._done = done
        if self._bar is None:
            self._bar = file_bars(self._streams)
            self._bar.add_task(stage, total=total, completed=done)
        [task] = self._bar.task_ids
        self._bar.update(task, total=total, completed=done)
        self._bar.live.transient = done < total
        if done >= total:
            self.close()


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """Raise Interrupted with a hint on a signal. Cleanup then finishes, unless two more signals come."""
    signals = Signals(hint=hint)
    finish = signals.exit_on_second(ignore)
    stopped_by: int | None = None

    def interrupt(signum: int) -> None:
        nonlocal stopped_by
        if stopped_by is None:
            stopped_by = signum
            raise KeyboardInterrupt  # not caught by a library's `except Exception`
        finish(signum)

    with signals, signals.acting(interrupt):
        try:
            yield
        except (KeyboardInterrupt, CerebrumError) as error:
            if isinstance(error, CerebrumError) and stopped_by is None:
                raise
            # Some libraries catch KeyboardInterrupt: fsspec then states that a file does not exist.
            raise Interrupted(stopped_by or signal.SIGINT, hint) from None


def bar(done: int, total: int, width: int) -> Segments:
    filled = min(width, int(width * done / total)) if total else width
    yield "━" * filled, "magenta" if done < total else "green"
    yield "━" * (width - filled), "gray"


def seconds_left(seconds: float, done: int, running: int, remaining: int) -> float:
    """Estimate of the time for the remaining rows: those that run now are half done on average."""
    return seconds / (done + running / 2) * max(0.0, remaining - running / 2)
