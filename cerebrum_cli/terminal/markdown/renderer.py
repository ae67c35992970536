"""Render streaming Markdown: print each line once it is complete, and redraw only rows that changed.

Rows to be redrawn take at most two thirds of the window, since rows that have scrolled away, as they do when the window
shrinks, cannot be redrawn.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from copy import copy
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table as Grid
from rich.text import Text

from cerebrum_cli.core.environment import environment
from cerebrum_cli.terminal.markdown.blocks import (
    CODE_SPAN,
    LIST_MARKER,
    Block,
    Code,
    CodeEnd,
    Display,
    Fence,
    MarkdownTable,
    Reader,
    TextLine,
)
from cerebrum_cli.terminal.markdown.inline import CODE_STYLE, inline_text
from cerebrum_cli.terminal.markdown.mathematics import formula
from cerebrum_cli.terminal.styles import code_theme

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

MIN_REDRAW_INTERVAL_S = 1 / 10
MAX_REDRAW_INTERVAL_S = 1.0
MAX_DRAWING_SHARE = 0.015  # of elapsed time: decoding waits for drawing and for the terminal

# A last line of only these characters may become any kind of block: it is not drawn until more of it arrives. Both
# parts match spaces: without possessive quantifiers, matching would be quadratic in their number.
_AMBIGUOUS_LINE = re.compile(r"[\s>]*+(?:[-=`~*_#|+: ]*+|[0-9]++[.)]?\s*+)")
# Of a quote, an item or a task; not of a Python prompt.
_PREFIX = re.compile(rf"(?:\s*>(?=\s|\Z))*\s*(?:{LIST_MARKER}(?:\[[ xX]\]\s+)?)?")
_HEADING = re.compile(r"(#{1,6})\s+")
_ADDRESS = re.compile(r"https?://[^\s<>\"`|]*[^\s<>\"`|.,;:!?)\]}*_'’”]")
_UNSPACED = "[\u2e80-\u9fff\uff00-\uffef]"  # characters of scripts without spaces between words
_OPENING, _CLOSING = "（「『《〈【", "，。、；：？！）」』》〉】"  # their punctuation, which no row ends or begins with
# Between words, and beside each character of those scripts.
_BREAK = re.compile(
    rf"(?<=[^\S\xa0\u202f])(?=\S)|(?<={_UNSPACED})(?<![{_OPENING}])(?![\s{_CLOSING}…,.;:!?)*])"
    rf"|(?<=[^\s{_OPENING}“‘(\[])(?={_UNSPACED})(?![{_CLOSING}])"
)
_LINE_BREAK = re.compile(rf"(?P<code>{CODE_SPAN.pattern})|<br ?/?>\s*")

CODE_THEME = code_theme()
HEADING_STYLES = {1: "bold underline", 2: "bold", 3: "bold italic"}  # by level; those below are in italics
QUOTE_MARK = "│"  # not that of the prompt
CODE_BEGIN, CODE_END = "┌─", "└─"
FORMULA_INDENT = "  "
CODE_INDENT = "    "  # with which a line is no heading
COLUMN_GAP = 3  # spaces between the columns of a table
MIN_HANGING = 10  # columns beside a prefix, below which further rows begin at the margin

Row = list[Segment]
Rows = list[Row]


class MarkdownStream:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = ""  # the last one, which is not complete
        self._reader = Reader()
        self._final: list[Block] = []  # not printed yet
        self._drawn: Rows = []  # rows on the screen that may still change
        self._drawn_width = 0
        self._next_draw = 0.0
        self._draw_seconds = 0.0

    def skip(self, text: str) -> None:
        """Read a text that has been shown; the line, table or formula in which it ends is drawn again."""
        *lines, self._line = text.replace("\r", "").split("\n")
        for line in lines:
            self._reader.read(line)
        self._reader.skip_code()

    def feed(self, text: str) -> None:
        """Add text, and draw it if enough time has passed since the last drawing, given its cost."""
        *lines, self._line = (self._line + text.replace("\r", "")).split("\n")
        for line in lines:
            self._final += self._reader.read(line)
        if not self._console.is_terminal:  # nothing there can be erased
            self.pause()
            return
        start = time.monotonic()
        if start >= self._next_draw:
            self._draw()
            end = time.monotonic()
            # A drawing that costs far more than the last is an outlier, such as the first use of a lexer.
            self._draw_seconds = min(end - start, 3 * self._draw_seconds + 0.001)
            self._next_draw = end + max(
                MIN_REDRAW_INTERVAL_S, min(self._draw_seconds / MAX_DRAWING_SHARE, MAX_REDRAW_INTERVAL_S)
            )

    def pause(self) -> None:
        """Erase what may still change, before something else is printed."""
        self._show(self._console.options, self._take_final(), [])

    def close(self) -> None:
        if self._line:
            self._final += self._reader.read(self._line)
        self._final += self._reader.finish()
        self._line = ""
        self.pause()

    def _draw(self) -> None:
        options = self._console.options
        max_rows = max(1, (options.size.height - 1) * 2 // 3)
        reader = copy(self._reader)
        changing = []
        if self._line and not _AMBIGUOUS_LINE.fullmatch(self._line):
            changing = reader.read(self._line)
        changing += reader.unfinished()
        self._show(options, self._take_final(), render_rows(self._console, changing[-max_rows:])[-max_rows:])

    def _take_final(self) -> Rows:
        rows = render_rows(self._console, self._final)
        self._final = []
        return rows

    def _show(self, options: ConsoleOptions, final: Rows, changing: Rows) -> None:
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


def common_length(first: Rows, second: Rows) -> int:
    """Number of rows at the beginning that are the same."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


