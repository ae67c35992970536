"""Find that a reply repeats itself: it ends with many copies of one passage.

Documents repeat passages, too: forms, empty tables, refrains. Most of them have fewer copies; a longer one can be
continued.
"""

from __future__ import annotations

from array import array

from cerebrum_cli.core.token_ids import TOKEN_BYTES

SHORT_PERIOD, MAX_PERIOD = 64, 512  # tokens of a passage
SHORT_COPIES, LONG_COPIES = 8, 4  # of a passage up to SHORT_PERIOD, and of a longer one
MIN_TOKENS = 256  # of all copies
STEP = 32  # tokens between two checks, each of which takes some microseconds


def repetition_end(tokens: array[int], checked: int) -> int | None:
    """Number of tokens, more than the `checked` ones, after which a reply repeats itself; None if it does not."""
    for length in range(checked - checked % STEP + STEP, len(tokens) + 1, STEP):
        if repeats(tokens, length):
            return length
    return None


def repeats(tokens: array[int], length: int) -> bool:
    """Whether the first `length` tokens end with enough copies of one passage."""
    if length < MIN_TOKENS:
        return False
    window = tokens[max(0, length - MAX_PERIOD * LONG_COPIES) : length].tobytes()
    last = window[-(MIN_TOKENS - SHORT_PERIOD) * TOKEN_BYTES :]  # whatever the period, they also occur one before
    oldest = max(0, len(window) - len(last) - MAX_PERIOD * TOKEN_BYTES)
    at = window.rfind(last, oldest, -1)
    while at >= 0:
        period, rest = divmod(len(window) - len(last) - at, TOKEN_BYTES)
        size = copied_length(period) * TOKEN_BYTES
        if not rest and size <= len(window) and window[-size:].startswith(window[period * TOKEN_BYTES - size :]):
            return True
        at = window.rfind(last, oldest, at + len(last) - 1)
    return False


def copied_length(period: int) -> int:
    """Number of tokens that the copies of a passage have when a reply ends."""
    copies = SHORT_COPIES if period <= SHORT_PERIOD else LONG_COPIES
    return max(period * copies, MIN_TOKENS)
