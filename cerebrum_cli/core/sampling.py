"""Sampling parameters, each declared with its default, flag, help and range.

A default applies where no layer sets another value: `fold` in core/settings.py merges the layers over these defaults,
and a request takes the result.
"""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

from cerebrum_cli.core.declaration import INTEGER, NUMBER, TEXTS, option
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject

MAX_LOGIT = 10_000  # of penalties: the sum of several stays finite
SEEDS = 2**32 - 1  # llama.cpp takes the next value for "draw a seed", which could not be reported
PENALTY_WINDOW = 64  # tokens, llama.cpp's own default; so are those of DRY, whose window is the context
DRY_BASE = 1.75
DRY_ALLOWED_LENGTH = 2  # tokens
DRY_BREAKERS = ("\n", ":", '"', "*")
SAMPLED_TEMPERATURE = 0.7  # where the model recommends none: of chats, and of samples that must differ
TRUNCATING = ("top_k", "top_p", "min_p")  # samplers without effect at temperature 0


class TokenBias(NamedTuple):
    """A number added to the logit of a token."""

    token: int
    bias: float


@frozen
class SamplingParams:
    """Sampling parameters of one request, applied in llama.cpp's default order.

    Temperature 0 is greedy, after penalties and DRY. `seed=None` draws a seed, which the FinishEvent
    reports. `max_tokens=None` generates until the context is full. Generation stops before any text in `stop`.
    """

    max_tokens: int | None = option(
        "Maximum tokens to generate [default: no limit]", "Sampling", INTEGER, short="-n", metavar="N", least=1
    )
    temperature: float = option(
        "Temperature [default: the model's, else 0; chats: 0.7]",
        "Sampling",
        NUMBER,
        default=0.0,
        metavar="T",
        least=0,
    )
    top_k: int = option(
        "Keep the K likeliest tokens; 0: all [default: 40]",
        "Sampling",
        INTEGER,
        default=40,
        metavar="K",
        least=0,
    )
    top_p: float = option(
        "Keep tokens of total probability P [default: 0.95]",
        "Sampling",
        NUMBER,
        default=0.95,
        metavar="P",
        least=0,
        most=1,
    )
    min_p: float = option(
        "Drop tokens below P times the likeliest [default: 0.05]",
        "Sampling",
        NUMBER,
        default=0.05,
        metavar="P",
        least=0,
        most=1,
    )
    repeat_penalty: float = option(
        "Penalty for repeated tokens; 1: off [default: the model's, else 1]", kind=NUMBER, default=1.0, least=0.01
    )
    presence_penalty: float = option(
        "Penalty for tokens in the last 64 [default: the model's, else 0]",
        kind=NUMBER,
        default=0.0,
        least=-MAX_LOGIT,
        most=MAX_LOGIT,
    )
    frequency_penalty: float = option(
        "Penalty per occurrence in the last 64 [default: 0]", kind=NUMBER, default=0.0, least=-MAX_LOGIT, most=MAX_LOGIT
    )
    dry_multiplier: float = option(
        "DRY penalty for repeats; 0: off [default: 0]", kind=NUMBER, default=0.0, least=0, most=MAX_LOGIT
    )
    seed: int | None = option(
        "Random seed [default: random; reported]", "Sampling", INTEGER, metavar="N", least=0, most=SEEDS - 1
    )
    stop: tuple[str, ...] = option("Stop before this text (repeatable)", "Sampling", TEXTS, default=(), metavar="TEXT")

    @property
    def samplers(self) -> JsonDict:
        return samplers_in_effect({key: getattr(self, key) for key in SAMPLERS})

    @property
    def is_argmax(self) -> bool:
        """Whether each token is the one with the highest logit, whatever came before."""
        return self.temperature == 0 and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        """Whether top-k, top-p and min-p see other logits than the model gives."""
        return self.has_penalties or self.has_dry

    @property
    def keeps_few(self) -> bool:
        """Whether few tokens are left for the samplers after top-k."""
        return self.temperature == 0 or self.top_k > 0

    @property
    def begins_with_top_p(self) -> bool:
        """Whether top-p is the first to see the logits that the model gives."""
        return not (self.keeps_few or self.changes_logits)

    @property
    def has_penalties(self) -> bool:
        return (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def has_dry(self) -> bool:
        return self.dry_multiplier != 0


SAMPLERS = tuple(key.name for key in fields(SamplingParams) if key.name not in ("max_tokens", "seed", "stop"))
ALWAYS_SHOWN = ("temperature", "top_k", "top_p", "min_p")


def samplers_in_effect(values: JsonObject) -> JsonDict:
    """The settings of samplers among others, without those that are off or have no effect."""
    off = SamplingParams()
    is_greedy = values.get("temperature") == 0
    samplers = {}
    for key in SAMPLERS:
        if key not in values or (is_greedy and key in TRUNCATING):
            continue
        value = values[key]
        if isinstance(value, list):
            value = tuple(value)
        if key in ALWAYS_SHOWN or value != getattr(off, key):
            samplers[key] = value
    return samplers
