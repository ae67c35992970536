"""llama.cpp's samplers as a chain in its default order.

These are penalties, DRY, top-k, top-p, min-p, temperature and distribution. At temperature 0, the likeliest token
follows DRY.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from cerebrum_cli.core.sampling import DRY_ALLOWED_LENGTH, DRY_BASE, DRY_BREAKERS, PENALTY_WINDOW, SamplingParams
from cerebrum_cli.engine.llama.bindings import llama


@dataclass(slots=True)
class DryPrototype:
    """The latest sampler for DRY, to clone: a new one reads the whole vocabulary.

    It searches the last `window` tokens for repeats. Only the latest is kept, since rows may all have other settings;
    clones outlive what they are made from.
    """

    vocab: Any
    window: int
    _multiplier: float = 0.0
    _sampler: Any = None

    def clone(self, multiplier: float) -> Any:
        if self._multiplier != multiplier:
            breakers = (ctypes.c_char_p * len(DRY_BREAKERS))(*map(str.encode, DRY_BREAKERS))
            numbers = (multiplier, DRY_BASE, DRY_ALLOWED_LENGTH, self.window)
            created = llama.llama_sampler_init_dry(self.vocab, *numbers, breakers, len(breakers))
            self.close()
            self._multiplier, self._sampler = multiplier, created
        return llama.llama_sampler_clone(self._sampler)

    def close(self) -> None:
        if self._sampler:
            llama.llama_sampler_free(self._sampler)


def create_chain(
    params: SamplingParams, seed: int, prompt: Sequence[int], dry: DryPrototype, suppressed: Sequence[int] = ()
) -> Any:
    """Create a chain that has accepted the end of the prompt, as far as penalties look back.

    It never draws a `suppressed` token.
    """
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for sampler in _samplers(params, seed, dry, suppressed):
        llama.llama_sampler_chain_add(chain, sampler)
    window = PENALTY_WINDOW if params.has_penalties else 0
    if params.has_dry:
        window = max(window, dry.window)
    for token in prompt[-window:] if window else ():
        llama.llama_sampler_accept(chain, token)
    return chain


def _samplers(params: SamplingParams, seed: int, dry: DryPrototype, suppressed: Sequence[int]) -> Iterator[Any]:
    size = llama.llama_vocab_n_tokens(dry.vocab)
    if suppressed:
        biases = [llama.llama_logit_bias(token=token, bias=-inf) for token in suppressed]
        yield llama.llama_sampler_init_logit_bias(size, len(biases), (llama.llama_logit_bias * len(biases))(*biases))
    if params.has_penalties:
        yield llama.llama_sampler_init_penalties(
            size, PENALTY_WINDOW, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
        )
    if params.has_dry:
        yield dry.clone(params.dry_multiplier)
    if params.temperature > 0:
        yield llama.llama_sampler_init_top_k(params.top_k)
        yield llama.llama_sampler_init_top_p(params.top_p, 1)
        yield llama.llama_sampler_init_min_p(params.min_p, 1)
        yield llama.llama_sampler_init_temp(params.temperature)
        yield llama.llama_sampler_init_dist(seed)
    else:
        yield llama.llama_sampler_init_greedy()


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
