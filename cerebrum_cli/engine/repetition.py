"""Replies that repeat themselves: cycles of tokens, and lists of an answer in JSON that go round in circles."""

from __future__ import annotations

import json
from array import array
from contextlib import suppress
from math import ceil

from cerebrum_cli.core.token_ids import TOKEN_BYTES

# A reply that ends with many copies of one passage repeats itself. Documents repeat passages, too: forms, empty tables,
# refrains. Most of them have fewer copies; a longer one can be continued.
SHORT_PERIOD, MAX_PERIOD = 64, 512  # tokens of a passage
SHORT_COPIES, LONG_COPIES = 8, 4  # of a passage up to SHORT_PERIOD, and of a longer one
MIN_TOKENS = 256  # of all copies
STEP = 32  # tokens between two checks, each of which takes some microseconds
# The last entries of a list repeat if they are this many copies of a cycle, with at least this many characters. Numbers
# may: they are often the cells of a table.
ENTRY_COPIES, ENTRY_CHARACTERS = 4, 160
MAX_CYCLE = 2000  # characters


def repeats(tokens: array[int]) -> bool:
    """Whether the tokens end with enough copies of one passage."""
    if len(tokens) < MIN_TOKENS:
        return False
    window = tokens[-MAX_PERIOD * LONG_COPIES :].tobytes()
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


def repeats_list(answer: str, piece: str) -> bool:
    """Whether a comma in the next piece of an answer in JSON lets a list only repeat itself."""
    return any(character == "," and goes_round(answer + piece[:at]) for at, character in enumerate(piece))


def goes_round(answer: str) -> bool:
    """Whether the last entries of a list, which an answer in JSON ends with, are copies of a cycle."""
    start = answer.rfind(",", -MAX_CYCLE)
    while start >= 0:
        cycle = answer[start:]
        if '"' in cycle and answer.endswith(cycle * max(ENTRY_COPIES, ceil(ENTRY_CHARACTERS / len(cycle)))):
            with suppress(ValueError, RecursionError):  # of parts of an entry, or of a string
                json.loads(f"[{cycle[1:]}]")
                return True
        start = answer.rfind(",", -MAX_CYCLE, start)
    return False
