"""Questions about strings that more than one room asks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cerebrum_cli.core.errors import UsageError


def partial_marker_length(text: str, markers: Iterable[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of one of `markers`."""
    longest = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest


def format_size(size: int) -> str:
    """Return bytes as people read them, in units of 1000 as the Hub does."""
    for unit, name, digits in ((1e9, "GB", 2), (1e6, "MB", 0)):
        if size >= unit:
            return f"{size / unit:,.{digits}f} {name}"
    return f"{size / 1e3:,.0f} kB"


def parse_size(text: str) -> int:
    """Return a size as people write it, "4GB" or "500 MB" or "4g", in bytes. UsageError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * 1000 ** " kmgt".index(found[2].lower() or " ")) if found else 0
    if not 1_000_000 <= size < 1 << 63:
        raise UsageError(f"{text!r} is no size of a file from 1 MB on", "write it as 4GB or 500MB")
    return size


def format_utc(seconds: float) -> str:
    """Return a moment in seconds since 1970 as ISO 8601 has it, in UTC."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def well_formed(text: str) -> str:
    """Return the text with U+FFFD for lone surrogates, which arguments that are no UTF-8 and cut-off JSON have."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
