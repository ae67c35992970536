"""A terminal's screen with its scrollback, as a person would read it."""

from __future__ import annotations

from io import StringIO

import pyte
from rich.console import Console
from rich.markdown import Markdown


class Screen:
    """Feed it what a program writes; `lines` is all that was ever shown and stayed."""

    def __init__(self, columns: int, rows: int) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self._screen)

    def feed(self, data: bytes) -> None:
        """Take bytes as a terminal does, line breaks by themselves."""
        self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        """The lines from the first on, without trailing space; empty ones at the end are left out."""
        screen = self._screen
        rows = [*screen.history.top, *(screen.buffer[row] for row in range(screen.lines))]
        lines = ["".join(row[column].data for column in range(screen.columns)).rstrip() for row in rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

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


def at_once(text: str, columns: int, rows: int) -> list[str]:
    """Return the lines of rich's own rendering of the whole."""
    file = ScreenFile(columns, rows)
    Console(file=file, width=columns, height=rows).print(Markdown(text, hyperlinks=False))
    return file.screen.lines
