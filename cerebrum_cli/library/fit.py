"""The quantizations of a model, with sizes, which of them fit this machine, and which one is recommended."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.memory import HEADROOM, ContextOptions, Device, host_bytes
from cerebrum_cli.engine.memory_plan import DEFAULT_CONTEXT, place
from cerebrum_cli.engine.model_options import GgufFile, LoadOptions
from cerebrum_cli.gguf.sizes import ModelSizes, uniform_sizes
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.library.reference import ModelReference, Variant, same_quantization

if TYPE_CHECKING:
    from cerebrum_cli.library.hub import Listing

Fit = Literal["fits", "tight", "too big"]

PREFERRED_QUANTIZATION = "Q4_K_M"  # the common compromise of size and quality
FAST_IN_BATCHES = ("Q4_0", "IQ4_NL", "Q4_K_M")  # on CPUs: benchmarks/RESULTS.md has figures
SYSTEM_RESERVE = 2**30  # bytes of memory left to the system
TIGHT_FRACTION = 7 / 8  # of the host's memory; above it other programs are swapped out
ROOMY_FRACTION = 0.5  # of all usable memory; models that need more are listed after those that do not
COMFORTABLE_FRACTION = 0.25  # of the host's memory; below it a file larger than the preferred one does no harm
PREFERRED_BITS, FEWEST_BITS = 4, 2
CATALOG_LAYERS = 32  # as most models have
ASSUMED_KV_BYTES = 131_072  # per token, where it is unknown: as in Mistral 7B
_BITS = re.compile(r"(?:Q|FP)([1-8])", re.IGNORECASE)
_UNQUANTIZED = re.compile(r"B?F(P?16|P?32)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of memory of this machine, and its GPUs as of the last loaded model; None before that."""

    memory: int
    devices: tuple[Device, ...] | None = None

    @property
    def host_memory(self) -> int:
        return max(0, self.memory - SYSTEM_RESERVE)

    @property
    def usable_memory(self) -> int:
        """Bytes available to a model on the host and on GPUs with memory of their own."""
        own = (device.free - HEADROOM for device in self.devices or () if not device.is_unified)
        return self.host_memory + sum(max(0, free) for free in own)


@dataclass(frozen=True, slots=True)
class QuantizationFit:
    """A quantization with the size of its files and the memory it needs, in bytes, and whether that fits."""

    quantization: str
    size: int
    needed: int
    fit: Fit
    installed: bool = False
    recommended: bool = False


def planned_context(requested: int | None, trained: int | None) -> int:
    """Context size to assess a model at: the requested one, or the default if memory is no limit."""
    return requested or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


class MemoryFit(NamedTuple):
    """How a model fits this machine: bytes it needs, and whether one larger than the preferred one does no harm."""

    needed: int
    fit: Fit
    is_comfortable: bool


def fit_memory(sizes: ModelSizes, context: int, capacity: Capacity) -> MemoryFit:
    """Plan the memory of a model with one sequence, with as many layers on GPUs as these can hold."""
    devices = capacity.devices or ()
    plan = place(LoadOptions(GgufFile(Path(), context, sizes)), ContextOptions(context), devices)
    needed = plan.needs.total + HEADROOM
    on_host = host_bytes(plan.needs, devices) + HEADROOM
    available = capacity.host_memory
    fit: Fit = "fits" if on_host <= TIGHT_FRACTION * available else "tight"
    if on_host > available:
        fit = "too big"
    is_offloaded = sum(plan.offloaded) > len(sizes.layers) and not plan.host_experts
    if is_offloaded and not any(device.is_unified for device in devices):  # GPUs hold it
        return MemoryFit(needed, fit, fit == "fits")
    return MemoryFit(needed, fit, needed <= COMFORTABLE_FRACTION * available)


def assess_quantizations(
    quantizations: Iterable[tuple[str, int]],
    installed: Iterable[str],
    sizes: ModelSizes,
    context: int,
    capacity: Capacity,
) -> tuple[QuantizationFit, ...]:
    """Assess quantizations by the bytes of their files, smallest first; `sizes` are those of any of them."""
    installed_names = tuple(installed)
    candidates = []
    comfortable = []
    for name, size in sorted(quantizations, key=lambda item: (item[1], item[0])):
        memory = fit_memory(sizes.with_weights(size), context, capacity)
        is_installed = any(same_quantization(name, quantization) for quantization in installed_names)
        candidates.append(QuantizationFit(name, size, memory.needed, memory.fit, is_installed))
        if memory.is_comfortable:
            comfortable.append(candidates[-1])
    best = recommend(candidates, comfortable) if candidates else None
    return tuple(replace(candidate, recommended=candidate is best) for candidate in candidates)


