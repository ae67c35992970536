"""Sampling parameters, each declared with its flag, help and range."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.options import option

SEEDS = 2**32 - 1  # llama.cpp takes the next value for "draw a seed", which could not be reported


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, applied in llama.cpp's default order.

    Temperature 0 is greedy. `repeat_penalty` 1.0 is off. `seed=None` draws a seed, which the FinishEvent reports.
    `max_tokens=None` generates until the context is full. Generation stops before any text in `stop`.
    """

    max_tokens: int | None = option(
        None, "Maximum tokens to generate [default: no limit]", "Sampling", short="-n", metavar="N", least=1
    )
    temperature: float = option(0.0, "Sampling temperature; 0 is greedy [default: 0]", "Sampling", metavar="T", least=0)
    top_k: int = option(40, "Keep the K likeliest tokens; 0: all [default: 40]", "Sampling", metavar="K", least=0)
    top_p: float = option(
        0.95, "Keep the likeliest tokens up to probability P [default: 0.95]", "Sampling", metavar="P", least=0, most=1
    )
    min_p: float = option(
        0.05, "Drop tokens below P times the likeliest [default: 0.05]", "Sampling", metavar="P", least=0, most=1
    )
    repeat_penalty: float = option(
        1.0, "Penalty for repeated tokens; 1: none [default: 1]", "Sampling", metavar="X", least=0.01
    )
    seed: int | None = option(
        None, "Random seed [default: random; reported]", "Sampling", metavar="N", least=0, most=SEEDS - 1
    )
    stop: tuple[str, ...] = option((), "Stop before this text (repeatable)", "Sampling", metavar="TEXT")
