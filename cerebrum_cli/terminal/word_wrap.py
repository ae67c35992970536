"""Break streamed text between words on a terminal, which by itself breaks within them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Self

from cerebrum_cli.terminal.streams import Streams, is_plain_terminal

_WIDE = "\u2e80-\ud7ff\uf900-\ufaff\uff00-\uff60"  # between these characters, any row may end
_PARTS = rf"\n|[ \t]+|[{_WIDE}]|[^\s{_WIDE}]+|\s"  # compiled when it is used: this takes 3 ms
_CODE = ("    ", "\t", "```", "~~~")  # beginnings of lines that are left as they are, since they may be copied
_TAB = 8  # columns


class WordWrap:
    """Follows the cursor through a text that begins at the left edge, and moves a word that would cross the right one.

    A word may have been shown in part: it is erased, and written again on the next row. Lines of code are left to the
    terminal.
    """

    def __init__(self, columns: Callable[[], int]) -> None:
        self._columns = columns
        self._width = columns()
        self._column = 0
        self._word = ""  # the shown part of the last word
        self._line = ""  # the beginning of the line
        self._is_fenced = False

    @classmethod
    def for_output(cls, streams: Streams) -> Self | None:
        """None if the output is no terminal, or one without control sequences."""
        if not streams.out_is_terminal or is_plain_terminal():
            return None
        return cls(lambda: streams.columns)

    def feed(self, text: str) -> str:
        """The text with the line breaks and control sequences that it needs."""
        width = self._columns()
        if width != self._width:  # the terminal has moved what is shown
            self._width, self._word = width, ""
        return "".join(map(self._placed, re.findall(_PARTS, text)))

    def _placed(self, part: str) -> str:
        from rich.cells import cell_len

        if part == "\n":
            self._is_fenced ^= self._line.lstrip().startswith(_CODE[2:])
            self._column, self._word, self._line = 0, "", ""
            return part
        if len(self._line) < self._width:
            self._line += part
        if part.isspace() or re.match(f"[{_WIDE}]", part):
            self._word = ""
            self._advance(part)
            return part
        shown = cell_len(self._word)
        self._word += part
        fits = self._column + cell_len(part) < self._width
        if fits or self._column <= shown or self._is_code:
            self._advance(part)
            return part
        self._column = 0
        self._advance(self._word)
        back = f"\x1b[{shown}D\x1b[K" if shown else ""
        return f"{back}\n{self._word}"

    @property
    def _is_code(self) -> bool:
        return self._is_fenced or self._line.startswith(_CODE)

    def _advance(self, text: str) -> None:
        """Move as a terminal does."""
        from rich.cells import get_character_cell_size

        for char in text:
            cells = _TAB - self._column % _TAB if char == "\t" else get_character_cell_size(char)
            self._column += cells
            if self._column > self._width:
                self._column = cells
