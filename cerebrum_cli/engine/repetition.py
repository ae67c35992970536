"""Find that a reply repeats itself without end: its last MIN_TOKENS tokens are copies of one passage.

Documents repeat passages, too, but they end: forms, empty tables, refrains, dumps of zeros.
"""

from __future__ import annotations

from array import array

from cerebrum_cli.core.token_ids import TOKEN_BYTES

MAX_PERIOD = 512  # tokens of the passage that is repeated
# More than documents repeat: of the 110 in tests/support/repetitive_documents.py, in tokens of Qwen 2.5, Gemma 3 and
# SmolLM2, a hexdump of 512 zero bytes repeats the most, 1,487. A model that is in a loop stays in it.
MIN_TOKENS = 2048
STEP = 32  # tokens between two checks, each of which takes a tenth of a millisecond


def repetition_end(tokens: array[int], checked: int) -> int | None:
    """Number of tokens, more than the `checked` ones, after which a reply repeats itself; None if it does not."""
    for length in range(checked - checked % STEP + STEP, len(tokens) + 1, STEP):
        if repeats(tokens, length):
            return length
    return None


def repeats(tokens: array[int], length: int) -> bool:
    """Whether the MIN_TOKENS that end the first `length` tokens also occur at most MAX_PERIOD before."""
    if length <= MIN_TOKENS:
        return False
    window = tokens[max(0, length - MIN_TOKENS - MAX_PERIOD) : length].tobytes()
    last = window[-MIN_TOKENS * TOKEN_BYTES :]
    at = window.find(last, 0, -1)
    while at >= 0 and at % TOKEN_BYTES:  # within a token
        at = window.find(last, at + 1, -1)
    return at >= 0
