"""What reads the logits of the last decode with numpy: scores, and samplers.

A single answer does without: importing numpy takes longer than sampling all its tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log
from typing import Any

import numpy

from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.llama.bindings import llama
from cerebrum_cli.engine.llama.sampler import Chain
from cerebrum_cli.engine.step import TokenScore

MARGINS = (4.0, 8.0, 12.0, 16.0)  # below the highest logit, until they have enough tokens
MAX_SORTED = 20_000  # tokens, in 0.7 ms
RANGE = 64  # below the highest logit: probabilities beyond it are too small to matter in a sum
BISECTIONS = 9  # until at most a few thousand of 152,000 tokens are left


def logits(context: Any, index: int, size: int) -> Any:
    """View a row of `size` logits in llama.cpp's memory, valid until the next decode."""
    address = ctypes.addressof(llama.llama_get_logits_ith(context, index).contents)
    row: Any = (ctypes.c_float * size).from_address(address)
    return numpy.ndarray(size, numpy.float32, row)


def score_row(row_logits: Any, tokens: Iterable[int]) -> list[TokenScore]:
    argmax = int(row_logits.argmax())
    highest = row_logits[argmax]
    log_total = float(highest) + float(numpy.log(numpy.exp(row_logits - highest).sum()))
    return [TokenScore(float(row_logits[token]) - log_total, token == argmax) for token in tokens]


def nucleus(row_logits: Any, weights: Any, top_p: float) -> tuple[Any, bool]:
    """The tokens that top-p keeps, and whether they are sorted, the likeliest first.

    Weights are proportional to probabilities. More than MAX_SORTED tokens are not sorted: llama.cpp takes 16 ms to sort
    152,000.
    """
    least = top_p * weights.sum(dtype=numpy.float64)
    highest = row_logits.max()
    for margin in MARGINS:
        tokens = numpy.flatnonzero(row_logits >= highest - margin)
        if len(tokens) > MAX_SORTED:
            break
        if weights[tokens].sum(dtype=numpy.float64) >= least:
            return _likeliest(tokens, row_logits, weights, least), True
    low, high = highest - RANGE, highest + 1
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if weights @ (row_logits >= middle) >= least:
            low = middle
        else:
            high = middle
    low, high = 2 * low - high, 2 * high - low  # sums of float32 are not exact
    certain = numpy.flatnonzero(row_logits >= high)
    tokens = numpy.flatnonzero((row_logits >= low) & (row_logits < high))
    left = least - weights[certain].sum(dtype=numpy.float64)
    tokens = numpy.concatenate([certain, _likeliest(tokens, row_logits, weights, left)])
    if len(tokens) > MAX_SORTED:
        return tokens, False
    return _sorted(tokens, row_logits), True


def _likeliest(tokens: Any, row_logits: Any, weights: Any, least: float) -> Any:
    """The likeliest of these tokens, sorted: as few as have weights of at least `least` together."""
    tokens = _sorted(tokens, row_logits)
    kept = numpy.searchsorted(weights[tokens].cumsum(dtype=numpy.float64), least) + 1
    return tokens[:kept]


def _sorted(tokens: Any, row_logits: Any) -> Any:
    return tokens[numpy.argsort(-row_logits[tokens])]


class Candidates:
    """Tokens with their logits, as samplers take them, in one buffer: sequences are sampled one after another.

    It takes 20 bytes for each token of the vocabulary (SAMPLING_BYTES in engine/memory.py).
    """

    def __init__(self, size: int) -> None:
        self._tokens = numpy.arange(size, dtype=numpy.int32)
        self._weights = numpy.empty(size, numpy.float32)
        self._data = numpy.empty(size, [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        self._address = self._data.ctypes.data_as(llama.llama_token_data_p)
        self.logits = self._data["logit"]  # by token, as long as no sampler has sorted those of `fill`

    def fill(self, row_logits: Any, tokens: Any = None, is_sorted: bool = False) -> Any:
        """llama.cpp's array of some tokens, or of all."""
        if tokens is None:
            tokens = self._tokens
            token_logits = row_logits
        else:
            token_logits = row_logits[tokens]
        size = len(tokens)
        self._data["id"][:size] = tokens
        self.logits[:size] = token_logits
        return llama.llama_token_data_array(data=self._address, size=size, selected=-1, sorted=is_sorted)

    def likeliest(self, row_logits: Any, params: SamplingParams) -> Any:
        """The tokens that min-p may keep, or those that top-p keeps."""
        highest = row_logits.max()
        if not numpy.isfinite(highest):  # of a damaged model
            return self.fill(row_logits)
        if params.top_p < 1:
            numpy.subtract(row_logits, highest, out=self._weights)
            numpy.exp(self._weights, out=self._weights)
            tokens, is_sorted = nucleus(row_logits, self._weights, params.top_p)
            return self.fill(row_logits, tokens, is_sorted)
        if params.min_p > 0:
            return self.fill(row_logits, numpy.flatnonzero(row_logits >= highest + log(params.min_p) - 0.01))
        return self.fill(row_logits)


@dataclass
class ChainSampler(Chain):
    """A chain that shares its candidates with those of other sequences.

    With `params`, it gets only the likeliest of them, from which its chain samples without top-k and top-p.
    """

    logits: Callable[[int], Any]
    candidates: Candidates
    params: SamplingParams | None

    def sample(self, row: int) -> int:
        token = self.draw(self.logits(row))
        self.accept(token)
        return token

    def draw(self, row_logits: Any) -> int:
        """Choose a token, without accepting it."""
        if self.params:
            array = self.candidates.likeliest(row_logits, self.params)
        else:
            array = self.candidates.fill(row_logits)
        llama.llama_sampler_apply(self.chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


@dataclass
class GreedySampler:
    """Sample the most likely token, the lowest id if tied, as llama.cpp's chain does, but eight times as fast."""

    logits: Callable[[int], Any]

    def sample(self, row: int) -> int:
        return int(self.logits(row).argmax())

    def accept(self, token: int) -> None:
        pass

    def close(self) -> None:
        pass
