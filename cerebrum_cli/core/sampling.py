"""Sampling parameters, each declared with its default, flag, help and range.

A default applies where no layer sets another value: `fold` in core/settings.py merges the layers over these defaults,
and a request takes the result from `Settings.sampling`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from cerebrum_cli.core.declaration import INTEGER, NUMBER, TEXTS, InvalidValue, Option, ValueType, option, to_texts
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import Texts

MAX_LOGIT = 10_000  # of penalties and biases: the sum of several stays finite
EXPECTED_BIAS = f"TOKEN=BIAS, with a number from -{MAX_LOGIT} to {MAX_LOGIT}"
SEEDS = 2**32 - 1  # llama.cpp takes the next value for "draw a seed", which could not be reported
DRY_BREAKERS = ("\n", ":", '"', "*")
NO_BREAKERS = "none"
MAX_COUNT = 2**31 - 1
SAMPLED_TEMPERATURE = 0.7  # where the model recommends none: of chats, and of samples that must differ
TRUNCATING = ("top_k", "top_p", "min_p", "top_n_sigma", "typical_p")  # samplers without effect at temperature 0


class TokenBias(NamedTuple):
    """A number added to the logit of a token: an id, or text of one token until the vocabulary is known."""

    token: int | str
    bias: float

    def __str__(self) -> str:
        return f"{self.token}={self.bias:g}"


def to_breakers(declared: Option, value: Any) -> Texts:
    """Convert sequence breakers with the escapes that llama.cpp's programs read in their option."""
    return tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in to_texts(declared, value))


def to_biases(_: Option, value: Any) -> tuple[TokenBias, ...]:
    """Convert logit biases: "TOKEN=BIAS", a list of such texts, or a mapping as in OpenAI's API."""
    items = value if isinstance(value, list | tuple) else [value]
    if isinstance(value, Mapping):
        items = [f"{token}={number}" for token, number in value.items()]
    biases = []
    for item in items:
        try:
            biases.append(to_bias(item))
        except ValueError as error:
            wrong = item if items is value else value
            raise InvalidValue(wrong, EXPECTED_BIAS) from error
    return tuple(biases)


def to_bias(value: Any) -> TokenBias:
    """Convert TOKEN=BIAS. Raises ValueError."""
    if isinstance(value, TokenBias):
        return value
    token, _, number = str(value).rpartition("=")
    bias = float(number)
    if not token or not abs(bias) <= MAX_LOGIT:
        raise ValueError(value)
    if token.isascii() and token.isdigit():
        return TokenBias(int(token), bias)
    return TokenBias(token, bias)


BREAKERS = ValueType(to_breakers, is_list=True)
BIASES = ValueType(to_biases, is_list=True)


@frozen
class SamplingParams:
    """Sampling parameters of one request, applied in llama.cpp's default order.

    Temperature 0 is greedy, after logit biases, penalties and DRY. `seed=None` draws a seed, which the FinishEvent
    reports. `max_tokens=None` generates until the context is full. Generation stops before any text in `stop`.
    """

    max_tokens: int | None = option(
        "Maximum tokens to generate [default: no limit]", "Length", INTEGER, short="-n", metavar="N", least=1
    )
    temperature: float = option(
        "Sampling temperature; 0 is greedy [default: the model's, else 0, or 0.7 in chats and votes]",
        "Sampling",
        NUMBER,
        default=0.0,
        metavar="T",
        least=0,
    )
    top_k: int = option(
        "Keep the K likeliest tokens; 0: all [default: the model's, else 40]",
        "Sampling",
        INTEGER,
        default=40,
        metavar="K",
        least=0,
    )
    top_p: float = option(
        "Keep the most likely tokens that sum to probability P [default: the model's, else 0.95]",
        "Sampling",
        NUMBER,
        default=0.95,
        metavar="P",
        least=0,
        most=1,
    )
    min_p: float = option(
        "Drop tokens below P times the likeliest [default: the model's, else 0.05]",
        "Sampling",
        NUMBER,
        default=0.05,
        metavar="P",
        least=0,
        most=1,
    )
    top_n_sigma: float = option(
        "Keep logits within N sigma; 0 and below: off [default: -1]", kind=NUMBER, default=-1.0, least=-1
    )
    typical_p: float = option(
        "Locally typical sampling; 1: off [default: 1]", kind=NUMBER, default=1.0, least=0, most=1
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
    dry_base: float = option("Growth of the DRY penalty per token [default: 1.75]", kind=NUMBER, default=1.75, least=1)
    dry_allowed_length: int = option(
        "Minimum repeat length for DRY, in tokens [default: 2]", kind=INTEGER, default=2, least=0, most=MAX_COUNT
    )
    dry_penalty_last_n: int = option(
        "Tokens that DRY searches for repeats [default: 64]", kind=INTEGER, default=64, least=0, most=MAX_COUNT
    )
    dry_sequence_breaker: tuple[str, ...] = option(
        "Text that ends a repeat, or none (repeatable) [default: line break, colon, quote, *]",
        kind=BREAKERS,
        default=DRY_BREAKERS,
    )
    logit_bias: tuple[TokenBias, ...] = option("Add BIAS to a token's logit (repeatable)", kind=BIASES, default=())
    seed: int | None = option(
        "Random seed [default: random; reported]", "Sampling", INTEGER, metavar="N", least=0, most=SEEDS - 1
    )
    stop: tuple[str, ...] = option("Stop before this text (repeatable)", "Length", TEXTS, default=(), metavar="TEXT")

    @property
    def samplers(self) -> JsonDict:
        return samplers_in_effect({key: getattr(self, key) for key in SAMPLERS})

    @property
    def is_argmax(self) -> bool:
        """Whether each token is the one with the highest logit, whatever came before."""
        return self.temperature == 0 and not (self.has_penalties or self.has_dry or self.logit_bias)

    @property
    def changes_logits(self) -> bool:
        """Whether top-k, top-p and min-p see other logits, or fewer tokens, than the model gives."""
        is_truncated = self.top_n_sigma > 0 or self.typical_p < 1
        return bool(self.has_penalties or self.has_dry or self.logit_bias or is_truncated)

    @property
    def has_penalties(self) -> bool:
        return (self.repeat_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def has_dry(self) -> bool:
        return self.dry_multiplier != 0 and self.dry_penalty_last_n > 0

    @property
    def dry_breakers(self) -> Texts:
        return () if NO_BREAKERS in self.dry_sequence_breaker else self.dry_sequence_breaker


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
