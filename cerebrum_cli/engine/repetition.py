"""Find that a reply repeats itself."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from cerebrum_cli.core.events import FinishReason
from cerebrum_cli.core.token_ids import TOKEN_BYTES
from cerebrum_cli.formats.reply_text import ReplyText

MAX_PERIOD = 256  # tokens
MIN_REPEATS = 4
MIN_TOKENS = 128  # of all repeats together
PROBE = 32  # tokens at the end whose earlier occurrences give the periods to try; at most MIN_TOKENS / MIN_REPEATS


@dataclass(eq=False)
class LoopCheck:
    """Ends a reply once its last tokens are a period of up to 256, at least 4 times, and at least 128 tokens.

    In a cycle, the tokens before each multiple of PROBE have occurred within the last period. Only after such a place
    is the cycle searched for, by bytes: that costs microseconds, and other text a hundredth of that a token.
    """

    _probed: int = 0  # the last multiple of PROBE, and whether a cycle may end after it
    _may_end: bool = False

    def intervene(self, text: ReplyText, tokens: array[int]) -> FinishReason | None:  # noqa: ARG002
        last = len(tokens) - len(tokens) % PROBE
        if last != self._probed:
            self._probed, self._may_end = last, recurs(tokens, last)
        return "repetition" if self._may_end and ends_in_cycle(tokens, len(tokens)) else None


def cycle_end(tokens: array[int], checked: int) -> int | None:
    """Number of tokens after which LoopCheck ends a reply, more than the `checked` ones; None if it does not."""
    for place in range(checked - checked % PROBE, len(tokens) + 1, PROBE):
        if recurs(tokens, place):
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
