"""How tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = 2**32 - 1  # llama.cpp reads the one above as "draw your own", which could not be reported


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling settings of one request, applied in llama.cpp's usual chain order.

    Temperature 0 is greedy. `repeat_penalty` 1.0 is none. `seed=None` draws a fresh one, which the
    FinishEvent reports. `max_tokens=None` goes on to the end of the context.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
