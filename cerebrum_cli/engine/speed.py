"""Forecasts of how fast a CPU runs a model, from the fastest replies of any models on this machine. Pure.

The time of a token is in proportion to the bytes of weights that are read for it, and to the number of layers.
"""

from __future__ import annotations

from typing import NamedTuple

from cerebrum_cli.core.events import Timings
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.gguf.sizes import ModelSizes

# Bytes that could be read in the time that a layer takes beside its weights; measured with models of 24 to 30 layers.
LAYER = 4_000_000
AVX512_PROMPT_LAYER = 12_000_000  # for a token of a prompt, whose weights take less time
PROMPT_TOKENS, ANSWER_TOKENS = 200, 100  # of the question and the answer that are forecast
MIN_PREFILL, MIN_STEPS = 32, 16  # tokens; shorter prompts and replies say little about speed
MAX_DRAFTED = 0.3  # draft tokens by step; more slow the steps down
MIN_BYTES = 50_000_000  # so do models that caches hold
AVX2, AVX512 = (10e9, 35e9), (14e9, 60e9)  # bytes per second of a thread, measured on AMD EPYC
MEMORY_THREADS = 2  # that read as fast as the memory is on most desktop computers


class Speed(NamedTuple):
    """Bytes per second: to generate, to evaluate prompts, and of memory that one thread reads; 0 is unknown.

    In a prompt, a layer takes as much time as `prompt_layer` bytes of weights.
    """

    generation: float = 0.0
    prompts: float = 0.0
    bandwidth: float = 0.0
    prompt_layer: int = LAYER

    def with_reply(self, sizes: ModelSizes, timings: Timings) -> Speed:
        """The faster of this and of a model's reply, if that is long enough: other programs only slow replies down."""
        steps = timings.decode_steps - timings.draft_n_accepted
        is_short = timings.prefill_tokens < MIN_PREFILL or steps < MIN_STEPS
        if is_short or timings.draft_n > MAX_DRAFTED * steps or sizes.active_bytes < MIN_BYTES:
            return self
        generation = steps / timings.decode_s * work(sizes, LAYER)
        prompts = timings.prompt_tokens_per_second * work(sizes, self.prompt_layer)
        return self._replace(generation=max(self.generation, generation), prompts=max(self.prompts, prompts))


@frozen
class Forecast:
    """Tokens generated per second, seconds until the first one after a prompt, and of reasoning before the answer."""

    tokens_per_second: float
    first_token_s: float
    thinking_s: float

    @property
    def answer_s(self) -> float:
        """Seconds until a short answer is complete."""
        return self.first_token_s + self.thinking_s + ANSWER_TOKENS / self.tokens_per_second


def work(sizes: ModelSizes, layer: int) -> float:
    """Bytes that could be read in the time of a token."""
    return sizes.active_bytes + layer * len(sizes.layers)


def forecast(sizes: ModelSizes, speed: Speed, thinking_tokens: int) -> Forecast:
    rate = speed.generation / work(sizes, LAYER)
    prompt_s = PROMPT_TOKENS * work(sizes, speed.prompt_layer) / speed.prompts
    return Forecast(_rounded(rate), _rounded(prompt_s), _rounded(thinking_tokens / rate))


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def expected(threads: int, has_avx512: bool, recorded: Speed) -> Speed:
    """The speed before any reply, limited by that of the memory if it is known."""
    generation, prompts = AVX512 if has_avx512 else AVX2
    read = threads * generation
    if recorded.bandwidth:
        read = min(read, MEMORY_THREADS * recorded.bandwidth)
    return recorded._replace(generation=read, prompts=threads * prompts)
