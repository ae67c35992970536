"""Replies that repeat themselves: cycles of tokens, and lists of an answer in JSON that go round in circles."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from math import ceil

from cerebrum_cli.core.token_ids import TOKEN_BYTES

# A reply that ends with many copies of one passage repeats itself. Documents repeat passages, too: forms, empty tables,
# refrains. Most of them have fewer copies; a longer one can be continued.
SHORT_PERIOD, MAX_PERIOD = 64, 512  # tokens of a passage
SHORT_COPIES, LONG_COPIES = 8, 4  # of a passage up to SHORT_PERIOD, and of a longer one
MIN_TOKENS = 256  # of all copies
STEP = 32  # tokens between two checks, each of which takes some microseconds
# The last entries of a list go round if they are copies of a cycle that have so many characters, or more. Numbers may:
# they are often the cells of a table.
ENTRY_COPIES, ENTRY_CHARACTERS = 4, 160
MAX_CYCLE = 64  # entries


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


@dataclass(slots=True)
class OpenContainer:
    """A list with its entries so far, or an object, and where its current entry starts in the answer."""

    entry_start: int
    entries: list[str] | None


class ListReader:
    """Reads an answer in JSON, up to where a list goes on whose last entries are copies of a cycle."""

    def __init__(self) -> None:
        self._text = ""  # whose characters are bytes
        self._open: list[OpenContainer] = []
        self._in_string = self._is_escaped = False

    def read(self, data: bytes, may_repeat: bool = False) -> int | None:
        """Read bytes, up to the comma after which a list would repeat itself again; None if there is none."""
        for at, character in enumerate(data.decode("latin-1")):
            if self._in_string:
                self._in_string = self._is_escaped or character != '"'
                self._is_escaped = character == "\\" and not self._is_escaped
            elif character == "," and not self._end_entry(may_repeat):
                return at
            elif character == '"':
                self._in_string = True
            elif character in "[{":
                self._open.append(OpenContainer(len(self._text) + 1, [] if character == "[" else None))
            elif character in "]}":
                self._open.pop()
            self._text += character
        return None

    def _end_entry(self, may_repeat: bool) -> bool:
        """End an entry of the innermost list; False if it only repeats those before it, and must not."""
        innermost = self._open[-1]
        if innermost.entries is None:
            return True
        innermost.entries.append(self._text[innermost.entry_start :].strip())
        if not may_repeat and goes_round(innermost.entries):
            innermost.entries.pop()
            return False
        innermost.entry_start = len(self._text) + 1
        return True


def goes_round(entries: list[str]) -> bool:
    """Whether the last entries of a list are copies of a cycle."""
    if '"' not in entries[-1]:
        return False
    for length in range(1, min(MAX_CYCLE, len(entries) // ENTRY_COPIES) + 1):
        cycle = entries[-length:]
        copies = max(ENTRY_COPIES, ceil(ENTRY_CHARACTERS / sum(map(len, cycle))))
        if entries[-length * copies :] == cycle * copies:
            return True
    return False
