"""Find what a chain of thought that states no answer comes to: the value at its end."""

from __future__ import annotations

import re

from cerebrum_cli.answers.plain_text import NUMBER, has_content, plain, trimmed


def last_value(text: str) -> str | None:
    """Value at the end of a chain of thought that states no answer."""
    line = next(filter(has_content, reversed(text.split("\n"))), "")
    line = trimmed(plain(line).strip())
    if re.fullmatch(r"(?i:yes|no)|[A-Z]|\([A-Za-z]\)", line):
        return line.strip("()")
    numbers = NUMBER.findall(line)
    return str(numbers[-1]).strip() if numbers else None
