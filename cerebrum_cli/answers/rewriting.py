"""Rewrite texts step by step: a step is a table of patterns and what replaces them."""

from __future__ import annotations

import re
from collections.abc import Callable

from cerebrum_cli.core.text import Match

Step = Callable[[str], str]


def rewriting(*rows: tuple[str, str | Callable[[Match], str]], where: str = "", flags: int = 0) -> Step:
    """A step that replaces what matches a row, then the next, in texts in which `where` matches: to be fast."""
    compiled = [(re.compile(pattern, flags), replacement) for pattern, replacement in rows]
    may_change = re.compile(where).search

    def rewritten(text: str) -> str:
        if may_change(text):
            for pattern, replacement in compiled:
                text = pattern.sub(replacement, text)
        return text

    return rewritten


def in_order(*steps: Step) -> Step:
    """One step of several."""

    def rewritten(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return rewritten
