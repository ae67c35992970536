"""Markdown as HTML, line by line: HTML in it, and markup that the terminal does not render, stay text."""

from __future__ import annotations

from html import escape

from cerebrum_cli.core.text import Match
from cerebrum_cli.terminal.markdown.blocks import (
    Block,
    Code,
    CodeEnd,
    Display,
    Fence,
    MarkdownTable,
    TextLine,
    read_blocks,
)
from cerebrum_cli.terminal.markdown.inline import PARSER
from cerebrum_cli.terminal.markdown.mathematics import formula
from cerebrum_cli.terminal.markdown.renderer import cell_lines, split_line


def to_html(text: str) -> str:
    blocks = read_blocks(text)
    if blocks and isinstance(blocks[-1], (Fence, Code)):
        blocks.append(CodeEnd())
    return "".join(f"{block_html(block)}\n" for block in blocks)


def block_html(block: Block) -> str:
    match block:
        case TextLine(text, is_code):
            return f"<p>{escape(text)}</p>" if is_code else line_html(text)
        case MarkdownTable():
            return table_html(block)
        case Display(prefix, text, after):
            shown = formula_html(text, formula(text, separator="\n"))
            return f"<p>{escape(prefix)}{shown}{escape(after)}</p>"
        case Fence(prefix, _, info):
            before = f"{line_html(prefix)}\n" if prefix.strip() else ""
            return f'{before}<pre title="{escape(info.strip())}">'
        case Code(_, lines):
            return escape("\n".join(lines))
        case CodeEnd():
            return "</pre>"


def line_html(line: str) -> str:
    prefix, level, body = split_line(line)
    text = inline_html(body)
    if level:
        text = f"<h{level}>{text}</h{level}>"
    if prefix:
        return f'<div class="item"><div>{escape(prefix)}</div><div>{text}</div></div>'
    return text if level else f"<p>{text}</p>"


def inline_html(text: str) -> str:
    parts = []
    for token in PARSER.parseInline(text)[0].children or ():
        content = escape(token.content)
        if token.nesting:
            parts.append(f"<{'/' if token.nesting < 0 else ''}{token.tag}>")
        elif token.type == "code_inline":
            parts.append(f"<code>{content}</code>")
        elif token.type == "tag":
            parts.append(f"<{token.tag}>{content}</{token.tag}>")
        elif token.type == "math":
            parts.append(formula_html(token.content, formula(token.content)))
        elif token.type == "link":
            parts.append(link_html(token.meta["link"]))
        else:
            parts.append(content)
    return "".join(parts)


def link_html(link: Match) -> str:
    """A link, or its text as it is if its address is a program or a file."""
    address = link["address"]
    if not PARSER.validateLink(address):
        return escape(link[0])
    text = inline_html(link["label"]) or escape(address)
    return f'<a href="{escape(address)}">{text}</a>{escape(link["title"] or "")}'


def formula_html(source: str, text: str) -> str:
    return f'<span title="{escape(source)}">{escape(text)}</span>'


def table_html(table: MarkdownTable) -> str:
    rows = []
    for number, row in enumerate(table.rows):
        tag = "td" if number else "th"
        cells = []
        for alignment, cell in zip(table.alignments, row, strict=True):
            text = "<br>".join(map(inline_html, cell_lines(cell)))
            cells.append(f'<{tag} style="text-align: {alignment}">{text}</{tag}>')
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return f"<table>\n{''.join(rows)}</table>"
