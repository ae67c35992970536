"""A terminal emulator: its screen with the scrollback."""

from collections.abc import Callable
from io import StringIO
from typing import Any

import pyte
from rich.segment import Segment, Segments

from cerebrum_cli.terminal.markdown.blocks import read_blocks
from cerebrum_cli.terminal.markdown.renderer import render_rows
from cerebrum_cli.terminal.styles import styled_console


class Screen:
    """A screen fed with a program's output; `lines` includes the scrollback."""

    def __init__(self, columns: int, rows: int, reply: Callable[[str], object] | None = None) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        if reply:  # replies to queries, such as the cursor position
            self._screen.write_process_input = reply
        self._stream = pyte.ByteStream(self._screen)

    def feed(self, data: bytes) -> None:
        self._stream.feed(data)

    def resize(self, columns: int, rows: int) -> None:
        """Resize the window; lines are truncated, not rewrapped."""
        self._screen.resize(rows, columns)

    @property
    def lines(self) -> list[str]:
        """Lines from the start of the scrollback, without trailing spaces and trailing empty lines."""
        lines = ["".join(cell.data for cell in row).rstrip() for row in self._rows()]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def visible_lines(self) -> list[str]:
        """Lines of the window, without the scrollback."""
        return self.lines[self.scrolled_rows :]

    @property
    def styled_cells(self) -> list[tuple[Any, ...]]:
        return [tuple(cell for cell in row if cell.data.strip()) for row in self._rows()][: len(self.lines)]

    @property
    def scrolled_rows(self) -> int:
        return len(self._screen.history.top)

    def _rows(self) -> list[list[Any]]:
        screen = self._screen
        rows = [*screen.history.top, *(screen.buffer[row] for row in range(screen.lines))]
        return [[row[column] for column in range(screen.columns)] for row in rows]

    @property
    def cursor(self) -> tuple[int, int]:
        """Column of the cursor, and its row counted from the start of the scrollback."""
        return self._screen.cursor.x, self._screen.cursor.y + len(self._screen.history.top)

    @property
    def cursor_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)


class ScreenFile(StringIO):
    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.screen = Screen(columns, rows)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.screen.feed(text.replace("\n", "\r\n").encode())
        return super().write(text)


def render_whole(text: str, columns: int, rows: int) -> Screen:
    file = ScreenFile(columns, rows)
    console = styled_console(file, width=columns, height=rows)
    for row in render_rows(console, read_blocks(text)):
        console.print(Segments([*row, Segment.line()]), end="")
    return file.screen


def rendered_lines(text: str, columns: int, rows: int) -> list[str]:
    return render_whole(text, columns, rows).lines
