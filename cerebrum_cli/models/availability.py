"""The quantizations of a model, with sizes, and how they fit this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.text import format_size
from cerebrum_cli.gguf.sizes import ModelSizes, uniform_sizes
from cerebrum_cli.models.fit import Capacity, QuantizationFit, assess_quantizations, planned_context
from cerebrum_cli.models.hub import Listing
from cerebrum_cli.models.model import Model
from cerebrum_cli.models.reference import HubReference, NameReference
from cerebrum_cli.models.spec import ModelSpec
from cerebrum_cli.models.variants import Variant, same_quantization

CATALOG_LAYERS = 32


@dataclass(frozen=True, slots=True)
class Availability:
    """A model's quantizations and their sizes: from a listing of the Hub, or from the catalog and installed files.

    `variants` are the files of a listing, one for each of `sizes`; `installed` are quantizations without a download.
    `layer_sizes` are those of any of them.
    """

    name: str
    sizes: tuple[tuple[str, int], ...]
    installed: tuple[str, ...]
    layer_sizes: ModelSizes
    trained_context: int | None
    spec: ModelSpec | None = None
    listing: Listing | None = None
    variants: tuple[Variant, ...] = ()

    def matching(self, quantization: str | None) -> list[str]:
        """All quantizations, or the one with this name. Raises ModelNotFound if there is none."""
        names = [name for name, _ in self.sizes]
        found = [name for name in names if quantization is None or same_quantization(quantization, name)]
        if not found:
            hint = f"available: {', '.join(sorted(set(names)))}" if names else "no quantizations are known"
            raise ModelNotFound(f"{self.name} has no quantization {quantization}", hint)
        return found


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """Available quantizations, assessed for this machine's memory and a context size, and the chosen one."""

    availability: Availability
    candidates: tuple[QuantizationFit, ...]
    chosen: QuantizationFit
    context: int
    capacity: Capacity

    @property
    def reference(self) -> NameReference:
        """Reference of the chosen quantization."""
        return NameReference(self.availability.name, self.chosen.quantization)

    @property
    def warning(self) -> str | None:
        """Warning before the download of a model that does not fit."""
        if self.chosen.verdict != "too big":
            return None
        return (
            f"{self.reference} needs {format_size(self.chosen.needed)} of memory at {self.context} tokens of context;"
            f" {format_size(self.capacity.usable_memory)} is available"
        )

    @property
    def variant(self) -> Variant:
        """Files of the chosen quantization. Raises UsageError if several models of a repository share its name."""
        found = [each for each in self.availability.variants if each.quantization == self.chosen.quantization]
        if len(found) != 1 and self.availability.listing:
            repo_id = self.availability.listing.repo_id
            choices = " or ".join(str(HubReference(repo_id, file=each.files[0])) for each in found)
            raise UsageError(f"{repo_id} has several {self.chosen.quantization} models", f"choose one: {choices}")
        return found[0]


def catalogue_availability(spec: ModelSpec, models: Iterable[Model]) -> Availability:
    """Quantizations of a catalog model; installed files override the catalog's numbers."""
    installed = [model for model in models if model.spec == spec and not model.is_derived and model.is_readable]
    listed = [each for source in spec.sources[:1] for each in source.quantizations] or spec.quantizations
    return Availability(
        spec.name,
        _sizes(((each.name, each.size) for each in listed), installed),
        tuple(model.display_name for model in installed),
        installed[0].sizes if installed else spec_sizes(spec),
        installed[0].trained_context if installed else spec.context_size,
        spec,
    )


def spec_sizes(spec: ModelSpec) -> ModelSizes:
    """Sizes of a catalog model without a file, spread over as many layers as most of them have."""
    return uniform_sizes(0, CATALOG_LAYERS, (spec.kv_bytes_per_token or 0) // 2)


def installed_availability(models: Iterable[Model]) -> Availability:
    """Installed quantizations of a model that is not in the catalog; there must be one."""
    installed = list(models)
    header = installed[0].header
    return Availability(
        installed[0].name,
        _sizes((), installed),
        tuple(model.display_name for model in installed),
        installed[0].sizes,
        header.context_length,
    )


def assess_fit(
    availability: Availability, quantization: str | None, context: int | None, capacity: Capacity
) -> DownloadPlan:
    """Assess available quantizations for this machine. Raises ModelNotFound if the requested one is not available."""
    context = planned_context(context, availability.trained_context)
    candidates = assess_quantizations(
        availability.sizes, availability.installed, availability.layer_sizes, context, capacity
    )
    names = availability.matching(quantization)
    chosen = [each for each in candidates if each.quantization in names]
    return DownloadPlan(
        availability, candidates, next((each for each in chosen if each.recommended), chosen[0]), context, capacity
    )


def _sizes(listed: Iterable[tuple[str, int]], installed: Iterable[Model]) -> tuple[tuple[str, int], ...]:
    """Sizes by quantization; the actual sizes of installed files come before the listed ones."""
    sizes = dict(listed)
    for model in installed:
        name = next((name for name in sizes if same_quantization(name, model.display_name)), model.display_name)
        sizes[name] = model.size
    return tuple(sizes.items())
