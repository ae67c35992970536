"""Plan downloads and conversions: list the files, choose what fits, and read the header of the chosen file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cerebrum_cli.core.environment import is_hub_offline
from cerebrum_cli.core.errors import ModelNotFound, PullError, UsageError
from cerebrum_cli.core.events import Progress
from cerebrum_cli.core.files import is_directory
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import did_you_mean, format_names
from cerebrum_cli.gguf.header import Header, NoLanguageModel, header_from_tables, parse_tables, require_generative
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.fit import MAX_NAMED, Availability, FitRequest, QuantizationFit, spec_sizes
from cerebrum_cli.library.hub import Listing, header_bytes, list_repository
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.reference import (
    ModelReference,
    Reference,
    Variant,
    complete_variants,
    in_quantization,
    is_labeled,
    lacking_part,
    likely_models,
    variant_of,
    variants,
)

MAX_MODELS = 300  # of a repository that are assessed; no model has as many quantizations


@frozen
class DownloadOptions:
    """What a user chooses about a pull: without the network, a context size in tokens, and a quantization.

    Safetensors are converted to the `type`; those of a repository `from_weights` even if it has GGUF files.
    """

    offline: bool = False
    context: int | None = None
    type: str | None = None
    from_weights: bool = False

    @property
    def is_offline(self) -> bool:
        return self.offline or is_hub_offline()


@frozen
class Conversion:
    """Weights in safetensors, and what they can be converted to, as the package `weights` reads them.

    `name` is that of their repository or folder, `size` their bytes. `header` is that of any converted file; `sizes`
    are the bytes of the files by type. Types in `installed` are converted already, the newest last. `build` makes a
    plan's model, by a chosen name; `fetch` only downloads the weights, and returns their folder.
    """

    name: str
    size: int
    header: Header
    sizes: Mapping[str, int]
    installed: Sequence[str]
    build: Callable[[DownloadPlan, str | None], InstalledModel]
    fetch: Callable[[DownloadPlan], Path]


@frozen
class DownloadPlan:
    """What a pull gets: the chosen quantization of those available, and the files or weights that it needs.

    `builds` are models of a `listing` of the Hub: one, or those among which the user must choose. Weights have a
    `conversion`. A model of a package, a merged one and a plan without the network have neither. `is_requested` if the
    user has named the quantization. The `header` of a file is None if the catalog knows the model's memory.
    """

    available: Availability
    listing: Listing | None = None
    builds: tuple[Variant, ...] = ()
    conversion: Conversion | None = None
    is_requested: bool = False
    header: Header | None = None

    @property
    def chosen(self) -> QuantizationFit:
        return self.available.chosen

    @property
    def spec(self) -> ModelSpec | None:
        return self.available.spec

    @property
    def described(self) -> JsonDict:
        """Object of `pull --dry-run --json`."""
        return {
            "name": self.available.name,
            "repo_id": self.listing.repo_id if self.listing else self.spec and self.spec.repo_id,
            "revision": self.listing.commit if self.listing else None,
            "chosen": self.chosen.quantization,
            "weights": self.conversion and self.conversion.size,
            **self.available.table,
        }

    @property
    def required_conversion(self) -> Conversion:
        """The conversion of its weights. Raises PullError if no weights are known."""
        if self.conversion is None:
            hint = "name their repository or folder, or omit --from-weights"
            raise PullError(f"no safetensors of {self.available.name} are known", hint)
        return self.conversion

    def require_one_build(self) -> None:
        """Raise UsageError, which names the files, for a reference that means several models of a repository."""
        if len(self.builds) <= 1 or self.listing is None:
            return
        repo_id, revision = self.listing.repo_id, self.listing.revision
        files = [str(ModelReference(repo_id, file=build.files[0], revision=revision)) for build in self.builds]
        kind = "models without a quantization in their names"
        if is_labeled(self.builds[0]):
            kind = f"{self.chosen.quantization} models"
        others = ", or one of the others" if len(files) > MAX_NAMED else ""
        raise UsageError(f"{repo_id} has several {kind}", f"choose one: {' or '.join(files[:MAX_NAMED])}{others}")


@dataclass(slots=True)
class Planner:
    """Plans downloads and conversions; nothing is downloaded.

    `conversion` reads what weights in a folder or repository can be converted to.
    """

    library: Library
    progress: Progress
    options: DownloadOptions
    conversion: Callable[[Path | Listing], Conversion]

    def plan(self, reference: Reference) -> DownloadPlan:
        """Plan a reference's download. Raises ModelNotFound if nothing matches, HubError if the Hub fails."""
        options, spec = self.options, self.library.catalogue.meant_by(reference)
        quantization = reference.quantization if isinstance(reference, ModelReference) else options.type
        request = self.library.fit_request(options.context, quantization)
        if spec and spec.weights and (options.from_weights or not spec.sources):
            reference = ModelReference(spec.weights)
        match reference:
            case Path() if is_directory(reference):
                return self._plan_conversion(reference, request, spec)
            case ModelReference(is_on_hub=True) if not options.is_offline:
                return self._plan_repository(reference, request, spec)
        if spec and not (spec.package or spec.is_built or options.is_offline):
            return self._plan_spec(spec, request)
        if spec:
            available = request.assess_spec(spec, self.library.models())
        else:
            available = self.library.quantizations(self.library.find(reference), options.context)
        if available is None:
            raise ModelNotFound(f"no quantizations of {reference} are known", "list them online: omit --offline")
        return DownloadPlan(available)

    def _plan_spec(self, spec: ModelSpec, request: FitRequest) -> DownloadPlan:
        """Plan with the first repository of a catalog model that exists and has it."""
        missing = None
        for source in spec.sources:
            try:
                listing = list_repository(source.repo_id, self.progress, source.revision)
                models = [model for model in variants(listing.files) if source.matches(Path(model.files[0]).name)]
                return self._plan_files(spec, listing, models, request)
            except ModelNotFound as error:
                missing = missing or error
        raise missing or ModelNotFound(f"{spec.name} cannot be downloaded", spec.notes)

    def _plan_repository(self, reference: ModelReference, request: FitRequest, spec: ModelSpec | None) -> DownloadPlan:
        self.library.catalogue.require_not_refused(reference.name)
        listing = list_repository(reference.name, self.progress, reference.revision)
        names = [name for name in listing.files if name.lower().endswith(".gguf")]
        if self.options.from_weights or not (names or reference.file):
            return self._plan_conversion(listing, request, spec)
        if reference.file:
            return self._plan_files(None, listing, [_model_of_file(listing, reference.file, names)], request)
        models = variants(names)
        wanted = request.quantization if models else None
        if not in_quantization(models, wanted) and (lacking := lacking_part(names, wanted)):
            listing.file(lacking)  # raises the error for it
        if not models:  # companions alone: the header of one says what it is
            models = complete_variants(names)
            request = replace(request, quantization=None)
        return self._plan_files(None, listing, models, request)

    def _plan_files(
        self, spec: ModelSpec | None, listing: Listing, models: Sequence[Variant], request: FitRequest
    ) -> DownloadPlan:
        """Plan with models of a repository; without a `spec`, the catalog's row is that of one of their files.

        The memory is that of the catalog, or else what the header of the chosen file states.
        """
        if not models:
            raise ModelNotFound(f"{listing.repo_id} has no GGUF model", "see its page on the Hub")
        spec = spec or self.library.catalogue.in_repository(listing.repo_id, (model.files[0] for model in models))
        models = likely_models(models, request.quantization)
        if len(models) > MAX_MODELS:  # each takes a millisecond
            models = in_quantization(models, request.quantization)[:MAX_MODELS] or models
        installed = [model.quantization for model in models if listing.is_stored(self.library.cache, model.files)]
        plan = self._assess(spec, listing, models, installed, request)
        if len(plan.builds) > 1 or (spec and spec.kv_bytes_per_token):
            return plan
        try:
            header = read_remote_header(listing, plan.builds[0], self.progress)
        except NoLanguageModel as error:
            if others := sorted({model.quantization for model in models} - {plan.chosen.quantization}):
                named = format_names([f"{listing.repo_id}:{quantization}" for quantization in others], MAX_NAMED)
                error.hint += f"; or choose another file: {named}"
            raise
        return self._assess(spec, listing, models, installed, request, header)

    def _assess(
        self,
        spec: ModelSpec | None,
        listing: Listing,
        models: Sequence[Variant],
        installed: Sequence[str],
        request: FitRequest,
        header: Header | None = None,
    ) -> DownloadPlan:
        """Choose among models by the memory that a header states, or the catalog."""
        name = spec.name if spec else listing.repo_id
        sizes = [(model.quantization, sum(listing.file(file).size for file in model.files)) for model in models]
        memory = header.sizes if header else spec_sizes(spec)
        trained = header.context_length if header else spec and spec.context_size
        available = request.assess(name, sizes, installed, memory, trained or None, spec)
        builds = in_quantization(models, request.quantization or available.chosen.quantization)
        if request.quantization is None and not is_labeled(builds[0]):
            builds = [model for model in models if not is_labeled(model)]
        is_requested = request.quantization is not None
        return DownloadPlan(available, listing, tuple(builds), is_requested=is_requested, header=header)

    def _plan_conversion(self, source: Path | Listing, request: FitRequest, spec: ModelSpec | None) -> DownloadPlan:
        """Plan a conversion; without a requested type, prefer the one installed last."""
        conversion = self.conversion(source)
        is_requested = request.quantization is not None
        if conversion.installed and not is_requested:
            request = replace(request, quantization=conversion.installed[-1])
        name = spec.name if spec and spec.is_built else conversion.name
        header = conversion.header
        available = request.assess(
            name, conversion.sizes.items(), conversion.installed, header.sizes, header.context_length, spec
        )
        listing = source if isinstance(source, Listing) else None
        return DownloadPlan(available, listing, conversion=conversion, is_requested=is_requested)


def read_remote_header(listing: Listing, model: Variant, progress: Progress) -> Header:
    """Header of a model on the Hub. Raises ModelFileError for one that cannot be used here."""
    file = listing.file(model.files[0])
    path = Path(listing.repo_id, file.name)
    header = header_from_tables(path, parse_tables(path, header_bytes(listing, file, progress), file.size))
    require_generative(path, header)
    return header


def _model_of_file(listing: Listing, file: str, names: Sequence[str]) -> Variant:
    """The model that a file of a repository begins. Raises ModelNotFound if there is no such file."""
    if file in names:
        return variant_of(file)
    hint = f"{did_you_mean(file, names, 3)}list its models: cerebrum pull --dry-run {listing.repo_id}"
    raise ModelNotFound(f"{listing.repo_id} has no complete model {file}", hint)
