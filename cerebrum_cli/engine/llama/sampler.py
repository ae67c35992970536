"""llama.cpp's samplers as a chain in its default order.

These are logit biases, penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, temperature and distribution. At
temperature 0, the likeliest token follows DRY.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.bindings import llama

PENALTY_WINDOW = 64  # tokens, llama.cpp's own default
LEAST_P = 1e-30  # of a token for typical-p, whose entropy is not a number with a probability of 0

BatchPosition = Callable[[int], tuple[Any, int]]
"""The current context, which samplers outlive, and the index of a row of the last decode in its batch."""


class SamplerChains:
    """Builds the sampler chains of a model's sequences.

    A DRY sampler reads the whole vocabulary for its sequence breakers, so the latest is saved, and copied for others.
    """

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self._dry: tuple[tuple[Any, ...], Any] | None = None

    def create(self, params: SamplingParams, seed: int, prompt: Sequence[int]) -> Any:
        """Create a chain that has accepted the end of the prompt, as far as penalties look back."""
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in self._samplers(params, seed):
            llama.llama_sampler_chain_add(chain, sampler)
        window = PENALTY_WINDOW if params.has_penalties else 0
        if params.has_dry:
            window = max(window, params.dry_penalty_last_n)
        for token in prompt[-window:] if window else ():
            llama.llama_sampler_accept(chain, token)
        return chain

    def _samplers(self, params: SamplingParams, seed: int) -> Iterator[Any]:
        size = llama.llama_vocab_n_tokens(self._vocab)
        if params.logit_bias:
            biases = [llama.llama_logit_bias(token=int(bias.token), bias=bias.bias) for bias in params.logit_bias]
            array = (llama.llama_logit_bias * len(biases))(*biases)
            yield llama.llama_sampler_init_logit_bias(size, len(biases), array)
        if params.has_penalties:
            penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
            yield llama.llama_sampler_init_penalties(size, PENALTY_WINDOW, *penalties)
        if params.has_dry:
            yield self._dry_sampler(params)
        if params.temperature <= 0:
            yield llama.llama_sampler_init_greedy()
            return
        if params.top_n_sigma > 0:
            yield llama.llama_sampler_init_top_n_sigma(params.top_n_sigma)
        yield llama.llama_sampler_init_top_k(params.top_k)
        if params.typical_p < 1:
            yield llama.llama_sampler_init_min_p(LEAST_P, 1)
            yield llama.llama_sampler_init_typical(params.typical_p, 1)
        yield llama.llama_sampler_init_top_p(params.top_p, 1)
        yield llama.llama_sampler_init_min_p(params.min_p, 1)
        yield llama.llama_sampler_init_temp(params.temperature)
        yield llama.llama_sampler_init_dist(seed)

    def _dry_sampler(self, params: SamplingParams) -> Any:
        numbers = (params.dry_multiplier, params.dry_base, params.dry_allowed_length, params.dry_penalty_last_n)
        key = (*numbers, params.dry_breakers)
        if self._dry is None or self._dry[0] != key:
            self.close()
            texts = [text.encode("utf-8", "surrogatepass") for text in params.dry_breakers]
            breakers = (ctypes.c_char_p * len(texts))(*texts)
            self._dry = key, llama.llama_sampler_init_dry(self._vocab, *numbers, breakers, len(texts))
        return llama.llama_sampler_clone(self._dry[1])

    def close(self) -> None:
        if self._dry:
            llama.llama_sampler_free(self._dry[1])
            self._dry = None


class LlamaSampler:
    """The sampler chain of one sequence."""

    def __init__(self, chain: Any, batch_position: BatchPosition) -> None:
        self._chain = chain
        self._batch_position = batch_position

    def sample(self, row: int) -> int:
        return int(llama.llama_sampler_sample(self._chain, *self._batch_position(row)))

    def accept(self, token: int) -> None:
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)
