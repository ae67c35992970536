"""Render a slice of Markdown tokens to rows, independent of the text before and after it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, ClassVar

from markdown_it.token import Token
from rich.markdown import (
    CodeBlock,
    Heading,
    HorizontalRule,
    ListElement,
    ListItem,
    Markdown,
    MarkdownElement,
    UnknownElement,
)
from rich.padding import Padding
from rich.rule import Rule
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from cerebrum_cli.terminal.markdown.code_blocks import CODE, LOOKAHEAD_LINES, code_lines, highlight_chunks, parse_inline

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# The terminal's own colors without a background, whose spaces would be copied, and wrap in a narrower window.
THEME = Syntax.get_theme("ansi_dark")
STYLES = Theme({"markdown.code": "cyan"})  # readable on dark and on light backgrounds
RULE_COLUMNS = 40  # the length of the text is not known while it streams
CODE_INDENT = (0, 0, 0, 2)
MAX_LINES_ABOVE = 64  # lines of context for code to be redrawn, which bounds the cost for long code
TABLE_FRAME_ROWS = 4  # rows of a table outside its body

Row = list[Segment]


def render_rows(console: Console, options: ConsoleOptions, tokens: Sequence[Token]) -> list[Row]:
    result: list[Row] = []
    for block in _top_level_blocks(tokens):
        for token in block:
            if token.type == "inline":
                token.children = parse_inline(token.content)
        view = copy(REPLY)
        view.parsed = list(block)
        rendered = [_without_padding(row) for row in console.render_lines(view, options, pad=False)]
        if block[-1].type == "hr":
            rendered.pop()  # an empty row, which the next block adds too
        result += [[], *rendered] if block[0].meta["blank_before"] else rendered
    return result


def _top_level_blocks(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    start = 0
    for end, token in enumerate(tokens, 1):
        if token.level == 0 and token.nesting <= 0:
            yield tokens[start:end]
            start = end


def limit_redraw(tokens: list[Token], max_rows: int) -> list[Token]:
    """Make tokens to be redrawn cheap: only the last rows of the last table, less context for code."""
    for token in tokens:
        if token.type in CODE:
            token.meta["context_lines"] = MAX_LINES_ABOVE
    body = max((at for at, token in enumerate(tokens) if token.type == "tbody_open"), default=len(tokens))
    row_starts = [at for at in range(body, len(tokens)) if tokens[at].type == "tr_open"][
        -max(1, max_rows - TABLE_FRAME_ROWS) :
    ]
    return tokens[: body + 1] + tokens[row_starts[0] :] if row_starts else tokens


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
            label = f"[{self.token.meta['number']}] {self.lexer_name}"
            yield Text(label, style="dim", no_wrap=True, overflow="ellipsis")
        lines = code_lines(self.token)
        syntax = Syntax("", self.lexer_name or "text", theme=THEME)
        for begin, end, seen in highlight_ranges(first, last, len(lines)):
            above = max(0, begin - self.token.meta.get("context_lines", begin))
            code = close_comment("\n".join(lines[above:seen]))
            yield Padding(highlight_lines(code, syntax, begin - above, end - above), CODE_INDENT)


def highlight_ranges(first: int, last: int | None, count: int) -> Iterator[tuple[int, int, int]]:
    for begin, end in highlight_chunks(count):
        if first <= begin and (last is None or end <= last):
            yield begin, end, end + LOOKAHEAD_LINES
            first = end
    if last is None:
        yield first, count, count


def highlight_lines(code: str, syntax: Syntax, begin: int, end: int) -> Text:
    lexer = syntax.lexer or syntax.default_lexer
    text = Text()
    line = 0
    for kind, value in lexer.get_tokens(code.expandtabs(syntax.tab_size)):
        for piece in re.findall(r"[^\n]*\n|[^\n]+", value):
            if begin <= line < end:
                text.append(piece, THEME.get_style_for_token(kind))
            if piece.endswith("\n"):
                line += 1
        if line >= end:
            break
    text.remove_suffix("\n")
    return text


def close_comment(code: str) -> str:
    """Close an open comment: some lexers do not recognize an unclosed one."""
    for begin, end in (("/*", "*/"), ("<!--", "-->")):
        if code.rfind(begin) > code.rfind(end):
            return f"{code}\n{end}"
    return code


class ContinuableItem(ListItem):
    """A list item that shows its marker only once across slices."""

    token: Token

    @classmethod
    def create(cls, _: Markdown, token: Token) -> ContinuableItem:
        item = cls()
        item.token = token
        return item


class NumberedList(ListElement):
    """A list with room for two-digit numbers, since its length is not known yet."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bullets = self.list_type == "bullet_list_open"
        style = console.get_style("markdown.item.bullet" if bullets else "markdown.item.number", default="none")
        for item in self.items:
            assert isinstance(item, ContinuableItem)
            marker = " • " if bullets else f"{item.token.meta['number']:>3} "
            inner = options.update(width=max(1, options.max_width - len(marker)))
            for at, row in enumerate(console.render_lines(item.elements, inner, style=item.style)):
                shown = marker if at == 0 and not item.token.meta["continued"] else " " * len(marker)
                yield from (Segment(shown, style), *row, Segment.line())


class LeftHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"
        yield self.text


class ShortRule(HorizontalRule):
    """A rule that is not wider than text usually is."""

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
        "list_item_open": _without_new_line(ContinuableItem),
        "inline": _without_new_line(UnknownElement),
    }


REPLY = ReplyMarkdown("", hyperlinks=False)
