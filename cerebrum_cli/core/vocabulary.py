"""The vocabulary of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cerebrum_cli.core.conversation import PromptPart, Text, Tokens
from cerebrum_cli.core.token_ids import TokenIds


class Vocabulary(Protocol):
    """Converts text to tokens and back; for any thread."""

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
