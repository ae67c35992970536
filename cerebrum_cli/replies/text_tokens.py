"""Texts as tokens of a vocabulary: which one for a bias, and which hold whole characters."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.declaration import TokenBias
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.core.vocabulary import continuation, detokenize

if TYPE_CHECKING:
    from cerebrum_cli.core.vocabulary import Vocabulary

MAX_CHARACTER_BYTES = 4  # of UTF-8, and so at most as many tokens


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


def resolve_biases(vocabulary: Vocabulary, biases: Iterable[TokenBias]) -> tuple[TokenBias, ...]:
    """Replace text by token ids; of several biases of a token the last counts. Raises UsageError."""
    resolved = {_token_id(vocabulary, token): bias for token, bias in biases}
    return tuple(TokenBias(token, bias) for token, bias in resolved.items())


def _token_id(vocabulary: Vocabulary, token: int | str) -> int:
    if isinstance(token, int):
        if token >= vocabulary.size:
            raise UsageError(f"logit_bias: this model has no token {token}", f"ids are below {vocabulary.size}")
        return token
    tokens = continuation(vocabulary, (Text(token, trusted=True),))
    if len(tokens) == 1:
        return tokens[0]
    listed = ", ".join(f"{part} {detokenize(vocabulary, [part])!r}" for part in tokens)
    raise UsageError(
        f"logit_bias: {token!r} is not one token of this model but {len(tokens)}: {listed}",
        "put a space before it, or bias tokens by their ids, as in 42=-1",
    )