def render_rows(console: Console, blocks: Iterable[Block]) -> Rows:
    rows = []
    for block in blocks:
        prefix = block.prefix if isinstance(block, MarkdownTable) else ""
        if console.width - len(prefix) < MIN_HANGING:
            prefix = ""
        before = Segment(prefix.replace(">", QUOTE_MARK))
        for part in parts(block, console.width - len(prefix)):
            rows += [_without_padding([before, *row]) for row in console.render_lines(part, pad=False)]
    return rows


def parts(block: Block, width: int) -> Iterable[Text | Grid]:
    """A block as rows of text, or as a table."""
    match block:
        case TextLine(text, is_code):
            return hanging("", Text(text), width) if is_code else line_texts(text, width)
        case MarkdownTable():
            return table_parts(block, width)
        case Display(prefix, text, after):
            shown = formula(text, separator="\n")
            if shown != text and not prefix.strip():
                prefix += FORMULA_INDENT
            return hanging(prefix, Text(shown + after), width)
        case Fence(prefix, _, info, number):
            label = f"{CODE_BEGIN} [{number}] {info.strip()}".rstrip()
            return hanging(prefix if prefix.strip() else "", Text(label, style="dim"), width)
        case CodeEnd():
            return [Text(CODE_END, style="dim")]
        case Code():
            return code_texts(block, width)


def _without_padding(row: Row) -> Row:
    """A row without the spaces at its end, which would be copied from the screen."""
    while row:
        text, style, control = row.pop()
        if text := text.rstrip():
            return [*row, Segment(text, style, control)]
    return row


def line_texts(line: str, width: int) -> list[Text]:
    prefix, level, body = split_line(line)
    text = inline_text(body)
    if level:
        text.stylize(HEADING_STYLES.get(level, "italic"))
    return hanging(prefix, text, width)


def split_line(line: str) -> tuple[str, int, str]:
    """What precedes the text of a line, the level of a heading, or 0, and the text."""
    line = line.expandtabs()
    found = _PREFIX.match(line)
    prefix = found[0] if found else ""
    body = line[len(prefix) :]
    heading = None if prefix.endswith(CODE_INDENT) else _HEADING.match(body)
    if heading is None:
        return prefix, 0, body
    marks = heading[1]
    return prefix, len(marks), body[heading.end() :].rstrip().removesuffix(f" {marks}")


def hanging(prefix: str, text: Text, width: int) -> list[Text]:
    """A text in rows behind a prefix, below which the further ones begin. An address longer than a row is a link."""
    prefix = prefix.replace(">", QUOTE_MARK)
    room = width - cell_len(prefix)
    for address in _ADDRESS.finditer(text.plain):
        # Other terminals ignore the codes of a link that they do not know.
        if cell_len(address[0]) > room and environment("TERM") != "linux":
            text.stylize(Style(link=address[0]), *address.span())
    if room < MIN_HANGING:
        return wrapped(Text.assemble(prefix, text), width)
    first, *others = wrapped(text, room)
    return [Text.assemble((prefix, "bold"), first), *(Text.assemble(below(prefix), row) for row in others)]


