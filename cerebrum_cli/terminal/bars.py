"""Progress on standard error: of a batch, of work in stages, and of files."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.events import Event, NoticeEvent, PromptEvent, RowEvent, ScoreEvent, StageEvent, TokenEvent
from cerebrum_cli.core.text import format_duration, format_size
from cerebrum_cli.terminal.control import strip_controls
from cerebrum_cli.terminal.progress import ECHO_COLUMNS
from cerebrum_cli.terminal.streams import Streams, columns
from cerebrum_cli.terminal.tables import batch_text, counter, exceptions_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG_EVERY_S = 60.0
BATCH_TOKENS = 50  # interval at which a batch's speed is updated
BAR_COLUMNS = 60  # narrowest window with a bar
SCORE_BAR_COLUMNS = 100  # of an evaluation, whose score needs more room
MIN_BAR = 4  # columns


class BatchProgress:
    """Progress of a batch or an evaluation: a bar if `draws`, otherwise a line per minute; a summary line at the end.

    The summary is left out if the reader of the output has closed the pipe.
    """

    def __init__(self, streams: Streams, draws: bool) -> None:
        self._streams = streams
        self._draws = draws
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._is_wide = False
        self._rows: RowEvent | ScoreEvent | None = None
        self._before: int | None = None  # rows done by earlier runs
        self._phase = "preparing prompts"
        self._tokens = 0
        self._started = 0.0
        self._last_log = time.monotonic()

    def emit(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):  # which the bar would overwrite
            self._erase()
        elif isinstance(event, PromptEvent) and self._phase != "generating":
            self._phase = "reading prompts"
            self._update()
        elif isinstance(event, TokenEvent):
            self._phase = "generating"
            self._started = self._started or time.monotonic()
            self._tokens += event.token is not None
            if self._tokens % BATCH_TOKENS == 0:
                self._update()
        elif isinstance(event, (RowEvent, ScoreEvent)):
            self._rows = event
            self._before = event.done if self._before is None else self._before
            self._update()

    def close(self) -> None:
        self._erase()
        if self._rows and not isinstance(sys.exception(), BrokenPipeError):
            self._streams.write_line("", batch_text(self._rows, self._tokens, self._seconds))
            for message in self._rows.counts.errors if isinstance(self._rows, RowEvent) else ():
                self._streams.write_line("  ", message)

    def _erase(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = self._task = None

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started if self._started else 0.0

    def _update(self) -> None:
        rows = self._rows
        if rows is None:
            return
        if self._draws:
            if self._bar is None:
                is_score = isinstance(rows, ScoreEvent)
                self._is_wide = columns(self._streams.err) >= (SCORE_BAR_COLUMNS if is_score else BAR_COLUMNS)
                self._bar = batch_bar(self._streams, self._is_wide, "none" if is_score else "red")
                self._bar.start()
            self._bar.console.width = columns(self._streams.err) - ECHO_COLUMNS
            fields = self._fields(rows, self._bar.console.width)
            if self._task is None:
                self._task = self._bar.add_task("", total=rows.total, completed=rows.done, **fields)
            self._bar.update(self._task, completed=rows.done, **fields)
        elif time.monotonic() - self._last_log >= LOG_EVERY_S:
            self._last_log = time.monotonic()
            self._streams.info(batch_text(rows, self._tokens, self._seconds))

    def _fields(self, rows: RowEvent | ScoreEvent, width: int) -> dict[str, Any]:
        """Texts of the bar's columns; what the width has no room for is left out: first the speed, the score last."""
        finished, total = counter(rows)
        count, done = f"{finished:>{len(str(total))}}/{total}", rows.done - (self._before or 0)
        left = f"{format_duration(self._seconds / done * (rows.total - rows.done))} left" if done else self._phase
        speed = f"{self._tokens / self._seconds:.1f} tokens/s" if self._seconds > 1 else ""
        room = width - len(count) - len(left) - 2 - (MIN_BAR + 2 if self._is_wide else 0)  # each after a space
        first, *others = [*exceptions_text(rows)] or [""]
        if len(first) > room:
            first = first.partition(" (")[0]  # without the interval
        exceptions = ", ".join((first, *fitting(others, room - len(first), 2)))
        speeds = fitting([speed], room - len(exceptions), 0)
        return {"done": count, "exceptions": exceptions, "speed": "".join(speeds), "left": left}


