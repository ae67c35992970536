"""Markdown that streams: what is settled is printed once, only what is open is redrawn.

Blocks are settled when a whole line of another one stands after them, and so are items of a list, and lines of code
some lines on. What stands on the screen of the open rest fits the window, also one that has become a third smaller,
since what has scrolled away cannot be drawn over.
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
    drop_printed,
    final_position,
    parse,
    slice_tokens,
)
from cerebrum_cli.terminal.markdown.rows import Row, limit_redraw, render_rows

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions

MIN_REDRAW_INTERVAL_S = 1 / 10
MAX_REDRAW_INTERVAL_S = 1.0
MAX_DRAWING_SHARE = 0.015  # of all time: decoding waits while this draws, and for the terminal too

# A last line that holds nothing but such may yet become anything: it is not drawn before more of it is there.
_AMBIGUOUS_LINE = re.compile(r"[\s>]*(?:[-=`~*_#|+: ]*|[0-9]+[.)]?\s*)")


class MarkdownStream:
    """Markdown text in, a growing picture on a console out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # what is open, from a place where it can be cut
        self._preceding = Preceding()
        self._position = Position()  # up to where the text is printed for good
        self._drawn_rows: list[str] = []  # the rows on the screen that go away again
        self._drawn_width = 0
        self._next_draw = 0.0
        self._draw_seconds = 0.0

    def feed(self, text: str) -> None:
        """Add text, and draw it if the last drawing is old enough for what it cost."""
        self._text += text.replace("\r", "")
        began = time.monotonic()
        if began >= self._next_draw:
            self._draw(self._console.options)
            ended = time.monotonic()
            # One drawing that costs far more than the last is taken for an accident: a lexer had to be loaded.
            self._draw_seconds = min(ended - began, 3 * self._draw_seconds + 0.001)
            self._next_draw = ended + max(
                MIN_REDRAW_INTERVAL_S, min(self._draw_seconds / MAX_DRAWING_SHARE, MAX_REDRAW_INTERVAL_S)
            )

    def close(self) -> None:
        """Print what is still open, for good."""
        options = self._console.options
        with self._console:
            self._erase(options)
            self._print(render_rows(self._console, options, self._unprinted_tokens(self._text, END)))
        self._text, self._preceding, self._position = "", Preceding(), Position()

    def _draw(self, options: ConsoleOptions) -> None:
        room = max(1, (options.size.height - 1) * 2 // 3)
        with self._console:  # one write, so that nothing flickers
            self._erase(options)
            self._print_final(options)
            tokens = limit_redraw(self._unprinted_tokens(_without_ambiguous_line(self._text), END), room)
            shown = render_rows(self._console, options, tokens)[-room:]
            self._drawn_rows = ["".join(text for text, _, _ in row) for row in shown]
            self._print(map(_without_autowrap, shown, self._drawn_rows))
        self._drawn_width = options.max_width

    def _print_final(self, options: ConsoleOptions) -> None:
        """Print what is settled, as far as whole lines tell: `#` may become `#include`."""
        whole = self._text[: self._text.rfind("\n") + 1]
        tokens = parse(whole, self._preceding)
        place = final_position(tokens)
        if place <= self._position:
            return
        self._print(render_rows(self._console, options, slice_tokens(tokens, self._position, place, self._preceding)))
        line, self._position, self._preceding = drop_printed(tokens, place, self._preceding)
        self._text = "\n".join(self._text.split("\n")[line:])

    def _unprinted_tokens(self, text: str, end: Position) -> list[Token]:
        return slice_tokens(parse(text, self._preceding), self._position, end, self._preceding)

    def _erase(self, options: ConsoleOptions) -> None:
        """Erase the drawn rows, which a terminal that has become narrower shows wrapped."""
        width = options.max_width
        high = len(self._drawn_rows)
        if width < self._drawn_width:
            high = sum(wrapped_row_count(text, width) for text in self._drawn_rows)
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * min(high, options.size.height - 1)
        if up:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up))
        self._drawn_rows = []

    def _print(self, rows: Iterable[Row]) -> None:
        self._console.print(Segments([segment for row in rows for segment in (*row, Segment.line())]), end="")


def _mode(code: str) -> Segment:
    return Segment(code, None, [(ControlType.BELL,)])  # a control that rich has no name for


AUTOWRAP_OFF, AUTOWRAP_ON = _mode("\x1b[?7l"), _mode("\x1b[?7h")

# Joined, flagged, coloured and combined characters: terminals do not agree how wide they are.
_CLUSTER = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0590-\u1aff\u1ab0-\u1aff\u1dc0-\u1dff\u200b-\u200f\u20d0-\u20ff"
    "\ua800-\uabff\ud7b0-\ud7ff\ufe00-\ufe0f\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0000-\U000e01ef]"
)


def _without_autowrap(row: Row, text: str) -> Row:
    """Return a row that stays one row in any terminal, since it is to be erased."""
    return [AUTOWRAP_OFF, *row, AUTOWRAP_ON] if _CLUSTER.search(text) else row


def _without_ambiguous_line(text: str) -> str:
    """Return a text without a last line of which nobody can tell what it becomes."""
    end = text.rfind("\n") + 1
    return text[:end] if _AMBIGUOUS_LINE.fullmatch(text, end) else text


def wrapped_row_count(text: str, width: int) -> int:
    """Return how many rows a terminal makes of a row when it is narrower; a wide character is never halved."""
    if cell_len(text) <= width:
        return 1
    count, column = 1, 0
    for character in text:
        size = get_character_cell_size(character)
        if column + size > width:
            count, column = count + 1, 0
        column += size
    return count
