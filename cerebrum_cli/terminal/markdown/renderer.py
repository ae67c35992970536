"""Render streaming Markdown: print final text once, and redraw only rows that changed.

A top-level block or list item is final when a complete line of another one follows, a line of its code after some
lookahead lines.
Rows to be redrawn take at most two thirds of the window, since rows that have scrolled away, as they do when the window
shrinks, cannot be redrawn.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from markdown_it.token import Token
from rich.cells import chop_cells
from rich.control import Control
from rich.markdown import (
    CodeBlock,
    Heading,
    HorizontalRule,
    ListElement,
    Markdown,
    MarkdownElement,
    UnknownElement,
)
from rich.padding import Padding
from rich.rule import Rule
from rich.segment import ControlType, Segment, Segments
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from cerebrum_cli.terminal.markdown.code_blocks import (
    CODE,
    LOOKAHEAD_LINES,
    Preceding,
    Unit,
    code_lines,
    highlight_chunks,
    parse_inline,
    parse_units,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

MIN_REDRAW_INTERVAL_S = 1 / 10
MAX_REDRAW_INTERVAL_S = 1.0
MAX_DRAWING_SHARE = 0.015  # of elapsed time: decoding waits for drawing and for the terminal

# A last line of only these characters may become any kind of block: it is not drawn until more of it arrives. Both
# parts match spaces: without possessive quantifiers, matching would be quadratic in their number.
_AMBIGUOUS_LINE = re.compile(r"[\s>]*+(?:[-=`~*_#|+: ]*+|[0-9]++[.)]?\s*+)")

# The terminal's own colors without a background, whose spaces would be copied, and wrap in a narrower window.
THEME = "ansi_dark"
STYLES = Theme({"markdown.code": "cyan"})  # readable on dark and on light backgrounds
RULE_COLUMNS = 40  # the length of the text is not known while it streams
CODE_INDENT = (0, 0, 0, 2)
MAX_LINES_ABOVE = 64  # lines of context for code to be redrawn, which bounds the cost for long code
NUMBER_COLUMNS = 3  # that a list item takes beside its number: two of spaces, and one of text
TABLE_FRAME_ROWS = 4  # rows of a table outside its body

Row = list[Segment]


class MarkdownStream:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # text not yet final, from the start of the last unit
        self._preceding = Preceding()
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
        self._show(options, render_rows(self._console, options, parse_units(self._text, self._preceding)), [])
        self._text = ""
        self._preceding = Preceding()

    def _draw(self, options: ConsoleOptions) -> None:
        max_rows = max(1, (options.size.height - 1) * 2 // 3)
        final = self._take_final(options)
        last_line = self._text.rfind("\n") + 1
        text = self._text[:last_line] if _AMBIGUOUS_LINE.fullmatch(self._text, last_line) else self._text
        limited = (limit_redraw(unit, max_rows) for unit in parse_units(text, self._preceding))
        self._show(options, final, render_rows(self._console, options, limited)[-max_rows:])

    def _take_final(self, options: ConsoleOptions) -> list[Row]:
        """Rows that are final according to complete lines: `#` may become `#include`."""
        units = parse_units(self._text[: self._text.rfind("\n") + 1], self._preceding)
        if not units:
            return []
        *final, last = units
        rows = render_rows(self._console, options, final)
        if final:
            codes = [token for unit in final for token in unit.tokens if token.type in CODE]
            code_count = codes[-1].meta["number"] if codes else self._preceding.code_count
            self._preceding = Preceding(True, code_count, last.list_item)
            self._text = "\n".join(self._text.split("\n")[last.line :])
        return rows + self._take_final_code(options, last)

    def _take_final_code(self, options: ConsoleOptions, unit: Unit) -> list[Row]:
        code = unit.tokens[0]
        if code.type not in CODE:
            return []
        chunks = list(highlight_chunks(len(code_lines(code))))
        printed = self._preceding.code_lines
        if not chunks or chunks[-1][1] <= printed:
            return []
        line = chunks[-1][1]
        code.meta["lines"] = (printed, line)
        self._preceding = replace(self._preceding, code_lines=line)
        return render_rows(self._console, options, [unit])

    def _show(self, options: ConsoleOptions, final: list[Row], changing: list[Row]) -> None:
        # A row of uncertain width must take one row to be erased.
        rows = list(final)
        for row in changing:
            rows.append([AUTOWRAP_OFF, *row, AUTOWRAP_ON] if _CLUSTER.search(row_text(row)) else row)
        same = 0
        if options.max_width == self._drawn_width:
            same = common_length(self._drawn, rows)
        if same < max(len(self._drawn), len(rows)):
            with self._console:  # one write
                self._console.print(Segments([FRAME_BEGIN]), end="")
                self._erase(options, same)
                lines: Row = []
                for row in rows[same:]:
                    lines += *row, Segment.line()
                self._console.print(Segments([*lines, FRAME_END]), end="")
        self._drawn = rows[len(final) :]
        self._drawn_width = options.max_width

    def _erase(self, options: ConsoleOptions, same: int) -> None:
        """Erase the drawn rows from the first that changed; a narrower terminal has wrapped them."""
        width = options.max_width
        rows = self._drawn[same:]
        row_count = len(rows)
        if width < self._drawn_width:
            row_count = sum(max(1, len(chop_cells(row_text(row), width))) for row in rows)
        # Row by row: tmux keeps a copy of a screen that is erased as a whole.
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)) * min(row_count, options.size.height - 1)
        if up:
            self._console.control(Control(ControlType.CARRIAGE_RETURN, *up))


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


def common_length(first: list[Row], second: list[Row]) -> int:
    """Number of rows at the beginning that are the same."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


