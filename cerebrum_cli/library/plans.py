"""Plans of downloads: a model's quantizations, assessed for this machine, and the chosen one."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

from cerebrum_cli.core.errors import ModelNotFound, PullError, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import format_names, format_size
from cerebrum_cli.engine.local import Capacity, planned_context
from cerebrum_cli.gguf.sizes import ModelSizes
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.fit import PATIENCE_S, Fit, QuantizationFit, assess_quantizations, spec_sizes
from cerebrum_cli.library.reference import ModelReference, Variant, is_labeled, same_quantization

if TYPE_CHECKING:
    from cerebrum_cli.gguf.header import Header
    from cerebrum_cli.library.hub import Listing
    from cerebrum_cli.library.installed import InstalledModel

ROOMY_FRACTION = 0.5  # of all usable memory; models that need more are listed after those that do not
MAX_NAMED = 50  # quantizations listed in an error


class SeveralModels(UsageError):
    """A reference that means several models of a repository; `choices` are references to one each."""

    def __init__(self, listing: Listing, quantization: str, models: Sequence[Variant]) -> None:
        repo_id = listing.repo_id
        self.choices = [ModelReference(repo_id, None, model.files[0], listing.revision) for model in models]
        references = " or ".join(map(str, self.choices[:MAX_NAMED]))
        if len(self.choices) > MAX_NAMED:
            references += ", or one of the others"
        kind = f"{quantization} models" if is_labeled(models[0]) else "models without a quantization in their names"
        super().__init__(f"{repo_id} has several {kind}", f"choose one: {references}")


class Conversion(Protocol):
    """Weights in safetensors, and the files that they can be converted to, as the optional package `weights` has them.

    Downloads are asked about unless they are requested: `is_requested` if the user has named a type.
    """

    @property
    def name(self) -> str:
        """The name of their repository or folder."""

    @property
    def size(self) -> int:
        """Bytes of the weights."""

    @property
    def header(self) -> Header:
        """The header of any of the files."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of the files by type."""

    @property
    def installed(self) -> Sequence[str]:
        """The types that are installed, the newest last."""

    def build(self, type: str, base: str, name: str | None, is_requested: bool) -> InstalledModel:
        """Convert the weights, which are downloaded first, unless this is installed.

        It is named after the type and `base`, unless a name was chosen.
        """

    def fetch(self, type: str, is_requested: bool) -> Path:
        """Download the weights alone, to be merged to a type, and return their folder."""


@frozen
class DownloadPlan:
    """A model's quantizations, assessed for this machine's memory and a context size, and the chosen one.

    They come from a `listing` of the Hub, with the models that were meant as `variants`, or from the catalog and
    installed files; or weights have a `conversion` to them. `is_requested` if the user has named the chosen one.
    """

    name: str
    candidates: tuple[QuantizationFit, ...]
    chosen: QuantizationFit
    context: int
    capacity: Capacity
    spec: ModelSpec | None
    listing: Listing | None = None
    variants: tuple[Variant, ...] = ()
    conversion: Conversion | None = None
    is_requested: bool = False

    @property
    def reference(self) -> ModelReference:
        return ModelReference(self.name, self.chosen.quantization)

    @property
    def heading(self) -> str:
        return f"{self.name} at a context of {self.context} tokens; {self.capacity.description}"

    @property
    def described(self) -> JsonDict:
        """Object of `pull --dry-run --json`."""
        return {
            "name": self.name,
            "repo_id": self.listing.repo_id if self.listing else self.spec and self.spec.repo_id,
            "revision": self.listing.commit if self.listing else None,
            "chosen": self.chosen.quantization,
            "weights": self.conversion and self.conversion.size,
            **self.table,
        }

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

    @property
    def required_conversion(self) -> Conversion:
        """The conversion of its weights. Raises PullError if no weights are known."""
        if self.conversion is None:
            hint = "name their repository or folder, or omit --from-weights"
            raise PullError(f"no safetensors of {self.name} are known", hint)
        return self.conversion

    @property
    def download(self) -> tuple[Listing, Variant]:
        """Files of the chosen model in their listing. Raises SeveralModels if several of a repository were meant."""
        assert self.listing is not None, "online, every plan except a package's has a listing"
        if len(self.variants) > 1:
            raise SeveralModels(self.listing, self.chosen.quantization, self.variants)
        return self.listing, self.variants[0]


@frozen
class PlanRequest:
    """What a plan is made for: a context size and a quantization, if chosen, and the capacity of this machine."""

    context: int | None
    quantization: str | None
    capacity: Capacity

    def plan(
        self,
        name: str,
        quantizations: Iterable[tuple[str, int]],
        installed: Collection[str],
        sizes: ModelSizes,
        trained_context: int | None,
        spec: ModelSpec | None = None,
    ) -> DownloadPlan:
        """Plan with quantizations by the bytes of their files. Raises ModelNotFound without the requested one."""
        context = planned_context(self.context, trained_context)
        wanted = self.quantization
        known = list(quantizations)
        matching = {label for label, _ in known if wanted is None or same_quantization(wanted, label)}
        if not matching:
            names = sorted({label for label, _ in known})
            raise ModelNotFound(f"{name} has no quantization {wanted}", f"available: {format_names(names, MAX_NAMED)}")
        candidates = assess_quantizations(known, installed, sizes, context, self.capacity, spec)
        chosen = max((fit for fit in candidates if fit.quantization in matching), key=lambda fit: fit.recommended)
        return DownloadPlan(name, candidates, chosen, context, self.capacity, spec, is_requested=wanted is not None)

    def known_plan(self, spec: ModelSpec, models: Iterable[InstalledModel]) -> DownloadPlan | None:
        """Plan with the quantizations of a catalog model, without the network; None without any.

        The sizes of installed files override those of the catalog.
        """
        own = [model for model in models if model.spec == spec and model.is_usable]
        sizes = dict(spec.quantizations)
        if spec.sources:
            sizes = dict(spec.sources[0].quantizations or spec.quantizations)
        sizes |= {model.display_name: model.size for model in own}
        if not sizes:
            return None
        memory, trained_context = spec_sizes(spec), spec.context_size
        if own:
            memory, trained_context = own[0].sizes, own[0].trained_context
        installed = [model.display_name for model in own]
        return self.plan(spec.name, sizes.items(), installed, memory, trained_context, spec)

    def installed_plan(self, models: Sequence[InstalledModel]) -> DownloadPlan:
        """Plan with the quantizations of a model outside the catalog, which are all installed."""
        first = models[0]
        sizes = {model.display_name: model.size for model in models}
        return self.plan(first.name, sizes.items(), sizes, first.sizes, first.trained_context)
