"""Python code in a text: its fenced blocks, and whether it is valid."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from itertools import takewhile
from typing import NamedTuple

FENCE = re.compile(r"\s*(?P<marks>`{3,}|~{3,})(?P<info>[^`]*)")
PLAIN_SPACES = str.maketrans("\xa0\u2002\u2003\u2007\u2009\u202f\u3000", " " * 7, "\xad\u200b\u200c\u200d\u2060\ufeff")
INNER_FENCES = 8  # in a program's strings, such as examples of its use


class Block(NamedTuple):
    """Text that may be code; an unclosed block may be truncated, or followed by other text."""

    text: str
    is_closed: bool


def fenced_blocks(text: str) -> list[Block]:
    blocks = []
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        opening = FENCE.fullmatch(lines[at])
        at += 1
        if opening is None:
            continue
        start = at
        at = _end_of_block(lines, start, opening["marks"])
        code = code_of(lines[start:at])
        if code.strip():
            blocks.append(Block(code, is_closed=at < len(lines)))
        at += 1
    return blocks


def before_fence(reply: str) -> Block:
    """Text before the first fence, which may close a block that was opened by the prompt."""
    lines = takewhile(lambda line: not FENCE.fullmatch(line), reply.split("\n"))
    return Block("\n".join(lines), is_closed=False)


def _end_of_block(lines: list[str], start: int, marks: str) -> int:
    """Index of the line that closes a block: the first fence, unless it is in a string of a valid program."""
    ends = []
    for at in range(start, len(lines)):
        fence = FENCE.fullmatch(lines[at])
        if fence is None or not fence["marks"].startswith(marks) or fence["info"].strip():
            continue
        if first_error(code_of(lines[start:at])) is None:
            return at
        ends.append(at)
        if len(ends) > INNER_FENCES:
            break
    return ends[0] if ends else len(lines)


def code_of(lines: list[str]) -> str:
    """Code without common indentation, and if it is invalid, with plain spaces."""
    code = textwrap.dedent("\n".join(lines))
    if first_error(code) is None:
        return code
    return textwrap.dedent(code.translate(PLAIN_SPACES))


def first_error(code: str) -> int | None:
    """Line of an error in code, counted from 1; None if it is valid."""
    try:
        parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, OverflowError, MemoryError, RecursionError):  # null characters, or nested too deep
        return 1
    return None


def parse(code: str) -> ast.Module:
    """Parse code, and compile it too, which finds more errors: a `return` outside of functions, for example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a model wrote
        compile(code, "<reply>", "exec", dont_inherit=True)
        return ast.parse(code)
