"""Parse a reply into Markdown tokens with numbered code blocks and list items, and slice them.

A slice is what lies between two positions; consecutive slices render to the same rows as the whole. HTML and link
definitions are shown as text: a later definition would change text that is already printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

DISABLED_RULES = ("html_block", "html_inline", "reference")
_INLINE_PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable(DISABLED_RULES)
_BLOCK_PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable([*DISABLED_RULES, "inline", "text_join"])

CODE = ("fence", "code_block")
LISTS = ("bullet_list", "ordered_list")
OPENINGS = tuple(f"{name}_open" for name in ("blockquote", "list_item", *LISTS))
CLOSINGS = tuple(f"{name}_close" for name in ("blockquote", "list_item", *LISTS))

# Code is highlighted in chunks with a fixed lookahead, so that each chunk is final when it is printed.
# The lexer starts at the first line for every chunk, so chunks grow with the lines before them.
CHUNK_LINES = 8
LOOKAHEAD_LINES = 8


class TextPosition(NamedTuple):
    """A position in a text: the leaf blocks before it and, within code, the lines of that block before it."""

    leaf: int = 0
    line: int = 0


END = TextPosition(sys.maxsize)


@dataclass(frozen=True, slots=True)
class Preceding:
    """State of the reply before a text: whether there was text, the number of code blocks, and an open list.

    `list_item` is the number of the text's first list item; `in_list` is whether its list has earlier items.
    """

    any_text: bool = False
    code_count: int = 0
    list_item: int | None = None
    in_list: bool = False


class CodeBlock(NamedTuple):
    """The text of a code block, and the language its fence names: empty if none, None for indented code."""

    text: str
    language: str | None


def code_blocks(text: str) -> list[CodeBlock]:
    """Code blocks of a reply, in the order of their numbers from 1."""
    return [
        CodeBlock(token.content.removesuffix("\n"), next(iter(token.info.split()), "") if token.markup else None)
        for token in parse(text)
        if token.type in CODE
    ]


def find_code(text: str, language: str | None = None, last: bool = False) -> str | None:
    """Text of the first or last fenced code block that is not blank, in a language if one is given."""
    blocks = [block for block in code_blocks(text) if block.language is not None and block.text.strip()]
    texts = [block.text for block in blocks if not language or is_same_language(block.language or "", language)]
    return texts[-1 if last else 0] if texts else None


def is_same_language(*languages: str) -> bool:
    """Whether all names are those of one language: `py` and `python3` are."""
    from rich.syntax import Syntax

    lexers = [Syntax("", language).lexer for language in languages]
    names = [lexer.name for lexer in lexers if lexer]
    return len(set(names if len(names) == len(languages) else map(str.lower, languages))) == 1


def parse(text: str, preceding: Preceding = Preceding()) -> list[Token]:
    """Parse a text into block tokens, with their inline content unparsed."""
    tokens = _BLOCK_PARSER.parse(text.replace("\r", ""))
    if preceding.list_item is not None and tokens:
        tokens[0].attrs["start"] = preceding.list_item
    code_count, numbers = preceding.code_count, list[int]()
    for token in tokens:
        if token.type in CODE:
            code_count += 1
            token.meta["number"] = code_count
        elif token.type == "list_item_open":
            token.meta["number"] = numbers[-1]
            numbers[-1] += 1
        elif token.type.removesuffix("_open") in LISTS:
            numbers.append(int(token.attrs.get("start", 1)))
        elif token.type.removesuffix("_close") in LISTS:
            numbers.pop()
    return tokens


def parse_inline(text: str) -> list[Token]:
    tokens = [child for token in _INLINE_PARSER.parseInline(text) for child in token.children or ()]
    return [_image_text(token) if token.type == "image" else token for token in tokens]


def _image_text(image: Token) -> Token:
    source = str(image.attrs.get("src", ""))
    return Token("text", "", 0, content=f"🌆 {image.content or source.strip('/').rpartition('/')[2]} ")


def slice_tokens(
    tokens: Sequence[Token], begin: TextPosition, end: TextPosition, preceding: Preceding = Preceding()
) -> list[Token]:
    """Slice tokens between two positions.

    In their `meta`, `continued` marks a block that starts before `begin`, `blank_before` one that follows an empty
    row, and `lines` is the range of a code block's lines.
    """
    sliced: list[Token] = []
    open_containers: list[Token] = []  # containers whose contents have not started yet
    leaf = 0
    for group in split_leaves(tokens):
        continued = TextPosition(leaf) < begin or (group[0] is tokens[0] and preceding.in_list)
        first = group[0].copy(
            meta={
                **group[0].meta,
                "continued": continued,
                "blank_before": not continued and (leaf > 0 or preceding.any_text),
            }
        )
        if first.type in OPENINGS:
            open_containers.append(first)
        elif first.type in CLOSINGS:
            if open_containers:
                open_containers.pop()
            else:
                sliced.append(first)
        else:
            if begin.leaf <= leaf and TextPosition(leaf) < end:
                first.meta["lines"] = (begin.line if begin.leaf == leaf else 0, end.line if end.leaf == leaf else None)
                sliced += [*open_containers, first, *group[1:]]
                open_containers.clear()
            leaf += 1
    return sliced


def split_leaves(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    begin = 0
    while begin < len(tokens):
        end = begin + 1
        if tokens[begin].nesting == 1 and tokens[begin].type not in OPENINGS:
            while tokens[end - 1].nesting != -1 or tokens[end - 1].level != tokens[begin].level:
                end += 1
        yield tokens[begin:end]
        begin = end


def final_position(tokens: Sequence[Token]) -> TextPosition:
    """Position up to which complete lines render the same whatever follows: the start of the last leaf.

    If that leaf is code, all its chunks with enough lookahead are included.
    """
    leaves = [group[0] for group in split_leaves(tokens) if group[0].type not in (*OPENINGS, *CLOSINGS)]
    if not leaves:
        return TextPosition()
    lines = 0
    if leaves[-1].type in CODE:
        lines = max((end for _, end in highlight_chunks(len(code_lines(leaves[-1])))), default=0)
    return TextPosition(len(leaves) - 1, lines)


def code_lines(token: Token) -> list[str]:
    return token.content.rstrip().split("\n")


def highlight_chunks(count: int) -> Iterator[tuple[int, int]]:
    """Yield the line ranges that are highlighted together, as long as the lookahead lines exist."""
    begin = 0
    while (end := begin + max(1, begin // CHUNK_LINES**2) * CHUNK_LINES) + LOOKAHEAD_LINES <= count:
        yield begin, end
        begin = end


def split_point(
    tokens: Sequence[Token], position: TextPosition, preceding: Preceding
) -> tuple[int, TextPosition, Preceding]:
    """Find the line from which a text is still needed; return it with the new position and preceding state.

    A text can be split between top-level blocks and between the items of a top-level list.
    """
    result = (0, position, preceding)
    leaf = block_leaf = 0
    code_count, in_list = preceding.code_count, preceding.in_list
    for group in split_leaves(tokens):
        token = group[0]
        if leaf > position.leaf:
            break
        if token.map and token is not tokens[0] and token.nesting >= 0:
            unprinted = TextPosition(position.leaf - leaf, position.line)
            before = Preceding(preceding.any_text or leaf > 0, code_count)
            if token.level == 0:
                result = (token.map[0], unprinted, before)
                block_leaf, in_list = leaf, False
            elif token.level == 1 and token.type == "list_item_open":
                before = replace(before, list_item=token.meta["number"], in_list=in_list or leaf > block_leaf)
                result = (token.map[0], unprinted, before)
        if token.type in CODE:
            code_count += 1
        if token.type not in (*OPENINGS, *CLOSINGS):
            leaf += 1
    return result
