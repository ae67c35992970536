"""The vocabulary of a model: texts as tokens, how many at least, which are special."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable
from typing import Protocol

from cerebrum_cli.core.conversation import PromptPart, Text, Tokens
from cerebrum_cli.core.token_ids import TokenIds

MAX_CHARACTER_BYTES = 4  # of UTF-8, and so at most as many tokens
POSSIBLE_CHARACTERS = 8  # for each token of the context, which are tokenized without asking whether they can fit


class Vocabulary(Protocol):
    """Converts text to tokens and back."""

    def tokenize(self, parts: Iterable[PromptPart]) -> TokenIds:
        """Tokenize a prompt; untrusted text never becomes a special token."""

    @property
    def size(self) -> int:
        """Number of tokens."""

    @property
    def longest_token(self) -> int:
        """Bytes of text that one token can stand for, at most. The first access takes a tenth of a second."""

    def piece(self, token: int, special: bool = False) -> bytes:
        """Convert a token to its bytes; empty for a control token unless `special`."""

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation (EOS, EOT and similar)."""

    def special_token_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of all control and user-defined tokens spelled out in the texts."""

    def special_token_text(self, name: str) -> str:
        """Text of the vocabulary's `bos` or `eos` token; empty if it has none."""


def continuation(vocabulary: Vocabulary, parts: Iterable[PromptPart]) -> TokenIds:
    """Tokenize text that continues other text: without BOS, and without the space that a vocabulary may put first."""
    anchor = vocabulary.tokenize((Text("a"),))[-1]
    tokens = vocabulary.tokenize((Tokens((anchor,)), *parts))
    return tokens[tokens.index(anchor) + 1 :]


def least_tokens(vocabulary: Vocabulary, context_size: int, prompt: Iterable[PromptPart]) -> int | None:
    """Least possible number of tokens of a prompt that cannot fit, whatever its tokens are; None for any other."""
    text = "".join(part.value for part in prompt if isinstance(part, Text))
    if len(text) <= POSSIBLE_CHARACTERS * context_size:
        return None
    least = len(text.encode(errors="surrogatepass")) // vocabulary.longest_token
    if least <= context_size:
        return None
    return least


def detokenize(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    return b"".join(vocabulary.piece(token, special=True) for token in ids).decode(errors="replace")


def drop_partial_character(vocabulary: Vocabulary, ids: TokenIds) -> TokenIds:
    """Drop tokens at the end that hold only part of a character."""
    while ids:
        decoder = getincrementaldecoder("utf-8")("replace")  # bytes may start inside a character
        for token in ids[-MAX_CHARACTER_BYTES:]:
            decoder.decode(vocabulary.piece(token))
        if not decoder.getstate()[0]:
            break
        ids = ids[:-1]
    return ids
