"""Token ids: types of tokenized text and of the functions that tokenize it, and common prefixes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TypeAlias

TokenIds: TypeAlias = tuple[int, ...]
Tokens: TypeAlias = "TokenIds | array[int]"  # an array takes a tenth of a tuple's memory
Tokenize = Callable[[str], TokenIds]
TokenPredicate = Callable[[int], bool]
NO_TOKEN: TokenPredicate = frozenset[int]().__contains__
TOKEN_BYTES = 4


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Pack token ids in native byte order, as llama.cpp does."""
    if not isinstance(tokens, array):
        tokens = array("i", tuple(tokens))
    return tokens.tobytes()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    return common_tokens(pack_tokens(a), pack_tokens(b))


def common_tokens(a: bytes, b: bytes) -> int:
    """Length of the common prefix of two packed token sequences, by bisection."""
    same = 0
    different = min(len(a), len(b))
    if a[:different] == b[:different]:
        return different // TOKEN_BYTES
    while different - same > 1:
        middle = (same + different) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            different = middle
    return same // TOKEN_BYTES
