"""Brackets in an answer: what they enclose, and where it may be split between them."""

from __future__ import annotations

import re

from cerebrum_cli.core.text import Pattern

_NESTING = dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)  # change of the depth of brackets


def split_outside(pattern: Pattern, text: str) -> tuple[list[str], list[str]]:
    """Split at the matches of a pattern outside of brackets, which it must match too; also what it matches there."""
    parts, separators = list[str](), list[str]()
    start = depth = 0
    for mark in pattern.finditer(text):
        change = _NESTING.get(mark[0], 0)
        if not (depth or change):
            parts.append(text[start : mark.start()])
            separators.append(mark[0])
            start = mark.end()
        depth = max(0, depth + change)
    return [*parts, text[start:]], separators


def is_enclosed(text: str) -> bool:
    """Whether the bracket a text opens with is closed by its last character, as in [0, 1) and not in (a)(b)."""
    depth = 0
    for mark in re.finditer(r"[(\[{]|[)\]}]", text):
        depth += _NESTING[mark[0]]
        if not depth:
            return mark.end() == len(text) and re.fullmatch(r"[(\[].+[)\]]|\{.*\}", text) is not None
    return False
