"""Render streaming Markdown: print final text once, and redraw only the rest.

A block or list item is final when a complete line of another one follows, a line of code after some lookahead lines.
Rows to be redrawn take at most two thirds of the window, since rows that have scrolled away, as they do when the window
shrinks, cannot be redrawn.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.cells import cell_len, get_character_cell_size
from rich.control import Control
from rich.segment import ControlType, Segment, Segments

from cerebrum_cli.terminal.markdown.code_blocks import (
    END,
    Position,
    Preceding,
    final_position,
    parse,
    slice_tokens,
    split_point,
)
from cerebrum_cli.terminal.markdown.rows import Row, limit_redraw, render_rows

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions

MIN_REDRAW_INTERVAL_S = 1 / 10
MAX_REDRAW_INTERVAL_S = 1.0
MAX_DRAWING_SHARE = 0.015  # of elapsed time: decoding waits for drawing and for the terminal

# A last line of only these characters may become any kind of block: it is not drawn until more of it arrives.
_AMBIGUOUS_LINE = re.compile(r"[\s>]*(?:[-=`~*_#|+: ]*|[0-9]+[.)]?\s*)")


class MarkdownStream:
    """Render Markdown text to a console as it arrives."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # text not yet final, from the last split point
        self._preceding = Preceding()
        self._position = Position()  # end of the printed text
        self._drawn_rows: list[str] = []  # rows on the screen to be erased
        self._drawn_width = 0
        self._next_draw = 0.0
        self._draw_seconds = 0.0

    def feed(self, text: str) -> None:
        """Add text, and draw it if enough time has passed since the last drawing, given its cost."""
        self._text += text.replace("\r", "")
        start = time.monotonic()
        if start >= self._next_draw:
            self._draw(self._console.options)
            end = time.monotonic()
            # A drawing that costs far more than the last is an outlier, such as the first use of a lexer.
            self._draw_seconds = min(end - start, 3 * self._draw_seconds + 0.001)
            self._next_draw = end + max(
                MIN_REDRAW_INTERVAL_S, min(self._draw_seconds / MAX_DRAWING_SHARE, MAX_REDRAW_INTERVAL_S)
            )

    def close(self) -> None:
        options = self._console.options
        with self._console:
            self._erase(options)
            self._print(render_rows(self._console, options, self._unprinted_tokens(self._text)))
        self._text, self._preceding, self._position = "", Preceding(), Position()

    def _draw(self, options: ConsoleOptions) -> None:
        max_rows = max(1, (options.size.height - 1) * 2 // 3)
        with self._console:  # one write avoids flicker
            self._erase(options)
            self._print_final(options)
            tokens = limit_redraw(self._unprinted_tokens(_without_ambiguous_line(self._text)), max_rows)
            shown = render_rows(self._console, options, tokens)[-max_rows:]
            self._drawn_rows = ["".join(text for text, _, _ in row) for row in shown]
            self._print(map(_without_autowrap, shown, self._drawn_rows))
        self._drawn_width = options.max_width

    def _print_final(self, options: ConsoleOptions) -> None:
        """Print what is final according to complete lines: `#` may become `#include`."""
        complete = self._text[: self._text.rfind("\n") + 1]
        tokens = parse(complete, self._preceding)
        final = final_position(tokens)
        if final <= self._position:
            return
        self._print(render_rows(self._console, options, slice_tokens(tokens, self._position, final, self._preceding)))
        line, self._position, self._preceding = split_point(tokens, final, self._preceding)
        self._text = "\n".join(self._text.split("\n")[line:])

    def _unprinted_tokens(self, text: str) -> list[Token]:
        return slice_tokens(parse(text, self._preceding), self._position, END, self._preceding)

    def _erase(self, options: ConsoleOptions) -> None:
        """Erase the drawn rows, which a narrower terminal has wrapped."""
        width = options.max_width
        row_count = len(self._drawn_rows)
        if width < self._drawn_width:
            row_count = sum(wrapped_row_count(text, width) for text in self._drawn_rows)
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * min(row_count, options.size.height - 1)
        if up:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up))
        self._drawn_rows = []

    def _print(self, rows: Iterable[Row]) -> None:
        self._console.print(Segments([segment for row in rows for segment in (*row, Segment.line())]), end="")


def _mode(code: str) -> Segment:
    return Segment(code, None, [(ControlType.BELL,)])  # a control that rich does not define


AUTOWRAP_OFF, AUTOWRAP_ON = _mode("\x1b[?7l"), _mode("\x1b[?7h")

# Joined, flag, skin-tone and combining characters: terminals disagree about their width.
_CLUSTER = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0590-\u1aff\u1ab0-\u1aff\u1dc0-\u1dff\u200b-\u200f\u20d0-\u20ff"
    "\ua800-\uabff\ud7b0-\ud7ff\ufe00-\ufe0f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0000-\U000e01ef]"
)


def _without_autowrap(row: Row, text: str) -> Row:
    """Turn off autowrap for a row of uncertain width: it must take one row to be erased."""
    return [AUTOWRAP_OFF, *row, AUTOWRAP_ON] if _CLUSTER.search(text) else row


def _without_ambiguous_line(text: str) -> str:
    """Drop a last line that may still become any kind of block."""
    end = text.rfind("\n") + 1
    return text[:end] if _AMBIGUOUS_LINE.fullmatch(text, end) else text


def wrapped_row_count(text: str, width: int) -> int:
    """Number of rows that a row wraps to; a wide character is never split."""
    if cell_len(text) <= width:
        return 1
    count, column = 1, 0
    for character in text:
        size = get_character_cell_size(character)
        if column + size > width:
            count, column = count + 1, 0
        column += size
    return count