def fitting(texts: Iterable[str], room: int, gap: int) -> Iterator[str]:
    """Yield the texts that fit, each after a gap, until one does not."""
    for text in texts:
        room -= gap + len(text)
        if room < 0:
            return
        yield text


class StageProgress:
    """Progress of a long operation and its current stage: a bar on a terminal, otherwise a line per minute."""

    def __init__(self, streams: Streams, quiet: bool) -> None:
        self._streams = streams
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_log = time.monotonic()

    def emit(self, event: Event) -> None:
        if self._quiet or not isinstance(event, StageEvent):
            return
        if self._streams.can_redraw:
            self._draw(event)
        elif time.monotonic() - self._last_log >= LOG_EVERY_S:
            self._last_log = time.monotonic()
            self._streams.info(f"{event.done} of {event.total}: {event.stage}")

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = self._task = None

    def _draw(self, event: StageEvent) -> None:
        if self._bar is None or self._task is None:
            self._bar = stage_bar(self._streams)
            self._task = self._bar.add_task("", total=event.total)
            self._bar.start()
        self._bar.console.width = columns(self._streams.err) - ECHO_COLUMNS
        self._bar.update(self._task, completed=event.done, total=event.total, description=strip_controls(event.stage))


def stage_bar(streams: Streams) -> Progress:
    """A bar with the current stage and elapsed time; narrow windows show fewer columns."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    shown: list[ProgressColumn] = [MofNCompleteColumn(), TimeElapsedColumn(), BarColumn(20), text]
    is_wide = columns(streams.err) >= BAR_COLUMNS
    console = Console(file=streams.err)
    return Progress(*(shown if is_wide else (shown[0], text)), console=console, transient=True, expand=True)


def batch_bar(streams: Streams, is_wide: bool, style: str) -> Progress:
    """A bar with rows, exceptions or a score in a style, speed and remaining time; fewer columns if not `is_wide`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

    shown: list[ProgressColumn] = [
        TextColumn("{task.fields[done]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[exceptions]}", style=style),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"),
    ]
    console = Console(file=streams.err)
    return Progress(*(shown if is_wide else shown[::2]), console=console, transient=True, expand=is_wide)


class FileProgress:
    """Progress of files: a bar per stage on a terminal, otherwise lines at the start, every minute and at the end."""

    def __init__(self, streams: Streams, quiet: bool) -> None:
        self._streams = streams
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_log: dict[str, tuple[float, int]] = {}
        self._started: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> FileProgress:
        if self._streams.can_redraw and not self._quiet:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bars = Progress(
                TextColumn("{task.description:<9}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._streams.err),
            )
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the bars while a question is asked."""
        if self._bars:
            self._bars.stop()
        yield
        if self._bars:
            self._bars.start()

    def notice(self, event: NoticeEvent) -> None:
        if self._quiet:
            return
        if self._bars:
            self._bars.console.print(
                f"note: {strip_controls(event.message)}: {event.hint}", markup=False, highlight=False
            )
        else:
            self._streams.info(f"note: {event.message}: {event.hint}")

    def update(self, stage: str, done: int, total: int) -> None:
        if self._quiet:
            return
        if self._bars:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(
                    strip_controls(stage), total=total, completed=done
                )  # not counted in the speed
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        started, first = self._started.setdefault(stage, (now, done))
        logged, shown = self._last_log.get(stage, (now - LOG_EVERY_S, 0))
        if shown < total <= done or now - logged >= LOG_EVERY_S:
            self._last_log[stage] = now, done
            speed = _speed_and_remaining_time(done - first, now - started, total - done)
            self._streams.info(f"{stage}: {format_size(done)} of {format_size(total)}{speed}")


def _speed_and_remaining_time(done: int, seconds: float, remaining: int) -> str:
    """Speed and remaining time of a download; empty before the first bytes."""
    if done <= 0 or seconds <= 0:
        return ""
    speed = done / seconds
    return f", {format_size(int(speed))}/s, {remaining / speed / 60:.0f} min left"
