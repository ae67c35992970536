"""Render streaming Markdown: print final text once, and redraw only rows that changed.

A block or list item is final when a complete line of another one follows, a line of code after some lookahead lines.
Rows to be redrawn take at most two thirds of the window, since rows that have scrolled away, as they do when the window
shrinks, cannot be redrawn.
"""

from __future__ import annotations

import re
import time
from io import StringIO
from typing import TYPE_CHECKING

from rich.cells import cell_len, get_character_cell_size
from rich.control import Control
from rich.segment import ControlType, Segment, Segments

from cerebrum_cli.terminal.markdown.code_blocks import (
    END,
    Preceding,
    TextPosition,
    final_position,
    parse,
    slice_tokens,
    split_point,
)
from cerebrum_cli.terminal.markdown.elements import STYLES, Row, limit_redraw, render_rows

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions

MIN_REDRAW_INTERVAL_S = 1 / 10
MAX_REDRAW_INTERVAL_S = 1.0
MAX_DRAWING_SHARE = 0.015  # of elapsed time: decoding waits for drawing and for the terminal

# A last line of only these characters may become any kind of block: it is not drawn until more of it arrives. Both
# parts match spaces: without possessive quantifiers, matching would be quadratic in their number.
_AMBIGUOUS_LINE = re.compile(r"[\s>]*+(?:[-=`~*_#|+: ]*+|[0-9]++[.)]?\s*+)")


class MarkdownStream:
    """Render Markdown text to a console as it arrives."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # text not yet final, from the last split point
        self._preceding = Preceding()
        self._position = TextPosition()  # end of the printed text
        self._drawn: list[Row] = []  # rows on the screen that may still change
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
        self._show(options, render_rows(self._console, options, self._unprinted_tokens(self._text)), [])
        self._text, self._preceding, self._position = "", Preceding(), TextPosition()

    def _draw(self, options: ConsoleOptions) -> None:
        max_rows = max(1, (options.size.height - 1) * 2 // 3)
        final = self._take_final(options)
        tokens = limit_redraw(self._unprinted_tokens(_without_ambiguous_line(self._text)), max_rows)
        self._show(options, final, render_rows(self._console, options, tokens)[-max_rows:])

    def _take_final(self, options: ConsoleOptions) -> list[Row]:
        """Rows that are final according to complete lines: `#` may become `#include`."""
        tokens = parse(self._text[: self._text.rfind("\n") + 1], self._preceding)
        final = final_position(tokens)
        if final <= self._position:
            return []
        rows = render_rows(self._console, options, slice_tokens(tokens, self._position, final, self._preceding))
        line, self._position, self._preceding = split_point(tokens, final, self._preceding)
        self._text = "\n".join(self._text.split("\n")[line:])
        return rows

    def _unprinted_tokens(self, text: str) -> list[Token]:
        return slice_tokens(parse(text, self._preceding), self._position, END, self._preceding)

    def _show(self, options: ConsoleOptions, final: list[Row], changing: list[Row]) -> None:
        """Replace the drawn rows, except the first ones that are the same."""
        rows = [*final, *map(_without_autowrap, changing)]
        same = 0
        if options.max_width == self._drawn_width:
            pairs = enumerate(zip(self._drawn, rows, strict=False))
            same = next((at for at, (old, new) in pairs if old != new), min(len(self._drawn), len(rows)))
        if same < max(len(self._drawn), len(rows)):
            with self._console:  # one write
                self._console.print(Segments([FRAME_BEGIN]), end="")
                self._erase(options, same)
                lines = [segment for row in rows[same:] for segment in (*row, Segment.line())]
                self._console.print(Segments([*lines, FRAME_END]), end="")
        self._drawn, self._drawn_width = rows[len(final) :], options.max_width

    def _erase(self, options: ConsoleOptions, same: int) -> None:
        """Erase the drawn rows from the first that changed; a narrower terminal has wrapped them."""
        width, rows = options.max_width, self._drawn[same:]
        row_count = len(rows)
        if width < self._drawn_width:
            row_count = sum(wrapped_row_count(row_text(row), width) for row in rows)
        # Row by row: tmux keeps a copy of a screen that is erased as a whole.
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * min(row_count, options.size.height - 1)
        if up:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, *up))


def rendered(text: str, width: int) -> str:
    """A complete document as a terminal shows it, with its styles as control sequences."""
    from rich.console import Console

    file = StringIO()
    console = Console(file=file, width=width, force_terminal=True, theme=STYLES)
    rows = render_rows(console, console.options, slice_tokens(parse(text), TextPosition(), END))
    console.print(Segments([segment for row in rows for segment in (*row, Segment.line())]), end="")
    return file.getvalue()


def _mode(code: str) -> Segment:
    return Segment(code, None, [(ControlType.BELL,)])  # a control that rich does not define


AUTOWRAP_OFF, AUTOWRAP_ON = _mode("\x1b[?7l"), _mode("\x1b[?7h")
# Terminals that know synchronized output show a frame in one step; others ignore it, and still hide the cursor.
FRAME_BEGIN, FRAME_END = _mode("\x1b[?2026h\x1b[?25l"), _mode("\x1b[?25h\x1b[?2026l")

# Joined, flag, skin-tone and combining characters: terminals disagree about their width.
_CLUSTER = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0590-\u1aff\u1ab0-\u1aff\u1dc0-\u1dff\u200b-\u200f\u20d0-\u20ff"
    "\ua800-\uabff\ud7b0-\ud7ff\ufe00-\ufe0f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0000-\U000e01ef]"
)


def row_text(row: Row) -> str:
    return "".join(segment.text for segment in row if not segment.control)


def _without_autowrap(row: Row) -> Row:
    """Turn off autowrap for a row of uncertain width: it must take one row to be erased."""
    return [AUTOWRAP_OFF, *row, AUTOWRAP_ON] if _CLUSTER.search(row_text(row)) else row


def _without_ambiguous_line(text: str) -> str:
    """Drop a last line that may still become any kind of block."""
    end = text.rfind("\n") + 1
    return text[:end] if _AMBIGUOUS_LINE.fullmatch(text, end) else text


def wrapped_row_count(text: str, width: int) -> int:
    if cell_len(text) <= width:
        return 1
    count, column = 1, 0
    for character in text:
        size = get_character_cell_size(character)
        if column + size > width:
            count, column = count + 1, 0
        column += size
    return count
