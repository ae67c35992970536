"""The quantizations of a model, which of them fit this machine, and which one is recommended or chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import format_names, format_size
from cerebrum_cli.engine.capacity import Capacity, Forecast, planned_context
from cerebrum_cli.gguf.sizes import ModelSizes, uniform_sizes
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.reference import ModelReference, same_quantization

if TYPE_CHECKING:
    from cerebrum_cli.library.installed import InstalledModel

Fit = Literal["fits", "tight", "too big"]

PREFERRED_QUANTIZATION = "Q4_K_M"  # the common compromise of size and quality
TIGHT_FRACTION = 7 / 8  # of the host's memory; above it other programs are swapped out
COMFORTABLE_FRACTION = 0.25  # of the host's memory; below it a file larger than the preferred one does no harm
PATIENCE_S = 30  # for an answer; slower quantizations and models are not preferred
PREFERRED_BITS, FEWEST_BITS = 4, 2
ROOMY_FRACTION = 0.5  # of all usable memory; models that need more are listed after those that do not
MAX_NAMED = 50  # quantizations listed in an error
CATALOG_LAYERS = 32  # as most models have
ASSUMED_KV_BYTES = 131_072  # per token, where it is unknown: as in Mistral 7B
_BITS = re.compile(r"(?:Q|FP)([1-8])", re.IGNORECASE)
_UNQUANTIZED = re.compile(r"B?F(P?16|P?32)", re.IGNORECASE)


@frozen
class QuantizationFit:
    """A quantization with the size of its files and the memory it needs, in bytes, and whether that fits."""

    quantization: str
    size: int
    needed: int
    fit: Fit
    installed: bool
    recommended: bool = False
    speed: Forecast | None = None


@frozen
class Availability:
    """The quantizations of a model, assessed for this machine's memory and a context size, and the chosen one."""

    name: str
    candidates: tuple[QuantizationFit, ...]
    chosen: QuantizationFit
    context: int
    capacity: Capacity
    spec: ModelSpec | None = None

    @property
    def reference(self) -> ModelReference:
        return ModelReference(self.name, self.chosen.quantization)

    @property
    def heading(self) -> str:
        return f"{self.name} at a context of {self.context} tokens; {self.capacity.description}"

    @property
    def table(self) -> JsonDict:
        """The quantizations, and the context and memory they were assessed with, as JSON values."""
        devices = self.capacity.devices
        return {
            "context": self.context,
            "memory": self.capacity.memory,
            "devices": None if devices is None else [asdict(device) for device in devices],
            "quantizations": [asdict(candidate) for candidate in self.candidates],
        }

    @property
    def warning(self) -> str | None:
        if self.chosen.fit != "too big":
            return None
        return (
            f"{self.reference} needs {format_size(self.chosen.needed)} of memory at {self.context} tokens of context;"
            f" {format_size(self.capacity.usable_memory)} is available"
        )

    @property
    def rank(self) -> tuple[int, int, bool]:
        """Order by fit, by how often the time to an answer doubles beyond PATIENCE_S, and by what is left of memory."""
        doublings = 0
        if speed := self.chosen.speed:
            doublings = max(0, math.ceil(math.log2(speed.answer_s / PATIENCE_S)))
        is_large = self.chosen.needed > ROOMY_FRACTION * self.capacity.usable_memory
        return get_args(Fit).index(self.chosen.fit), doublings, is_large


@frozen
class FitRequest:
    """What models are assessed for: a context size and a quantization, if chosen, and the capacity of this machine."""

    context: int | None
    quantization: str | None
    capacity: Capacity

    def assess(
        self,
        name: str,
        quantizations: Iterable[tuple[str, int]],
        installed: Collection[str],
        sizes: ModelSizes,
        trained_context: int | None,
        spec: ModelSpec | None = None,
    ) -> Availability:
        """Assess quantizations by the bytes of their files. Raises ModelNotFound without the requested one."""
        context = planned_context(self.context, trained_context)
        candidates = assess_quantizations(quantizations, installed, sizes, context, self.capacity, spec)
        wanted = self.quantization
        matching = [fit for fit in candidates if wanted is None or same_quantization(wanted, fit.quantization)]
        if not matching:
            names = sorted({fit.quantization for fit in candidates})
            raise ModelNotFound(f"{name} has no quantization {wanted}", f"available: {format_names(names, MAX_NAMED)}")
        chosen = max(matching, key=lambda fit: fit.recommended)
        return Availability(name, candidates, chosen, context, self.capacity, spec)

    def assess_spec(self, spec: ModelSpec, models: Iterable[InstalledModel]) -> Availability | None:
        """Assess a catalog model without the network; None without any sizes.

        The sizes of installed files override those of the catalog.
        """
        own = [model for model in models if model.spec == spec and model.is_usable]
        known = spec.sources[0].quantizations if spec.sources else spec.quantizations
        sizes = {**known, **{model.type_name: model.size for model in own}}
        if not sizes:
            return None
        memory, trained_context = spec_sizes(spec), spec.context_size
        if own:
            memory, trained_context = own[0].sizes, own[0].trained_context
        installed = [model.type_name for model in own]
        return self.assess(spec.name, sizes.items(), installed, memory, trained_context, spec)

    def assess_installed(self, models: Sequence[InstalledModel]) -> Availability:
        """Assess the quantizations of a model outside the catalog, which are all installed."""
        first = models[0]
        sizes = {model.type_name: model.size for model in models}
        return self.assess(first.name, sizes.items(), sizes, first.sizes, first.trained_context)


