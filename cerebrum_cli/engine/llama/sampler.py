"""llama.cpp's samplers as a chain in its default order.

These are logit biases, penalties, DRY, top-n-sigma, top-k, typical-p, top-p, min-p, temperature and distribution. At
temperature 0, the likeliest token follows DRY.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.bindings import llama

PENALTY_WINDOW = 64  # tokens, llama.cpp's own default
LEAST_P = 1e-30  # of a token for typical-p, whose entropy is not a number with a probability of 0


@dataclass(slots=True)
class Prototype:
    """The latest sampler for DRY, to clone: a new one reads the whole vocabulary.

    Only the latest, since rows may all have other settings; clones outlive what they are made from.
    """

    _key: object = None
    _sampler: Any = None

    def clone(self, key: object, create: Callable[[], Any]) -> Any:
        if self._key != key:
            created = create()
            self.close()
            self._key, self._sampler = key, created
        return llama.llama_sampler_clone(self._sampler)

    def close(self) -> None:
        if self._sampler:
            llama.llama_sampler_free(self._sampler)


def create_chain(vocab: Any, params: SamplingParams, seed: int, prompt: Sequence[int], prototype: Prototype) -> Any:
    """Create a chain that has accepted the end of the prompt, as far as penalties look back."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for sampler in _samplers(vocab, params, seed, prototype):
        llama.llama_sampler_chain_add(chain, sampler)
    window = PENALTY_WINDOW if params.has_penalties else 0
    if params.has_dry:
        window = max(window, params.dry_penalty_last_n)
    for token in prompt[-window:] if window else ():
        llama.llama_sampler_accept(chain, token)
    return chain


def _samplers(vocab: Any, params: SamplingParams, seed: int, prototype: Prototype) -> Iterator[Any]:
    size = llama.llama_vocab_n_tokens(vocab)
    if params.logit_bias:
        biases = [llama.llama_logit_bias(token=int(bias.token), bias=bias.bias) for bias in params.logit_bias]
        yield llama.llama_sampler_init_logit_bias(size, len(biases), (llama.llama_logit_bias * len(biases))(*biases))
    if params.has_penalties:
        yield llama.llama_sampler_init_penalties(
            size, PENALTY_WINDOW, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
        )
    if params.has_dry:
        yield _dry_sampler(vocab, params, prototype)
    if params.temperature > 0:
        yield from _random_samplers(params, seed)
    else:
        yield llama.llama_sampler_init_greedy()


def _dry_sampler(vocab: Any, params: SamplingParams, prototype: Prototype) -> Any:
    numbers = (params.dry_multiplier, params.dry_base, params.dry_allowed_length, params.dry_penalty_last_n)
    texts = [text.encode(errors="surrogatepass") for text in params.dry_breakers]
    breakers = (ctypes.c_char_p * len(texts))(*texts)
    return prototype.clone(
        (*numbers, *texts),
        lambda: llama.llama_sampler_init_dry(vocab, *numbers, breakers, len(texts)),
    )


def _random_samplers(params: SamplingParams, seed: int) -> Iterator[Any]:
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


@dataclass
class Chain:
    """The chain of one sequence, which it frees."""

    chain: Any

    def accept(self, token: int) -> None:
        llama.llama_sampler_accept(self.chain, token)

    def close(self) -> None:
        llama.llama_sampler_free(self.chain)


@dataclass
class LlamaSampler(Chain):
    """A chain that llama.cpp itself applies to the logits of a row, by its context and the row's index in its batch."""

    batch_position: Callable[[int], tuple[Any, int]]

    def sample(self, row: int) -> int:
        return int(llama.llama_sampler_sample(self.chain, *self.batch_position(row)))
