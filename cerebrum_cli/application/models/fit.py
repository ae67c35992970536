"""Which quantizations of a model fit this machine, and which one is recommended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cerebrum_cli.catalogue.variants import same_quantization
from cerebrum_cli.engine.plan import DEFAULT_CONTEXT, HEADROOM, Device

Verdict = Literal["fits", "tight", "too big"]

PREFERRED_QUANTIZATION = "Q4_K_M"  # the common compromise of size and quality
SYSTEM_RESERVE = 2**30  # bytes of memory left to the system
TIGHT_FRACTION = 7 / 8  # of usable memory; above it other programs are swapped out
COMFORTABLE_FRACTION = 0.25  # of usable memory; below it a file larger than the preferred one does no harm
DEVICE_FRACTION = 0.9  # of an accelerator's free memory; the rest is for its buffers
_UNQUANTIZED = re.compile(r"B?F(P?16|P?32)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of memory of this machine, and its accelerators as of the last loaded model; None before that."""

    memory: int
    devices: tuple[Device, ...] | None = None

    @property
    def device_memory(self) -> int:
        """Bytes of accelerator memory available to models."""
        return int(DEVICE_FRACTION * sum(device.free for device in self.devices or ()))

    @property
    def usable_memory(self) -> int:
        """Bytes available to a model in memory and on accelerators: llama.cpp splits it by layers."""
        return max(0, self.memory - SYSTEM_RESERVE) + self.device_memory

    def verdict(self, needed: int) -> Verdict:
        """Whether a model that needs this many bytes fits."""
        if needed > self.usable_memory:
            return "too big"
        return "fits" if needed <= max(TIGHT_FRACTION * self.usable_memory, self.device_memory) else "tight"

    def is_comfortable(self, needed: int) -> bool:
        """Whether this machine has plenty of memory for this many bytes."""
        return needed <= max(COMFORTABLE_FRACTION * max(0, self.memory - SYSTEM_RESERVE), self.device_memory)


@dataclass(frozen=True, slots=True)
class QuantizationFit:
    """A quantization with the size of its files and the memory it needs, in bytes, and whether that fits."""

    quantization: str
    size: int
    needed: int
    verdict: Verdict
    installed: bool = False
    recommended: bool = False


def planned_context(requested: int | None, trained: int | None) -> int:
    """Context size to assess a model at: the requested one, or the default if memory is no limit."""
    return requested or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def needed_memory(size: int, kv_bytes_per_token: int, context: int) -> int:
    """Bytes of memory for weights, the KV cache of one sequence, and working buffers."""
    return size + kv_bytes_per_token * context + HEADROOM


def assess_quantizations(
    sizes: Iterable[tuple[str, int]],
    installed: Iterable[str],
    kv_bytes_per_token: int,
    context: int,
    capacity: Capacity,
) -> tuple[QuantizationFit, ...]:
    """Assess quantizations by their sizes, smallest first; one of them is recommended."""
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
    """Choose the largest that fits, but none larger than the preferred one unless it is comfortable.

    If none fits, the smallest is chosen.
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