class MemoryFit(NamedTuple):
    """How a model fits this machine: bytes it needs, and whether one larger than the preferred one does no harm."""

    needed: int
    fit: Fit
    is_comfortable: bool


def fit_memory(sizes: ModelSizes, context: int, capacity: Capacity) -> MemoryFit:
    needs = capacity.needs(sizes, context)
    fit = _fit_on_host(needs.host, capacity.host_memory)
    if needs.is_on_gpus:
        return MemoryFit(needs.total, fit, fit == "fits")
    return MemoryFit(needs.total, fit, needs.total <= COMFORTABLE_FRACTION * capacity.host_memory)


def _fit_on_host(needed: int, available: int) -> Fit:
    if needed > available:
        return "too big"
    if needed > TIGHT_FRACTION * available:
        return "tight"
    return "fits"


def assess_quantizations(
    quantizations: Iterable[tuple[str, int]],
    installed: Collection[str],
    sizes: ModelSizes,
    context: int,
    capacity: Capacity,
    spec: ModelSpec | None = None,
) -> tuple[QuantizationFit, ...]:
    """Assess quantizations by the bytes of their files, smallest first; `sizes` are those of any of them."""
    candidates = []
    comfortable = set()
    for name, size in sorted(quantizations, key=lambda item: (item[1], item[0])):
        scaled = sizes.with_weights(size)
        memory = fit_memory(scaled, context, capacity)
        is_installed = any(same_quantization(name, other) for other in installed)
        speed = capacity.forecast(scaled, spec.thinking_tokens if spec else 0)
        candidate = QuantizationFit(name, size, memory.needed, memory.fit, is_installed, speed=speed)
        candidates.append(candidate)
        if memory.is_comfortable and (speed is None or speed.answer_s <= PATIENCE_S):
            comfortable.add(candidate)
    if candidates:
        best = candidates.index(recommend(candidates, comfortable))
        candidates[best] = replace(candidates[best], recommended=True)
    return tuple(candidates)


def recommend(candidates: Sequence[QuantizationFit], comfortable: Collection[QuantizationFit]) -> QuantizationFit:
    """Choose the preferred one, or a larger one that is comfortable; the largest that fits if it is too large.

    Without the preferred one, the nearest below it that fits takes its place, or else the nearest above it. If none
    fits, the smallest is chosen.
    """
    quantized = [fit for fit in candidates if not _UNQUANTIZED.fullmatch(fit.quantization)]
    by_size = sorted(quantized or candidates, key=lambda fit: fit.size)
    fitting = [candidate for candidate in by_size if candidate.fit == "fits"]
    if not fitting:
        return by_size[0]
    base = min(fitting, key=lambda fit: (_distance(fit.quantization), -fit.size))
    for candidate in by_size:
        if same_quantization(candidate.quantization, PREFERRED_QUANTIZATION):
            if candidate.fit != "fits":
                return fitting[-1]
            base = candidate
            break
    for candidate in fitting:
        if candidate in comfortable and candidate.size > base.size:
            base = candidate
    return base


def _distance(quantization: str) -> tuple[bool, float]:
    """Distance from the preferred quantization by the bits in the name; those of more or of unusably few come last."""
    match = _BITS.search(quantization)
    if match is None:
        return True, math.inf
    bits = int(match[1])
    return not FEWEST_BITS <= bits <= PREFERRED_BITS, abs(math.log(bits / PREFERRED_BITS))


def spec_sizes(spec: ModelSpec | None) -> ModelSizes:
    kv_bytes_per_token = ASSUMED_KV_BYTES
    if spec and spec.kv_bytes_per_token:
        kv_bytes_per_token = spec.kv_bytes_per_token
    sizes = uniform_sizes(CATALOG_LAYERS, CATALOG_LAYERS, kv_bytes_per_token // 2)  # to be scaled to any weights
    if spec and spec.active_percent:
        return replace(sizes, active_share=spec.active_percent / 100)
    return sizes