# Units as rows, independent of the text before and after them.


def render_rows(console: Console, options: ConsoleOptions, units: Iterable[Unit]) -> list[Row]:
    result: list[Row] = []
    for unit in units:
        for token in unit.tokens:
            if token.type == "inline":
                token.children = parse_inline(token.content)
        view = copy(REPLY)
        view.parsed = unit.tokens
        rendered = [_without_padding(row) for row in console.render_lines(view, options, pad=False)]
        if unit.tokens[-1].type == "hr":
            rendered.pop()  # an empty row, which the next block adds too
        result += [[], *rendered] if unit.blank_before else rendered
    return result


def limit_redraw(unit: Unit, max_rows: int) -> Unit:
    """Make a unit to be redrawn cheap: only the last rows of a table, less context for code."""
    tokens = unit.tokens
    for token in tokens:
        if token.type in CODE:
            token.meta["context_lines"] = MAX_LINES_ABOVE
    body = len(tokens)
    row_starts: list[int] = []
    for at, token in enumerate(tokens):
        if token.type == "tbody_open":
            body = at + 1
            row_starts.clear()
        elif token.type == "tr_open" and at >= body:
            row_starts.append(at)
    shown = row_starts[-max(1, max_rows - TABLE_FRAME_ROWS) :]
    if not shown:
        return unit
    return unit._replace(tokens=tokens[:body] + tokens[shown[0] :])


def _without_padding(row: Row) -> Row:
    """Drop trailing spaces, which would be copied from the screen."""
    while row and not (row[-1].style and row[-1].style.bgcolor):
        text, style, control = row.pop()
        if text := text.rstrip():
            return [*row, Segment(text, style, control)]
    return row


class NumberedCode(CodeBlock):
    token: Token

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> NumberedCode:
        block = cls(token.info.partition(" ")[0], markdown.code_theme)
        block.token = token
        return block

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        first, last = self.token.meta["lines"]
        if first == 0:
            number = self.token.meta["number"]
            yield Text(f"[{number}] {self.lexer_name}", style="dim", no_wrap=True, overflow="ellipsis")
        lines = code_lines(self.token)
        syntax = Syntax("", self.lexer_name or "text", theme=THEME)
        for begin, end, seen in highlight_ranges(first, last, len(lines)):
            above = max(0, begin - self.token.meta.get("context_lines", begin))
            code = close_comment("\n".join(lines[above:seen]))
            highlighted = syntax.highlight(code, (begin - above + 1, end - above)).split("\n")
            yield Padding(Text("\n").join(highlighted[begin - above : end - above]), CODE_INDENT)


def highlight_ranges(first: int, last: int | None, count: int) -> Iterator[tuple[int, int, int]]:
    for begin, end in highlight_chunks(count):
        if first <= begin and (last is None or end <= last):
            yield begin, end, end + LOOKAHEAD_LINES
            first = end
    if last is None:
        yield first, count, count


def close_comment(code: str) -> str:
    """Close an open comment: some lexers do not recognize an unclosed one."""
    for begin, end in (("/*", "*/"), ("<!--", "-->")):
        if code.rfind(begin) > code.rfind(end):
            return f"{code}\n{end}"
    return code


class NumberedList(ListElement):
    """A list with room for two-digit numbers, since its length is not known yet."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.update(width=max(2 + NUMBER_COLUMNS, options.max_width))
        for number, item in enumerate(self.items, self.list_start or 0):
            if self.list_type == "bullet_list_open":
                yield from item.render_bullet(console, options)
            else:  # a number of any length is followed by one space, and by one column at least
                last = max(10, number // 10)
                wide = options.update(width=max(len(str(last)) + NUMBER_COLUMNS, options.max_width))
                yield from item.render_number(console, wide, number, last_number=last)


class LeftHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class ShortRule(HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, RULE_COLUMNS)
        yield from console.render(Rule(style="markdown.hr", characters="-"), options.update(width=width))
        yield Text()


def _without_new_line(element: type[MarkdownElement]) -> type[MarkdownElement]:
    """Make a block type without rich's trailing empty row, which `render_rows` adds instead."""
    return type(element.__name__, (element,), {"new_line": False})


class ReplyMarkdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **{name: _without_new_line(element) for name, element in Markdown.elements.items()},
        **dict.fromkeys(("fence", "code_block"), _without_new_line(NumberedCode)),
        **dict.fromkeys(("bullet_list_open", "ordered_list_open"), _without_new_line(NumberedList)),
        "heading_open": _without_new_line(LeftHeading),
        "hr": _without_new_line(ShortRule),
        "inline": _without_new_line(UnknownElement),
    }


REPLY = ReplyMarkdown("", hyperlinks=False)
