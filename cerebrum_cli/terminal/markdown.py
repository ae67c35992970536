"""Markdown that streams: finished blocks are printed once, only the open one is redrawn.

A block of Markdown is finished when a whole line of another one stands after it. What stands on the screen of the
open block never exceeds the window, since what has scrolled away cannot be drawn over.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from rich.control import Control
from rich.markdown import Markdown
from rich.segment import ControlType, Segment, Segments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

REDRAW_EVERY_S = 1 / 15

# What stands in for the block before, whose kind decides whether rich puts an empty line between; never shown.
RULE, OTHER = "---\n\n", "x\n\n"


class MarkdownStream:
    """Markdown text in, a growing picture on a console out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parser = MarkdownIt().enable("strikethrough").enable("table")
        self._open = ""
        self._before = ""
        self._drawn_rows = 0
        self._drawn_at = 0.0

    def feed(self, text: str) -> None:
        """Add text, and draw it if the last drawing is old enough."""
        self._open += text
        if time.monotonic() - self._drawn_at >= REDRAW_EVERY_S:
            self._draw()

    def close(self) -> None:
        """Print what is still open, for good."""
        with self._console:
            self._erase()
            self._print(self._rows(self._open))
        self._open = ""

    def _draw(self) -> None:
        with self._console:  # one write, so that nothing flickers
            self._erase()
            self._finish_blocks()
            rows = self._rows(self._open)[-max(1, self._console.height - 1) :]
            self._print(rows)
        self._drawn_rows = len(rows)
        self._drawn_at = time.monotonic()

    def _finish_blocks(self) -> None:
        """Print all blocks but the last, as far as whole lines tell: `#` may become `#include`."""
        whole = self._open[: self._open.rfind("\n") + 1]
        blocks = [(token, token.map[0]) for token in self._parser.parse(whole) if token.level == 0 and token.map]
        if len(blocks) < 2:
            return
        lines = self._open.split("\n")
        for (token, begin), (_, end) in pairwise(blocks):
            self._print(self._rows("\n".join(lines[begin:end])))
            self._before = RULE if token.type == "hr" else OTHER
        self._open = "\n".join(lines[blocks[-1][1] :])

    def _rows(self, block: str) -> list[list[Segment]]:
        return self._rendered(self._before + block)[len(self._rendered(self._before)) :]

    def _rendered(self, text: str) -> list[list[Segment]]:
        rows = self._console.render_lines(Markdown(text, hyperlinks=False), pad=False)
        return [_without_padding(row) for row in rows]

    def _erase(self) -> None:
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * self._drawn_rows
        if up:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up))
        self._drawn_rows = 0

    def _print(self, rows: Iterable[list[Segment]]) -> None:
        self._console.print(Segments([segment for row in rows for segment in (*row, Segment.line())]), end="")


def _without_padding(row: list[Segment]) -> list[Segment]:
    """Return a row up to its last visible character: nobody wants spaces with what is copied from the screen."""
    while row and not _is_painted(row[-1]):
        text, style, control = row.pop()
        if text := text.rstrip():
            return [*row, Segment(text, style, control)]
    return row


def _is_painted(segment: Segment) -> bool:
    return segment.style is not None and segment.style.bgcolor is not None
