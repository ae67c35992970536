"""Progress on standard error: of a batch, of work in stages, and of files."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from cerebrum_cli.core.events import (
    EvalProgress,
    Event,
    NoticeEvent,
    PromptEvent,
    RowEvent,
    ServersEvent,
    ServerTokens,
    StageEvent,
    TokenEvent,
)
from cerebrum_cli.core.text import format_duration, format_size
from cerebrum_cli.terminal.escapes import strip_controls
from cerebrum_cli.terminal.progress import ECHO_COLUMNS
from cerebrum_cli.terminal.streams import Streams, columns
from cerebrum_cli.terminal.texts import batch_text, counter, exceptions_text, server_rates

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress, TaskID
    from rich.table import Table

LOG_EVERY_S = 60.0
BATCH_TOKENS = 50  # between checks whether a line is due
BAR_COLUMNS = 60  # narrowest window with a bar of stages
MIN_BAR = 8  # columns of a batch's bar
DRAWS_PER_S = 10


class BatchProgress:
    """Progress of a batch or an evaluation: a bar if `draws`, otherwise a line per minute; a summary line at the end.

    The summary is left out if the reader of the output has closed the pipe.
    """

    def __init__(self, streams: Streams, draws: bool) -> None:
        self._streams = streams
        self._draws = draws
        self._line: Live | None = None
        self._rows: RowEvent | EvalProgress | None = None
        self._before: int | None = None  # rows done by earlier runs
        self._servers: tuple[ServerTokens, ...] = ()
        self._rates = ""  # of the servers, when they were last reported
        self._phase = "preparing prompts"
        self._tokens = 0
        self._started = 0.0
        self._last_log = time.monotonic()

    def emit(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):  # which the bar would overwrite
            self._erase()
        elif isinstance(event, PromptEvent) and self._phase != "generating":
            self._phase = "reading prompts"
            self._started = self._started or time.monotonic()
            self._update()
        elif isinstance(event, TokenEvent):
            self._phase = "generating"
            self._tokens += event.token is not None
            if self._tokens % BATCH_TOKENS == 0:
                self._update()
        elif isinstance(event, ServersEvent):
            self._servers = event.servers
            if seconds := self._seconds:
                total = sum(server.tokens for server in event.servers) / seconds
                self._rates = f"{total:.1f} tokens/s ({server_rates(event.servers, seconds)})"
            self._update()
        elif isinstance(event, (RowEvent, EvalProgress)):
            self._rows = event
            self._before = event.done if self._before is None else self._before
            self._update()

    def close(self) -> None:
        self._erase()
        if self._rows and not isinstance(sys.exception(), BrokenPipeError):
            self._streams.write_line("", batch_text(self._rows, self._tokens, self._seconds, self._servers))
            for message in self._rows.counts.errors if isinstance(self._rows, RowEvent) else ():
                self._streams.write_line("  ", message)

    def _erase(self) -> None:
        if self._line:
            self._line.stop()
            self._line = None

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started if self._started else 0.0

    def _update(self) -> None:
        if self._rows is None:
            return
        if self._draws:
            if self._line is None:
                self._line = self._start_line()
        elif time.monotonic() - self._last_log >= LOG_EVERY_S:
            self._last_log = time.monotonic()
            self._streams.info(batch_text(self._rows, self._tokens, self._seconds, self._servers))

    def _start_line(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self._streams.err)

        def draw() -> Table:
            console.width = columns(self._streams.err) - ECHO_COLUMNS
            assert self._rows
            return self._draw(self._rows, console.width)

        line = Live(get_renderable=draw, console=console, refresh_per_second=DRAWS_PER_S, transient=True)
        line.start(refresh=True)
        return line

    def _draw(self, rows: RowEvent | EvalProgress, width: int) -> Table:
        seconds, done = self._seconds, rows.done - (self._before or 0)
        left = f"{format_duration(seconds / done * (rows.total - rows.done))} left" if done else self._phase
        speeds = (
            [each for each in (self._rates, f"{self._tokens / seconds:.1f} tokens/s") if each] if seconds > 1 else []
        )
        return batch_line(rows, speeds, left, width)


class StageProgress:
    """Progress of a long operation and its current stage: a bar on a terminal, otherwise a line per minute."""

    def __init__(self, streams: Streams, quiet: bool) -> None:
        self._streams = streams
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_log = time.monotonic()

    def emit(self, event: Event) -> None:
        if isinstance(event, NoticeEvent):  # which the bar would overwrite
            self.close()
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


def batch_line(event: RowEvent | EvalProgress, speeds: Sequence[str], left: str, width: int) -> Table:
    """The texts of a batch's progress that fit a width, and a bar if it fits too."""
    from rich.progress_bar import ProgressBar
    from rich.table import Column, Table
    from rich.text import Text

    versions = [(texts, len(" ".join(filter(None, texts)))) for texts in batch_texts(event, speeds, left)]
    texts, length = next((version for version in versions if version[1] <= width), versions[-1])
    styles = ("progress.download", "red" if isinstance(event, RowEvent) else "", "", "")
    cells: list[Text | ProgressBar] = [Text(text, style) for text, style in zip(texts, styles, strict=True) if text]
    if (room := width - length - 1) >= MIN_BAR:
        cells.insert(1, ProgressBar(event.total, event.done, room))
    line = Table.grid(*(Column(no_wrap=True) for _ in cells), padding=(0, 1))
    line.add_row(*cells)
    return line


def batch_texts(
    event: RowEvent | EvalProgress, speeds: Sequence[str], left: str
) -> Iterator[tuple[str, str, str, str]]:
    """Yield rows done, exceptions or a score, speed and remaining time, each time with less of them.

    `speeds` are ways to state the speed, the longest first.
    """
    finished, total = counter(event)
    done, clauses = f"{finished:{len(str(total))}}/{total}", list(exceptions_text(event))
    for speed in speeds:
        yield done, ", ".join(clauses), speed, left
    for count in range(len(clauses), 0, -1):
        yield done, ", ".join(clauses[:count]), "", left
    if isinstance(event, EvalProgress) and event.accuracy is not None:
        accuracy = f"accuracy {event.accuracy:.3f}"
        yield done, accuracy, "", left
        yield done, accuracy, "", ""
    yield done, "", "", left


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
