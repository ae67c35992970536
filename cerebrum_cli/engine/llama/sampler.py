"""llama.cpp's samplers as a chain in its usual order: penalties, top-k, top-p, min-p, temperature, draw.

A grammar is asked last and lazily: most sampled tokens fit it, and checking one token is cheap, while sifting
the whole vocabulary is not. Only when a token does not fit are all tokens sifted and one is drawn again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Protocol

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.grammar import parse_grammar
from cerebrum_cli.engine.llama.library import llama

PENALTY_WINDOW = 64  # tokens a repeat penalty looks back on, llama.cpp's own default


class Contextual(Protocol):
    """A model with the context its sequences live in now."""

    @property
    def context(self) -> Any:
        """llama.cpp's context."""

    def place(self, row: int) -> int:
        """Return where a row of the last decode stands in it."""


class LlamaSampler:
    """The sampler of one sequence, in the context that its model has at the time."""

    def __init__(self, model: Contextual, params: SamplingParams, seed: int, prompt: Sequence[int]) -> None:
        self._model = model
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for part in _parts(params, seed, _vocabulary_size(model.context)):
            llama.llama_sampler_chain_add(self._chain, part)
        if params.repeat_penalty != 1.0:
            for token in prompt[-PENALTY_WINDOW:]:
                llama.llama_sampler_accept(self._chain, token)

    def sample(self, row: int) -> int:
        """Return the next token from a row of logits, and remember it."""
        return int(llama.llama_sampler_sample(self._chain, self._model.context, self._model.place(row)))

    def close(self) -> None:
        """Free the chain."""
        llama.llama_sampler_free(self._chain)


class GreedySampler:
    """A sampler that takes the likeliest token, the first of equals, as llama.cpp's chain does but eight times as fast.

    It takes numpy, which takes longer to import than all tokens of one answer to sample.
    """

    def __init__(self, model: Contextual) -> None:
        self._model = model
        self._size = _vocabulary_size(model.context)

    def sample(self, row: int) -> int:
        """Return the likeliest token of a row of logits."""
        return int(_logits(self._model.context, self._model.place(row), self._size).argmax())

    def close(self) -> None:
        """Nothing is held."""


class GrammarSampler(LlamaSampler):
    """A sampler whose tokens follow a grammar."""

    def __init__(
        self, model: Contextual, params: SamplingParams, seed: int, prompt: Sequence[int], grammar: str
    ) -> None:
        import numpy

        self._grammar = parse_grammar(llama.llama_model_get_vocab(llama.llama_get_model(model.context)), grammar)
        super().__init__(model, params, seed, prompt)
        self._data = numpy.zeros(_vocabulary_size(model.context), [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._tokens = numpy.arange(len(self._data))

    def sample(self, row: int) -> int:
        """Return the next token that the grammar allows; GrammarError if there is none."""
        logits = llama.llama_get_logits_ith(self._model.context, self._model.place(row))
        token = self._draw(self._candidates(logits))
        alone = llama.llama_token_data(id=token, logit=0.0, p=0.0)
        if self._apply_grammar(_array(ctypes.pointer(alone), 1)).data[0].logit == float("-inf"):
            fitting = self._apply_grammar(self._candidates(logits))
            if self._data["logit"].max() == float("-inf"):
                raise GrammarError("no token of this model goes on as the grammar wants", "check what it can end with")
            token = self._draw(fitting)
        llama.llama_sampler_accept(self._chain, token)
        llama.llama_sampler_accept(self._grammar, token)
        return token

    def _candidates(self, logits: Any) -> Any:
        from numpy.ctypeslib import as_array

        self._data["id"] = self._tokens
        self._data["logit"] = as_array(logits, (len(self._data),))
        return _array(self._data.ctypes.data_as(llama.llama_token_data_p), len(self._data))

    def _apply_grammar(self, candidates: Any) -> Any:
        llama.llama_sampler_apply(self._grammar, ctypes.byref(candidates))
        return candidates

    def _draw(self, candidates: Any) -> int:
        llama.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def close(self) -> None:
        """Free chain and grammar."""
        llama.llama_sampler_free(self._grammar)
        super().close()


def logits(context: Any, row: int) -> Any:
    """Return a row of logits as it stands in llama.cpp's memory, until the next decode."""
    return _logits(context, row, _vocabulary_size(context))


def logprob(context: Any, row: int, token: int) -> float:
    """Return the natural logarithm of the probability a row of logits gives a token, before any sampling setting."""
    from numpy import exp, log

    row_logits = logits(context, row)
    highest = row_logits.max()
    return float(row_logits[token] - highest - log(exp(row_logits - highest).sum()))


def _logits(context: Any, row: int, size: int) -> Any:
    from numpy.ctypeslib import as_array

    return as_array(llama.llama_get_logits_ith(context, row), (size,))


def _parts(params: SamplingParams, seed: int, vocabulary_size: int) -> list[Any]:
    parts = []
    if params.repeat_penalty != 1.0:
        parts.append(
            llama.llama_sampler_init_penalties(vocabulary_size, PENALTY_WINDOW, params.repeat_penalty, 0.0, 0.0)
        )
    if params.temperature <= 0:
        return [*parts, llama.llama_sampler_init_greedy()]
    return [
        *parts,
        llama.llama_sampler_init_top_k(params.top_k),
        llama.llama_sampler_init_top_p(params.top_p, 1),
        llama.llama_sampler_init_min_p(params.min_p, 1),
        llama.llama_sampler_init_temp(params.temperature),
        llama.llama_sampler_init_dist(seed),
    ]


def _array(data: Any, size: int) -> Any:
    return llama.llama_token_data_array(data=data, size=size, selected=-1, sorted=False)


def _vocabulary_size(context: Any) -> int:
    return int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(llama.llama_get_model(context))))
