"""llama.cpp's samplers as a chain in its default order: penalties, top-k, top-p, min-p, temperature, distribution.

A grammar is applied last and lazily: most sampled tokens fit it, and checking one token is cheap, while filtering the
whole vocabulary is not. Only if a token does not fit, all tokens are filtered and one is sampled again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import TokenScore
from cerebrum_cli.engine.llama.grammar import is_allowed, parse_grammar
from cerebrum_cli.engine.llama.library import llama

PENALTY_WINDOW = 64  # tokens, llama.cpp's own default

BatchPosition = Callable[[int], tuple[Any, int]]
"""The current context, which samplers outlive, and the index of a row of the last decode in its batch."""


class LlamaSampler:
    """The sampler chain of one sequence."""

    def __init__(
        self, vocab: Any, batch_position: BatchPosition, params: SamplingParams, seed: int, prompt: Sequence[int]
    ) -> None:
        self._batch_position = batch_position
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in _chain(params, seed, llama.llama_vocab_n_tokens(vocab)):
            llama.llama_sampler_chain_add(self._chain, sampler)
        if params.repeat_penalty != 1.0:
            for token in prompt[-PENALTY_WINDOW:]:
                llama.llama_sampler_accept(self._chain, token)

    def sample(self, row: int) -> int:
        """Sample the next token from a row of logits, and accept it."""
        return int(llama.llama_sampler_sample(self._chain, *self._batch_position(row)))

    def accept(self, token: int) -> None:
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)


class GreedySampler:
    """Sample the most likely token, the lowest id if tied, as llama.cpp's chain does, but eight times as fast.

    Only for batches: importing numpy takes longer than sampling all tokens of one answer.
    """

    def __init__(self, logits: Callable[[int], Any]) -> None:
        self._logits = logits

    def sample(self, row: int) -> int:
        return int(self._logits(row).argmax())

    def accept(self, token: int) -> None:
        """Do nothing: no sampler depends on earlier tokens."""

    def close(self) -> None:
        """Do nothing: there are no native samplers."""


class GrammarSampler(LlamaSampler):
    """A sampler constrained by a grammar."""

    def __init__(
        self,
        vocab: Any,
        batch_position: BatchPosition,
        params: SamplingParams,
        seed: int,
        prompt: Sequence[int],
        grammar: str,
    ) -> None:
        import numpy

        self._grammar = parse_grammar(vocab, grammar)
        super().__init__(vocab, batch_position, params, seed, prompt)
        size = llama.llama_vocab_n_tokens(vocab)
        self._data = numpy.zeros(size, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._ids = numpy.arange(size)

    def sample(self, row: int) -> int:
        """Sample the next token that the grammar allows; GrammarError if there is none."""
        row_logits = logits(*self._batch_position(row), len(self._data))
        token = self._draw(self._candidates(row_logits))
        if not is_allowed(self._grammar, token):
            allowed = self._apply_grammar(self._candidates(row_logits))
            if self._data["logit"].max() == float("-inf"):
                raise GrammarError("the grammar rejects every possible next token", "check that it can be completed")
            token = self._draw(allowed)
        llama.llama_sampler_accept(self._chain, token)
        llama.llama_sampler_accept(self._grammar, token)
        return token

    def _candidates(self, row_logits: Any) -> Any:
        self._data["id"] = self._ids
        self._data["logit"] = row_logits
        return _array(self._data.ctypes.data_as(llama.llama_token_data_p), len(self._data))

    def _apply_grammar(self, candidates: Any) -> Any:
        llama.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        return candidates

    def _draw(self, candidates: Any) -> int:
        llama.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def close(self) -> None:
        llama.llama_sampler_free(self._grammar)
        super().close()


def logits(context: Any, index: int, size: int) -> Any:
    """View a row of `size` logits in llama.cpp's memory, valid until the next decode."""
    from numpy.ctypeslib import as_array

    return as_array(llama.llama_get_logits_ith(context, index), (size,))


def score_row(row_logits: Any, tokens: Iterable[int]) -> list[TokenScore]:
    """Score tokens by a row of logits."""
    from numpy import exp, log

    argmax = int(row_logits.argmax())
    highest = row_logits[argmax]
    log_total = float(highest) + float(log(exp(row_logits - highest).sum()))
    return [TokenScore(float(row_logits[token]) - log_total, token == argmax) for token in tokens]


def _chain(params: SamplingParams, seed: int, vocabulary_size: int) -> list[Any]:
    samplers = []
    if params.repeat_penalty != 1.0:
        samplers.append(
            llama.llama_sampler_init_penalties(vocabulary_size, PENALTY_WINDOW, params.repeat_penalty, 0.0, 0.0)
        )
    if params.temperature <= 0:
        return [*samplers, llama.llama_sampler_init_greedy()]
    return [
        *samplers,
        llama.llama_sampler_init_top_k(params.top_k),
        llama.llama_sampler_init_top_p(params.top_p, 1),
        llama.llama_sampler_init_min_p(params.min_p, 1),
        llama.llama_sampler_init_temp(params.temperature),
        llama.llama_sampler_init_dist(seed),
    ]


def _array(data: Any, size: int) -> Any:
    return llama.llama_token_data_array(data=data, size=size, selected=-1, sorted=False)
