"""Questions about strings that more than one room asks."""

from __future__ import annotations

from collections.abc import Iterable


def held_back(text: str, markers: Iterable[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of one of `markers`."""
    longest = 0
    for marker in markers:
        for length in range(min(len(marker) - 1, len(text)), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest


def earliest(text: str, markers: Iterable[str]) -> tuple[int, str] | None:
    """Return where the first of `markers` stands in `text`, and which it is; the longer of two at one place."""
    found = [(at, -len(marker), marker) for marker in markers if (at := text.find(marker)) >= 0]
    if not found:
        return None
    at, _, marker = min(found)
    return at, marker


def well_formed(text: str) -> str:
    """Return the text with U+FFFD for lone surrogates, which arguments that are no UTF-8 and cut-off JSON have."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
