"""Markdown that streams: finished blocks are printed once, only the open one is redrawn.

A block of Markdown is finished when another has begun after it. What stands on the screen of the open block never
exceeds the window, since what has scrolled away cannot be drawn over.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments

if TYPE_CHECKING:
    from collections.abc import Iterable

REDRAW_EVERY_S = 1 / 15
FIRST = "x\n\n"  # a paragraph put before a later block, so that it is spaced as in the whole, and taken off again


class MarkdownStream:
    """Markdown text in, a growing picture on a console out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parser = MarkdownIt().enable("strikethrough").enable("table")
        self._open = ""
        self._printed = False
        self._drawn_at = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible")

    def feed(self, text: str) -> None:
        """Add text, and draw it if the last drawing is old enough."""
        self._open += text
        if time.monotonic() - self._drawn_at >= REDRAW_EVERY_S:
            self._draw()

    def close(self) -> None:
        """Print what is still open, for good."""
        self._live.stop()
        if self._open.strip():
            self._print(self._open)
        self._open = ""

    def _draw(self) -> None:
        self._live.start()
        lines = self._open.splitlines(keepends=True)
        starts = [token.map[0] for token in self._parser.parse(self._open) if token.level == 0 and token.map]
        cut = starts[-1] if starts else 0
        for begin, end in pairwise(starts):
            if begin < end <= cut:
                self._print("".join(lines[begin:end]))
        self._open = "".join(lines[cut:])
        height = max(1, self._console.height - 1)
        rows = self._rows(self._open)[-height:]
        self._live.update(Segments(_flat(rows)), refresh=True)
        self._drawn_at = time.monotonic()

    def _print(self, block: str) -> None:
        self._live.update("", refresh=False)
        self._console.print(Segments(_flat(self._rows(block))), end="")
        self._printed = True

    def _rows(self, block: str) -> list[list[Segment]]:
        source = FIRST + block if self._printed else block
        rows = self._console.render_lines(Markdown(source, hyperlinks=False), pad=False)
        return rows[1:] if self._printed else rows


def _flat(rows: Iterable[list[Segment]]) -> list[Segment]:
    return [segment for row in rows for segment in (*row, Segment.line())]
