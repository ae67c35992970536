"""The quantisations a model can be had in, by their sizes, and as this machine sees them. Nobody is asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cerebrum_cli.application.models.fit import Capacity, QuantizationFit, assess_quantizations, planned_context
from cerebrum_cli.application.models.model import Model
from cerebrum_cli.catalogue.hub import Listing
from cerebrum_cli.catalogue.reference import HubReference, NameReference
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.catalogue.variants import Variant, same_quantization
from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.text import format_size


@dataclass(frozen=True, slots=True)
class Availability:
    """Where a model can be had and in which sizes: a listing of the Hub, or what the catalogue and the files here say.

    `variants` are the files of a listing, one for each of `sizes`; `here` the quantisations that need no download.
    """

    name: str
    sizes: tuple[tuple[str, int], ...]
    installed: tuple[str, ...]
    kv_bytes_per_token: int
    trained_context: int | None
    spec: ModelSpec | None = None
    listing: Listing | None = None
    variants: tuple[Variant, ...] = ()

    def matching(self, quantization: str | None) -> list[str]:
        """Return the quantisations that are meant: all, or the one of that name. ModelNotFound if there is none."""
        names = [name for name, _ in self.sizes]
        found = [name for name in names if quantization is None or same_quantization(quantization, name)]
        if not found:
            hint = f"there are {', '.join(sorted(set(names)))}" if names else "none is known"
            raise ModelNotFound(f"{self.name} has no quantisation {quantization}", hint)
        return found


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """What can be had, judged by the memory of this machine at this context, and the one that is meant."""

    availability: Availability
    candidates: tuple[QuantizationFit, ...]
    chosen: QuantizationFit
    context: int
    capacity: Capacity

    @property
    def reference(self) -> NameReference:
        """What to call the one that is meant."""
        return NameReference(self.availability.name, self.chosen.quantization)

    @property
    def warning(self) -> str | None:
        """What to know before a choice that will not fit is downloaded."""
        if self.chosen.verdict != "too big":
            return None
        return (
            f"{self.reference} needs {format_size(self.chosen.needed)} of memory at a context of {self.context} tokens,"
            f" and {format_size(self.capacity.usable_memory)} can be had here"
        )

    @property
    def variant(self) -> Variant:
        """The files of the one that is meant. UsageError where several models of a repository share its name."""
        found = [each for each in self.availability.variants if each.quantization == self.chosen.quantization]
        if len(found) != 1 and self.availability.listing:
            repo_id = self.availability.listing.repo_id
            choices = " or ".join(str(HubReference(repo_id, file=each.files[0])) for each in found)
            raise UsageError(
                f"{repo_id} holds several models called {self.chosen.quantization}", f"name one: {choices}"
            )
        return found[0]


def catalogue_availability(spec: ModelSpec, models: Iterable[Model]) -> Availability:
    """Return what the catalogue knows of a model, and what the files of it that are here say themselves."""
    installed = [model for model in models if model.spec == spec and not model.is_derived and model.is_readable]
    listed = [each for source in spec.sources[:1] for each in source.quantizations] or spec.quantizations
    return Availability(
        spec.name,
        _sizes(((each.name, each.size) for each in listed), installed),
        tuple(model.display_name for model in installed),
        installed[0].header.kv_bytes_per_token if installed else spec.kv_bytes_per_token or 0,
        installed[0].trained_context if installed else spec.context_size,
        spec,
    )


def installed_availability(models: Iterable[Model]) -> Availability:
    """Return the quantisations that are here of a model no catalogue knows; there must be one."""
    installed = list(models)
    header = installed[0].header
    return Availability(
        installed[0].name,
        _sizes((), installed),
        tuple(model.display_name for model in installed),
        header.kv_bytes_per_token,
        header.context_length,
    )


def assess_fit(
    availability: Availability, quantization: str | None, context: int | None, capacity: Capacity
) -> DownloadPlan:
    """Return a stock as this machine sees it. ModelNotFound where what is wanted is not in it."""
    context = planned_context(context, availability.trained_context)
    candidates = assess_quantizations(
        availability.sizes, availability.installed, availability.kv_bytes_per_token, context, capacity
    )
    names = availability.matching(quantization)
    chosen = [each for each in candidates if each.quantization in names]
    return DownloadPlan(
        availability, candidates, next((each for each in chosen if each.recommended), chosen[0]), context, capacity
    )


def _sizes(listed: Iterable[tuple[str, int]], installed: Iterable[Model]) -> tuple[tuple[str, int], ...]:
    """Return sizes by quantisation; those of files that are here are what they are, and not what is said of them."""
    sizes = dict(listed)
    for model in installed:
        name = next((name for name in sizes if same_quantization(name, model.display_name)), model.display_name)
        sizes[name] = model.size
    return tuple(sizes.items())
