"""Estimate the tokens of a text, for servers that send text alone."""

from __future__ import annotations

import re
from array import array

# What is likely to be one token. Tokenizers split text in a similar way before they merge bytes (`pre_tokenizer` in
# tokenizer.json of Qwen 2.5 and Llama 3); the lengths are rounded from counts of Qwen 2.5's and Gemma 3's tokens. For 8
# of 10 documents in tests/support/repetitive_documents.py, the estimate is 0.9 to 2 times their number. It is less for
# emoji, and more for long runs of one character, which some tokenizers have long tokens for.
ESTIMATED_TOKEN = re.compile(
    r"""(?xs)
    [ ]?[A-Za-z\u00c0-\u024f]{1,8}    # a word, or a part of it
    | [ ]?[\u0370-\u1fff]{1,3}        # letters of other alphabets
    | [ ]?([-_=*.\#~])\1{1,15}        # a run of one mark
    | [ ]?[!-/:-@\[-`{-~]{1,2}        # other marks
    | \n?[^\S\n]{1,16} | \n{1,2}     # an indent, or blank lines
    | .                               # a digit, a Chinese character, a symbol
    """
)


class EstimatedTokens:
    """The estimated tokens of a text that arrives in parts, whichever they are; the last one may still grow."""

    def __init__(self) -> None:
        self.ids = array("i")
        self._ends = array("i")  # of each token, in characters of the text
        self._id_of: dict[str, int] = {}
        self._rest = ""

    @property
    def characters(self) -> int:
        """Number of characters of the text so far."""
        return self.characters_of(len(self.ids)) + len(self._rest)

    def characters_of(self, count: int) -> int:
        """Number of characters of the first `count` tokens."""
        return self._ends[count - 1] if count else 0

    def add(self, text: str) -> None:
        start = self.characters_of(len(self.ids))
        self._rest += text
        end = 0
        for token in ESTIMATED_TOKEN.finditer(self._rest):
            if token.end() == len(self._rest):
                break
            end = token.end()
            self.ids.append(self._id_of.setdefault(token[0], len(self._id_of)))
            self._ends.append(start + end)
        self._rest = self._rest[end:]
