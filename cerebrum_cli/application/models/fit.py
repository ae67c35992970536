"""Which quantisation of a model fits this machine: bytes against bytes, and one of them recommended. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cerebrum_cli.catalogue.variants import same_quantization
from cerebrum_cli.engine.plan import DEFAULT_CONTEXT, HEADROOM, Device

Verdict = Literal["fits", "tight", "too big"]

PREFERRED_QUANTIZATION = (
    "Q4_K_M"  # the usual balance: what smaller ones save costs more quality than what larger ones add
)
SYSTEM_RESERVE = 2**30  # bytes of memory the rest of the machine keeps
TIGHT_FRACTION = 7 / 8  # of what is left for models: beyond it other programs are pushed out
COMFORTABLE_FRACTION = 0.25  # of it: there is so much memory that a larger file than the preferred one bothers nobody
DEVICE_FRACTION = 0.9  # of an accelerator's free memory; the rest is for its own buffers
_UNQUANTIZED = re.compile(r"B?F(P?16|P?32)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of memory of this machine, and its accelerators as the last loaded model saw them: None before that."""

    memory: int
    devices: tuple[Device, ...] | None = None

    @property
    def device_memory(self) -> int:
        """Bytes of accelerator memory that models can use."""
        return int(DEVICE_FRACTION * sum(device.free for device in self.devices or ()))

    @property
    def usable_memory(self) -> int:
        """Bytes a model can use, in memory and on accelerators together: llama.cpp divides it by layers."""
        return max(0, self.memory - SYSTEM_RESERVE) + self.device_memory

    def verdict(self, needed: int) -> Verdict:
        """Return how a model that needs so many bytes gets on here."""
        if needed > self.usable_memory:
            return "too big"
        return "fits" if needed <= max(TIGHT_FRACTION * self.usable_memory, self.device_memory) else "tight"

    def is_comfortable(self, needed: int) -> bool:
        """Return whether so many bytes are nothing to this machine."""
        return needed <= max(COMFORTABLE_FRACTION * max(0, self.memory - SYSTEM_RESERVE), self.device_memory)


@dataclass(frozen=True, slots=True)
class QuantizationFit:
    """A quantisation one can have, in bytes of its files and of memory at the wanted context."""

    quantization: str
    size: int
    needed: int
    verdict: Verdict
    installed: bool = False
    recommended: bool = False


def planned_context(requested: int | None, trained: int | None) -> int:
    """Return the context a model is judged at: what was asked for, else what it gets where memory is no matter."""
    return requested or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def needed_memory(size: int, kv_bytes_per_token: int, context: int) -> int:
    """Return the bytes a model takes: its weights, the KV cache of one sequence, and working memory."""
    return size + kv_bytes_per_token * context + HEADROOM


def assess_quantizations(
    sizes: Iterable[tuple[str, int]],
    installed: Iterable[str],
    kv_bytes_per_token: int,
    context: int,
    capacity: Capacity,
) -> tuple[QuantizationFit, ...]:
    """Return quantisations and their sizes as candidates, smallest first, one of them recommended."""
    installed_names = tuple(installed)
    candidates = []
    for name, size in sorted(sizes, key=lambda item: (item[1], item[0])):
        needed = needed_memory(size, kv_bytes_per_token, context)
        candidates.append(
            QuantizationFit(
                name,
                size,
                needed,
                capacity.verdict(needed),
                any(same_quantization(name, each) for each in installed_names),
            )
        )
    if not candidates:
        return ()
    best = recommend(candidates, capacity)
    return tuple(replace(candidate, recommended=candidate is best) for candidate in candidates)


def recommend(candidates: Sequence[QuantizationFit], capacity: Capacity) -> QuantizationFit:
    """Return the one to take: the largest that fits, though no larger than preferred unless that is comfortable.

    Where nothing fits it is the smallest, and where only some are tight the smallest of those.
    """
    quantized = [each for each in candidates if not _UNQUANTIZED.fullmatch(each.quantization)] or list(candidates)
    by_size = sorted(quantized, key=lambda each: each.size)
    fitting = [each for each in by_size if each.verdict == "fits"]
    if not fitting:
        return by_size[0]
    preferred = next((each for each in fitting if same_quantization(each.quantization, PREFERRED_QUANTIZATION)), None)
    comfortable = [each for each in fitting if capacity.is_comfortable(each.needed)]
    if preferred is None:
        return fitting[-1]
    return max([preferred, *comfortable], key=lambda each: each.size)
