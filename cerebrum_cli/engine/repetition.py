"""Find that a reply repeats itself: that its last tokens are a period of up to 256, at least 4 times, at least 128.

In a cycle, the tokens before each multiple of PROBE have occurred within the last period. Only after such a place is
the cycle searched for, by bytes: both cost microseconds, so the first is done once for each place.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from cerebrum_cli.core.token_ids import TOKEN_BYTES

MAX_PERIOD = 256  # tokens
MIN_REPEATS = 4
MIN_TOKENS = 128  # of all repeats together
PROBE = 32  # tokens at the end whose earlier occurrences give the periods to try; at most MIN_TOKENS / MIN_REPEATS


@dataclass(slots=True)
class CycleSearch:
    """Searches for a cycle in the tokens of a reply as they arrive."""

    _place: int = 0
    _recurs: bool = False  # whether a cycle may end after that place

    def end(self, tokens: array[int], checked: int) -> int | None:
        """Number of tokens, more than the `checked` ones, after which a reply repeats itself; None if it does not."""
        for place in range(checked - checked % PROBE, len(tokens) + 1, PROBE):
            if place != self._place:
                self._place = place
                self._recurs = recurs(tokens, place)
            if self._recurs:
                for length in range(max(place, checked + 1), min(place + PROBE, len(tokens) + 1)):
                    if ends_in_cycle(tokens, length):
                        return length
        return None


def recurs(tokens: array[int], length: int) -> bool:
    """Whether the PROBE tokens that end the first `length` occur in the MAX_PERIOD before, too."""
    window = tokens[max(0, length - PROBE - MAX_PERIOD) : length].tobytes()
    start = len(window) - PROBE * TOKEN_BYTES
    return start > 0 and window.find(window[start:], 0, -1) >= 0


def ends_in_cycle(tokens: array[int], length: int) -> bool:
    window = tokens[max(0, length - MAX_PERIOD * MIN_REPEATS) : length].tobytes()
    start = len(window) - PROBE * TOKEN_BYTES
    probe = window[start:]
    at = start
    first = max(0, start - MAX_PERIOD * TOKEN_BYTES)
    while (at := window.rfind(probe, first, at + len(probe) - 1)) >= 0:
        period = start - at
        if period % TOKEN_BYTES:  # within a token
            continue
        needed = max(period * MIN_REPEATS, MIN_TOKENS * TOKEN_BYTES)
        if needed > len(window):
            return False
        if window[-needed:-period] == window[period - needed :]:
            return True
    return False