def recommend(candidates: Sequence[QuantizationFit], comfortable: Sequence[QuantizationFit]) -> QuantizationFit:
    """Choose the preferred one, or a larger one that is comfortable; the largest that fits if it is too large.

    Without the preferred one, the nearest below it that fits takes its place, or else the nearest above it. If none
    fits, the smallest is chosen.
    """
    quantized = [fit for fit in candidates if not _UNQUANTIZED.fullmatch(fit.quantization)] or list(candidates)
    by_size = sorted(quantized, key=lambda fit: fit.size)
    fitting = [option for option in by_size if option.fit == "fits"]
    if not fitting:
        return by_size[0]
    preferred = [fit for fit in by_size if same_quantization(fit.quantization, PREFERRED_QUANTIZATION)]
    if preferred and preferred[0] not in fitting:
        return fitting[-1]
    base = preferred[0] if preferred else min(fitting, key=lambda fit: (_distance(fit.quantization), -fit.size))
    return max([base, *(fit for fit in fitting if fit in comfortable)], key=lambda fit: fit.size)


def _distance(quantization: str) -> tuple[bool, float]:
    """Distance from the preferred quantization by the bits in the name; those of more or of unusably few come last."""
    match = _BITS.search(quantization)
    bits = int(match[1]) if match else 0
    return not FEWEST_BITS <= bits <= PREFERRED_BITS, abs(math.log(bits / PREFERRED_BITS)) if bits else math.inf


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """A model's quantizations, assessed for this machine's memory and a context size, and the chosen one.

    They come from a `listing` of the Hub, with the files of each as a variant, or from the catalog and installed files.
    """

    name: str
    candidates: tuple[QuantizationFit, ...]
    chosen: QuantizationFit
    context: int
    capacity: Capacity
    spec: ModelSpec | None = None
    listing: Listing | None = None
    variants: tuple[Variant, ...] = ()

    @property
    def reference(self) -> ModelReference:
        return ModelReference(self.name, self.chosen.quantization)

    @property
    def warning(self) -> str | None:
        if self.chosen.fit != "too big":
            return None
        return (
            f"{self.reference} needs {format_size(self.chosen.needed)} of memory at {self.context} tokens of context;"
            f" {format_size(self.capacity.usable_memory)} is available"
        )

    @property
    def fast_in_batches(self) -> ModelReference | None:
        """The largest quantization that answers batches faster than a larger chosen one on a CPU; None on GPUs."""
        names = () if self.capacity.devices else FAST_IN_BATCHES
        fast = [fit for fit in self.candidates if any(same_quantization(fit.quantization, name) for name in names)]
        is_larger = fast and fast[-1].size < self.chosen.size
        if is_larger:
            return ModelReference(self.name, fast[-1].quantization)
        return None

    @property
    def rank(self) -> tuple[int, bool]:
        is_large = self.chosen.needed > ROOMY_FRACTION * self.capacity.usable_memory
        return get_args(Fit).index(self.chosen.fit), is_large

    @property
    def variant(self) -> Variant:
        """Files of the chosen quantization. Raises UsageError if several models of a repository share its name."""
        chosen = [variant for variant in self.variants if variant.quantization == self.chosen.quantization]
        if len(chosen) != 1 and self.listing:
            repo_id = self.listing.repo_id
            choices = " or ".join(str(ModelReference(repo_id, file=variant.files[0])) for variant in chosen)
            raise UsageError(f"{repo_id} has several {self.chosen.quantization} models", f"choose one: {choices}")
        return chosen[0]


def choose_candidate(name: str, candidates: Sequence[QuantizationFit], quantization: str | None) -> QuantizationFit:
    matching = [fit for fit in candidates if quantization is None or same_quantization(quantization, fit.quantization)]
    if not matching:
        names = sorted({fit.quantization for fit in candidates})
        raise ModelNotFound(f"{name} has no quantization {quantization}", f"available: {', '.join(names)}")
    return next((fit for fit in matching if fit.recommended), matching[0])


def known_plan(
    spec: ModelSpec | None,
    models: Iterable[InstalledModel],
    quantization: str | None,
    context: int | None,
    capacity: Capacity,
) -> DownloadPlan | None:
    """Plan with the quantizations of a catalog model, or, without a `spec`, of installed models; None without any.

    The sizes of installed files override those of the catalog. Raises ModelNotFound without the requested quantization.
    """
    own = [model for model in models if spec is None or (model.spec == spec and model.is_readable)]
    preferred = spec.sources[0].quantizations if spec and spec.sources else ()
    sizes = dict(preferred or (spec.quantizations if spec else ()))
    for model in own:
        name = next((name for name in sizes if same_quantization(name, model.display_name)), model.display_name)
        sizes[name] = model.size
    if not sizes:
        return None
    name = spec.name if spec else own[0].name
    layer_sizes = own[0].sizes if own or spec is None else spec_sizes(spec)
    context = planned_context(context, own[0].trained_context if own or spec is None else spec.context_size)
    candidates = assess_quantizations(
        sizes.items(), [model.display_name for model in own], layer_sizes, context, capacity
    )
    return DownloadPlan(name, candidates, choose_candidate(name, candidates, quantization), context, capacity, spec)


def spec_sizes(spec: ModelSpec | None) -> ModelSizes:
    kv_bytes_per_token = (spec and spec.kv_bytes_per_token) or ASSUMED_KV_BYTES
    return uniform_sizes(0, CATALOG_LAYERS, kv_bytes_per_token // 2)
