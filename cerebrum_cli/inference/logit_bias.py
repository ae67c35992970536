"""Logit biases by token id: a bias may name its token by text, which must be exactly one token."""

from __future__ import annotations

from collections.abc import Iterable

from cerebrum_cli.core.conversation import Text, Tokens
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.sampling import TokenBias
from cerebrum_cli.engine.backend import Vocabulary

MAX_SHOWN = 8  # tokens, in an error message


def resolve_biases(vocabulary: Vocabulary, biases: Iterable[TokenBias]) -> tuple[TokenBias, ...]:
    """Replace text by token ids; of several biases of a token the last counts. Raises UsageError."""
    resolved = {_token_id(vocabulary, token): bias for token, bias in biases}
    return tuple(TokenBias(token, bias) for token, bias in resolved.items())


def _token_id(vocabulary: Vocabulary, token: int | str) -> int:
    if isinstance(token, int):
        if token >= vocabulary.size:
            problem = f"logit_bias: this model has no token {token}"
            raise UsageError(problem, f"ids are below {vocabulary.size}")
        return token
    tokens = _tokens_within_text(vocabulary, token)
    if len(tokens) == 1:
        return tokens[0]
    shown = [f"{each} {vocabulary.piece(each, special=True).decode('utf-8', 'replace')!r}" for each in tokens]
    listed = ", ".join((*shown[:MAX_SHOWN], *(["..."] if len(shown) > MAX_SHOWN else [])))
    problem = f"logit_bias: {token!r} is not one token of this model but {len(tokens)}: {listed}"
    spaced = f" {token}"
    if len(_tokens_within_text(vocabulary, spaced)) == 1:
        raise UsageError(problem, f"with its leading space it is one: {spaced!r}")
    raise UsageError(problem, "bias some of them by their ids, as in 42=-1")


def _tokens_within_text(vocabulary: Vocabulary, text: str) -> tuple[int, ...]:
    """Tokens of a text that follows another: at the start, SentencePiece would add a space."""
    before = Tokens(vocabulary.tokenize([Text("a", trusted=True)]))
    return vocabulary.tokenize([before, Text(text, trusted=True)])[len(before.ids) :]