def wrapped(text: Text, width: int) -> list[Text]:
    """A text in rows. A word is cut only if it is longer than a row."""
    rows: list[Text] = []
    for line in text.split("\n", allow_blank=True):
        line.expand_tabs(8)
        rows += line.divide(row_starts(line.plain, width))
    for row in rows:
        row.rstrip_end(width)
    return rows


def row_starts(line: str, width: int) -> Iterator[int]:
    """Where the rows of a line begin, other than the first."""
    start = used = 0
    indent = len(line) - len(line.lstrip())
    for end in (*(found.start() for found in _BREAK.finditer(line, indent + 1)), len(line)):
        word = line[start:end].rstrip()
        if used and used + cell_len(word) > width:
            yield start
            used = 0
        for piece in chop_cells(word, width)[:-1]:
            start += len(piece)
            yield start
        used += cell_len(line[start:end])
        start = end


def below(prefix: str) -> str:
    """What precedes the further rows of a line: its quotes, without the marker of an item."""
    return re.sub(rf"[^>{QUOTE_MARK}]", " ", prefix)


def table_parts(table: MarkdownTable, width: int) -> Iterator[Text | Grid]:
    """A table, with blank lines around rows of several lines.

    In a window that is too narrow for its words, each row is shown as lines of `column: value`.
    """
    header, *rows = cells = [[cell_text(cell) for cell in row] for row in table.rows]
    widths = column_widths(cells, width)
    if widths is None:
        yield from records(header, rows, width)
        return
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    titles, *lines = [[wrapped(*cell) for cell in zip(row, widths, strict=True)] for row in cells]
    for title, alignment, column in zip(titles, table.alignments, widths, strict=True):
        grid.add_column(Text("\n").join(title), justify=alignment, width=column)
    wraps = [any(len(cell) > 1 for cell in row) for row in lines]
    for number, row in enumerate(lines):
        grid.add_row(*map(Text("\n").join, row), end_section=any(wraps[number : number + 2]))
    yield grid


def column_widths(rows: list[list[Text]], width: int) -> list[int] | None:
    """Widths in which no word is cut, and those of long texts are about equal; None if the window is too narrow."""
    columns = ["\n".join(cell.plain for cell in column) for column in zip(*rows, strict=True)]
    widths = [max(cell_len(word.strip()) for word in _BREAK.split(column)) for column in columns]
    longest = [max(map(cell_len, column.split("\n"))) for column in columns]
    spare = width - sum(widths) - COLUMN_GAP * (len(widths) - 1)
    if spare < 0:
        return None
    for _ in range(spare):
        narrow = [column for column, size in enumerate(widths) if size < longest[column]]
        if not narrow:
            break
        widths[min(narrow, key=widths.__getitem__)] += 1
    return widths


def records(header: list[Text], rows: list[list[Text]], width: int) -> Iterator[Text]:
    for number, row in enumerate(rows or [[Text()] * len(header)]):
        if number:
            yield Text()
        for title, cell in zip(header, row, strict=True):
            yield from hanging("", Text.assemble(title, ": " if title else "", cell), width)


def cell_text(cell: str) -> Text:
    return Text("\n").join(map(inline_text, cell_lines(cell)))


def cell_lines(cell: str) -> list[str]:
    return _LINE_BREAK.sub(lambda found: found["code"] or "\n", cell).split("\n")


def code_texts(code: Code, width: int) -> Iterator[Text]:
    source = close_comment("\n".join((*code.above, *code.lines, *code.below)))
    syntax = Syntax("", code.fence.language, theme=CODE_THEME)
    highlighted = syntax.highlight(source)
    if syntax.lexer is None:
        highlighted.stylize(CODE_STYLE)
    shown = highlighted.split("\n")[len(code.above) :][: len(code.lines)]
    for _, text in zip_longest(code.lines, shown, fillvalue=Text()):  # blank lines at the end are left out
        yield from hanging("", text, width)


def close_comment(code: str) -> str:
    """Close an open comment: some lexers do not recognize an unclosed one."""
    for begin, end in (("/*", "*/"), ("<!--", "-->")):
        if code.rfind(begin) > code.rfind(end):
            return f"{code}\n{end}"
    return code
