"""What is redrawn on standard error while something runs, by rich: a line, or the bars of files. A pipe gets none."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cerebrum_cli.core.text import strip_controls
from cerebrum_cli.terminal.streams import Streams, columns

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress
    from rich.text import Text

ECHO_COLUMNS = 3  # columns left free for the ^C that a terminal echoes, which must not wrap
DRAWS_PER_S = 10
BAR_COLUMNS, SPEED_COLUMNS = 60, 44  # of a terminal that has room for a bar, and for the speed

Segment = tuple[str, str]  # a text and its color, which may be empty
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
        segments = [(strip_controls(text), color) for text, color in self._render(width)]
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
    from rich.console import Console

    return Console(file=ErrorFile(streams), force_terminal=True, color_system="standard")


class ErrorFile(io.StringIO):
    """Standard error as the file of a console, whose failures are ignored."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self._streams = streams

    def write(self, text: str) -> int:
        self._streams.draw(text, is_styled=True)
        return len(text)
