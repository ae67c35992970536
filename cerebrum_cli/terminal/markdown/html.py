"""Markdown as HTML: with the inline markup that a terminal shows, and links; HTML and images in it are text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from cerebrum_cli.terminal.markdown.blocks import Display, Reader
from cerebrum_cli.terminal.markdown.inline import inline_parser
from cerebrum_cli.terminal.markdown.mathematics import formula


def to_html(text: str) -> str:
    rendered: str = _parser().render(text)
    return rendered


@cache
def _parser() -> MarkdownIt:
    parser = inline_parser().enable(["blockquote", "code", "fence", "heading", "hr", "link", "list", "table"])
    parser.options["maxNesting"] = 100  # levels of lists and quotes, below which text is left out
    parser.block.ruler.before("table", "display", _read_display, {"alt": ["paragraph", "blockquote", "list"]})
    parser.add_render_rule("math", _math)
    parser.add_render_rule("text", _text)
    return parser


def _read_display(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """Read mathematics on lines of its own, whose `+` and `-` are no items of a list."""
    reader = Reader()
    for line in range(first, end):
        match reader.read(state.getLines(line, line + 1, state.blkIndent, False)):
            case []:
                continue
            case [Display(source, after)]:
                if not silent:
                    state.push("paragraph_open", "p", 1)
                    state.push("math", "", 0).content = source
                    state.push("text", "", 0).content = after
                    state.push("paragraph_close", "p", -1)
                    state.line = line + 1
                return True
            case _:
                return False
    return False


def _math(_: RendererHTML, tokens: Sequence[Token], index: int, __: OptionsDict, ___: EnvType) -> str:
    source = tokens[index].content
    text = formula(source, separator="\n")
    return f'<span class="lines" title="{escape(source)}">{escape(text)}</span>'


def _text(_: RendererHTML, tokens: Sequence[Token], index: int, __: OptionsDict, ___: EnvType) -> str:
    text = escape(tokens[index].content)
    return f'<span class="lines">{text}</span>' if "\n" in text else text
