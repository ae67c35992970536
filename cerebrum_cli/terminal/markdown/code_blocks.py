"""A reply's text as Markdown tokens: its code blocks counted, its list items numbered, any part of it by itself.

A part reaches from one place to another; parts that follow each other show together what the whole shows. All of a
model's text is shown: HTML and definitions of links are text, for what is defined late would change what stands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

# Code is highlighted some lines at a time, with only so many after them in view, so that they can be printed for good.
# A lexer begins each time at the first line: with more lines behind, more are taken at a time.
CHUNK_LINES = 8
LOOKAHEAD_LINES = 8


class Position(NamedTuple):
    """A place in a text: so many leaf blocks lie before it, and so many lines of the next, which is code."""

    leaf: int = 0
    line: int = 0


END = Position(sys.maxsize)


@dataclass(frozen=True, slots=True)
class Preceding:
    """What was said before a text: anything, so many code blocks; and the list it begins within, if it does.

    `item` is the number of the text's first list item, `begun` whether there was any before in its list.
    """

    any_text: bool = False
    code_blocks: int = 0
    list_item: int | None = None
    in_list: bool = False


def code_blocks(text: str) -> list[str]:
    """Return the code of each block of a reply, in the order of their numbers, which count from 1."""
    return [token.content.removesuffix("\n") for token in parse(text) if token.type in CODE]


def parse(text: str, preceding: Preceding = Preceding()) -> list[Token]:
    """Return the tokens of a text's blocks, what is in their lines still unparsed."""
    tokens = _BLOCK_PARSER.parse(text.replace("\r", ""))
    if preceding.list_item is not None and tokens:
        tokens[0].attrs["start"] = preceding.list_item
    codes, numbers = preceding.code_blocks, list[int]()
    for token in tokens:
        if token.type in CODE:
            codes += 1
            token.meta["number"] = codes
        elif token.type == "list_item_open":
            token.meta["number"] = numbers[-1]
            numbers[-1] += 1
        elif token.type.removesuffix("_open") in LISTS:
            numbers.append(int(token.attrs.get("start", 1)))
        elif token.type.removesuffix("_close") in LISTS:
            numbers.pop()
    return tokens


def parse_inline(text: str) -> list[Token]:
    """Return the tokens of what is in a block's lines; an image is told by its text."""
    tokens = [child for token in _INLINE_PARSER.parseInline(text) for child in token.children or ()]
    return [_image_text(token) if token.type == "image" else token for token in tokens]


def _image_text(image: Token) -> Token:
    source = str(image.attrs.get("src", ""))
    return Token("text", "", 0, content=f"🌆 {image.content or source.strip('/').rpartition('/')[2]} ")


def slice_tokens(
    tokens: Sequence[Token], begin: Position, end: Position, preceding: Preceding = Preceding()
) -> list[Token]:
    """Return the tokens between two places.

    In their `meta`, `begun` tells that some of a block lies before `begin`, `apart` that an empty row comes before it,
    and `lines` which of a code block's lines there are.
    """
    kept: list[Token] = []
    opened: list[Token] = []  # containers of which nothing was kept yet
    leaf = 0
    for step in split_leaves(tokens):
        begun = Position(leaf) < begin or (step[0] is tokens[0] and preceding.in_list)
        first = step[0].copy(
            meta={**step[0].meta, "begun": begun, "apart": not begun and (leaf > 0 or preceding.any_text)}
        )
        if first.type in OPENINGS:
            opened.append(first)
        elif first.type in CLOSINGS:
            if opened:
                opened.pop()
            else:
                kept.append(first)
        else:
            if begin.leaf <= leaf and Position(leaf) < end:
                first.meta["lines"] = (begin.line if begin.leaf == leaf else 0, end.line if end.leaf == leaf else None)
                kept += [*opened, first, *step[1:]]
                opened.clear()
            leaf += 1
    return kept


def split_leaves(tokens: Sequence[Token]) -> Iterator[Sequence[Token]]:
    """Yield tokens in steps: the opening or closing of what contains blocks, or all of a leaf block."""
    begin = 0
    while begin < len(tokens):
        end = begin + 1
        if tokens[begin].nesting == 1 and tokens[begin].type not in OPENINGS:
            while tokens[end - 1].nesting != -1 or tokens[end - 1].level != tokens[begin].level:
                end += 1
        yield tokens[begin:end]
        begin = end


def final_position(tokens: Sequence[Token]) -> Position:
    """Return up to where whole lines show what they will show whatever follows: all but the last leaf.

    Where that is code, its lines are settled but for the last ones.
    """
    leaves = [step[0] for step in split_leaves(tokens) if step[0].type not in (*OPENINGS, *CLOSINGS)]
    if not leaves:
        return Position()
    lines = 0
    if leaves[-1].type in CODE:
        lines = max((end for _, end in highlight_chunks(len(code_lines(leaves[-1])))), default=0)
    return Position(len(leaves) - 1, lines)


def code_lines(token: Token) -> list[str]:
    """Return the lines of a code block, without empty ones at its end."""
    return token.content.rstrip().split("\n")


def highlight_chunks(count: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last line, exclusive, of what is highlighted together, as long as enough follow it."""
    begin = 0
    while (end := begin + max(1, begin // CHUNK_LINES**2) * CHUNK_LINES) + LOOKAHEAD_LINES <= count:
        yield begin, end
        begin = end


def drop_printed(tokens: Sequence[Token], position: Position, preceding: Preceding) -> tuple[int, Position, Preceding]:
    """Return the line from which on a text is needed to go on from a place; then that place in it, and its before.

    It can be cut between blocks, and between the items of a list that is in no other block.
    """
    found = (0, position, preceding)
    leaf = codes = block = 0
    begun = preceding.in_list
    for step in split_leaves(tokens):
        token = step[0]
        if leaf > position.leaf:
            break
        if token.map and token is not tokens[0] and token.nesting >= 0:
            rest, anything = Position(position.leaf - leaf, position.line), preceding.any_text or leaf > 0
            if token.level == 0:
                found = (token.map[0], rest, Preceding(anything, preceding.code_blocks + codes))
                block, begun = leaf, False
            elif token.level == 1 and token.type == "list_item_open":
                inside = Preceding(anything, preceding.code_blocks + codes, token.meta["number"], begun or leaf > block)
                found = (token.map[0], rest, inside)
        codes += token.type in CODE
        leaf += token.type not in (*OPENINGS, *CLOSINGS)
    return found
