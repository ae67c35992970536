"""Where a sentence ends in a text that is being generated."""

from __future__ import annotations

import re

SENTENCE_TOKENS = 16  # to wait for the end of a sentence

_SENTENCE_END = re.compile(
    r"""(?: \n | [。！？] | [^\W\d_][.!?] | [^\w\s][.!?] | \d[!?] ) ["')\]”’*]*+ \s*+ \Z""", re.VERBOSE
)
_NUMBER_END = re.compile(r"(?<![\d.])\d++\.[*)]*+\s*+\Z")  # of a sentence, unless it is a decimal point
_LIST_ITEM = re.compile(r"(?:\A|\n)\s*+\d++\.\s*+\Z")
_DECIMAL = re.compile(r"\d\.\d")
_TAIL = 64  # characters in which a sentence may end


class Sentences:
    """The end of a text that grows: its last characters are `tail`."""

    def __init__(self) -> None:
        self.tail = ""
        self._has_decimals = False

    def read(self, text: str) -> None:
        """Add text."""
        self.tail = (self.tail + text)[-max(_TAIL, len(text)) :]
        self._has_decimals = self._has_decimals or _DECIMAL.search(self.tail) is not None

    @property
    def is_at_end(self) -> bool:
        """Whether a sentence has just ended; behind a number, only in text without decimal points."""
        tail = self.tail
        if _SENTENCE_END.search(tail):
            return True
        return not self._has_decimals and _NUMBER_END.search(tail) is not None and not _LIST_ITEM.search(tail)
