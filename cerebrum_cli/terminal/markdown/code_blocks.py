"""Parse a reply into units of Markdown tokens with numbered code blocks and list items.

Units are rendered one after another, to the same rows as the whole. HTML and link definitions are shown as text: a
later definition would change text that is already printed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

DISABLED_RULES = ("html_block", "html_inline", "reference")
_INLINE_PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable(DISABLED_RULES)
_BLOCK_PARSER = MarkdownIt().enable(["strikethrough", "table"]).disable([*DISABLED_RULES, "inline", "text_join"])

CODE = ("fence", "code_block")

# Code is highlighted in chunks with a fixed lookahead, so that each chunk is final when it is printed.
# The lexer starts at the first line for every chunk, so chunks grow with the lines before them.
CHUNK_LINES = 8
LOOKAHEAD_LINES = 8


@dataclass(frozen=True, slots=True)
class Preceding:
    """What of the reply comes before a text: whether there is any, its number of code blocks, and what is still open.

    `list_item` is the number of the text's first item, if it continues a list. `code_lines` is the number of lines that
    are already printed of the code block with which the text begins.
    """

    any_text: bool = False
    code_count: int = 0
    list_item: int | None = None
    code_lines: int = 0


class Unit(NamedTuple):
    """A top-level block, or an item of a top-level list: it is final when another one follows.

    `line` is its first one in the text, `list_item` its number if its list has earlier items.
    """

    tokens: list[Token]
    line: int
    list_item: int | None
    blank_before: bool


class CodeBlock(NamedTuple):
    """The text of a code block, and the language its fence names: empty if none, None for indented code."""

    text: str
    language: str | None


def code_blocks(text: str) -> list[CodeBlock]:
    blocks = []
    for token in parse(text):
        if token.type in CODE:
            language = next(iter(token.info.split()), "") if token.markup else None
            blocks.append(CodeBlock(token.content.removesuffix("\n"), language))
    return blocks


def find_code(text: str, language: str | None = None, last: bool = False) -> str | None:
    """Text of the first or last fenced code block that is not blank, in a language if one is given."""
    texts = []
    for block in code_blocks(text):
        if block.language is None or not block.text.strip():
            continue
        if not language or is_same_language(block.language, language):
            texts.append(block.text)
    if not texts:
        return None
    return texts[-1] if last else texts[0]


def is_same_language(*languages: str) -> bool:
    """Whether all names are those of one language: `py` and `python3` are."""
    from rich.syntax import Syntax

    lexers = [Syntax("", language).lexer for language in languages]
    names = [lexer.name for lexer in lexers if lexer]
    if len(names) < len(languages):
        names = [language.lower() for language in languages]
    return len(set(names)) == 1


def parse(text: str, preceding: Preceding = Preceding()) -> list[Token]:
    """Parse a text into block tokens, with their inline content unparsed.

    In the `meta` of a code block, `number` is its own, and `lines` the range of its lines.
    """
    tokens = _BLOCK_PARSER.parse(text.replace("\r", ""))
    if preceding.list_item is not None and tokens:
        tokens[0].attrs["start"] = preceding.list_item
    blocks = (token for token in tokens if token.type in CODE)
    for number, token in enumerate(blocks, preceding.code_count + 1):
        token.meta["number"] = number
        token.meta["lines"] = (preceding.code_lines if token is tokens[0] else 0, None)
    return tokens


def parse_inline(text: str) -> list[Token]:
    tokens = [child for token in _INLINE_PARSER.parseInline(text) for child in token.children or ()]
    for token in tokens:
        if token.type == "image":
            name = str(token.attrs.get("src", "")).strip("/").rpartition("/")[2]
            token.type = "text"
            token.content = f"🌆 {token.content or name} "
    return tokens


def parse_units(text: str, preceding: Preceding = Preceding()) -> list[Unit]:
    units: list[Unit] = []
    is_continued = preceding.list_item is not None or preceding.code_lines > 0
    for block in _top_level_blocks(parse(text, preceding)):
        items = [at for at, token in enumerate(block) if token.type == "list_item_open" and token.level == 1]
        first_number = int(block[0].attrs.get("start", 1))
        parts = pairwise((*items, len(block) - 1) if items else (0, len(block)))
        for number, (begin, stop) in enumerate(parts, first_number):
            part = block[begin:stop]
            line, *_ = part[0].map or [0]
            if items:  # a list of its own
                part = [block[0].copy(attrs={"start": number}), *part, block[-1]]
            list_item = number if items and is_continued else None
            blank_before = not is_continued and (bool(units) or preceding.any_text)
            units.append(Unit(part, line, list_item, blank_before))
            is_continued = True
        is_continued = False
    return units


def _top_level_blocks(tokens: list[Token]) -> Iterator[list[Token]]:
    start = 0
    for end, last in enumerate(tokens, 1):
        if last.level == 0 and last.nesting <= 0:
            yield tokens[start:end]
            start = end


def code_lines(token: Token) -> list[str]:
    return token.content.rstrip().split("\n")


def highlight_chunks(count: int) -> Iterator[tuple[int, int]]:
    """Yield the line ranges that are highlighted together, as long as the lookahead lines exist."""
    begin = 0
    while (end := begin + max(1, begin // CHUNK_LINES**2) * CHUNK_LINES) + LOOKAHEAD_LINES <= count:
        yield begin, end
        begin = end
