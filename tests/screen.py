"""A terminal's screen with its scrollback, as a person would read it."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from typing import Any

import pyte
from rich.console import Console
from rich.segment import Segment, Segments

from cerebrum_cli.terminal.markdown.code_blocks import END, Position, parse, slice_tokens
from cerebrum_cli.terminal.markdown.rows import render_rows as markdown_rows


class Screen:
    """Feed it what a program writes; `lines` is all that was ever shown and stayed."""

    def __init__(self, columns: int, rows: int, answer: Callable[[str], object] | None = None) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        if answer:  # what a program asks of its terminal, as where the cursor is
            self._screen.write_process_input = answer
        self._stream = pyte.ByteStream(self._screen)

    def feed(self, data: bytes) -> None:
        """Take bytes as a terminal does, line breaks by themselves."""
        self._stream.feed(data)

    def resize(self, columns: int, rows: int) -> None:
        """Make the window another size; lines are cut, not wrapped anew."""
        self._screen.resize(rows, columns)

    @property
    def lines(self) -> list[str]:
        """The lines from the first on, without trailing space; empty ones at the end are left out."""
        lines = ["".join(cell.data for cell in row).rstrip() for row in self._rows()]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def styled_cells(self) -> list[tuple[object, ...]]:
        """The lines again, each character with its colours and all else that is to be seen of it."""
        return [tuple(cell for cell in row if cell.data.strip()) for row in self._rows()][: len(self.lines)]

    @property
    def scrolled_rows(self) -> int:
        """How many lines have left the screen, never to be drawn over."""
        return len(self._screen.history.top)

    def _rows(self) -> list[list[Any]]:
        screen = self._screen
        rows = [*screen.history.top, *(screen.buffer[row] for row in range(screen.lines))]
        return [[row[column] for column in range(screen.columns)] for row in rows]

    @property
    def cursor(self) -> tuple[int, int]:
        """The cursor's column, and its line among all `lines`."""
        return self._screen.cursor.x, self._screen.cursor.y + len(self._screen.history.top)

    @property
    def cursor_hidden(self) -> bool:
        """Whether a program has hidden the cursor and not shown it again."""
        return bool(self._screen.cursor.hidden)


class ScreenFile(StringIO):
    """A text stream that is a terminal: what is written appears on a screen."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.screen = Screen(columns, rows)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.screen.feed(text.replace("\n", "\r\n").encode())
        return super().write(text)


def render_whole(text: str, columns: int, rows: int) -> Screen:
    """Return a screen with Markdown rendered as a whole."""
    file = ScreenFile(columns, rows)
    console = Console(file=file, width=columns, height=rows)
    for row in markdown_rows(console, console.options, slice_tokens(parse(text), Position(), END)):
        console.print(Segments([*row, Segment.line()]), end="")
    return file.screen


def rendered_lines(text: str, columns: int, rows: int) -> list[str]:
    """Return the lines of Markdown rendered as a whole."""
    return render_whole(text, columns, rows).lines
