"""Plan downloads and conversions from the Hub's listings, or from the catalog when offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from cerebrum_cli.core.environment import is_hub_offline
from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, PullError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import exists, is_directory
from cerebrum_cli.core.text import did_you_mean, format_count, format_names, well_formed
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.gguf.contents import HeaderTruncated
from cerebrum_cli.gguf.header import Header, NoLanguageModel, header_from_tables, parse_tables, require_generative
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.fit import spec_sizes
from cerebrum_cli.library.hub import (
    FoundRepository,
    HubFile,
    Listing,
    find_repositories,
    list_repository,
    open_file,
)
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.plans import MAX_NAMED, Conversion, DownloadPlan, PlanRequest
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
from cerebrum_cli.library.retries import RetryPolicy

FIRST_BYTES, MOST_BYTES = 1 << 20, 1 << 26  # of a header: vocabularies take up to 20 MB
MOST_MODELS = 300  # of a repository that are assessed; no model has as many quantizations
MOST_FOUND = 10  # repositories of a search
MOST_OTHERS = 3  # GGUF repositories of a model


@dataclass(slots=True)
class Planner:
    """Plans downloads and conversions for a context size, if one is chosen. Nothing is downloaded.

    Safetensors in a folder are converted to `type`; those of a repository `from_weights` even if it has GGUF files.
    `conversion` tells what weights in a folder or repository can be converted to.
    """

    library: Library
    progress: Progress
    conversion: Callable[[Path | Listing], Conversion]
    offline: bool = False
    context: int | None = None
    type: str | None = None
    from_weights: bool = False
    _headers: dict[tuple[str, str], bytes] = field(default_factory=dict)

    @property
    def is_offline(self) -> bool:
        return self.offline or is_hub_offline()

    def plan(self, reference: Reference) -> DownloadPlan:
        """Plan a reference's download. Raises ModelNotFound if nothing matches, HubError if the Hub fails."""
        spec = self.library.catalogue.meant_by(reference)
        quantization = reference.quantization if isinstance(reference, ModelReference) else self.type
        request = self.library.plan_request(self.context, quantization)
        if spec and spec.weights and (self.from_weights or not spec.sources):
            reference = ModelReference(spec.weights)
        match reference:
            case Path() if is_directory(reference):
                return self._plan_conversion(reference, request, spec)
            case ModelReference(is_on_hub=True) if not self.is_offline:
                return self._plan_repository(reference, request, spec)
        if spec is None:
            plan = self.library.quantization_plan(self.library.find(reference), self.context)
        elif spec.package or spec.is_built or self.is_offline:
            plan = request.known_plan(spec, self.library.models())
        else:
            plan = self._plan_spec(spec, request)
        if plan is None:
            raise ModelNotFound(f"no quantizations of {reference} are known", "list them online: omit --offline")
        return plan

    def search(self, text: str) -> tuple[FoundRepository, ...]:
        """Search the Hub for GGUF repositories. Raises PullError."""
        if self.is_offline:
            raise PullError("cannot search the Hub: the network is disabled", "omit --offline, or unset HF_HUB_OFFLINE")
        return RetryPolicy(self.progress).run(find_repositories, MOST_FOUND, text=well_formed(text))

    def header(self, listing: Listing, model: Variant) -> Header:
        """Header of a model on the Hub. Raises ModelFileError for one that cannot be used here."""
        file = listing.file(model.files[0])
        path = Path(listing.repo_id, file.name)
        header = header_from_tables(path, parse_tables(path, self.header_bytes(listing, file), file.size))
        require_generative(path, header)
        return header

    def header_bytes(self, listing: Listing, file: HubFile) -> bytes:
        """Bytes of a file on the Hub up to its weights, if it has any. Raises ModelFileError."""
        key = (listing.commit, file.name)
        if key not in self._headers:
            self._headers[key] = RetryPolicy(self.progress).run(_read_header, listing, file)
        return self._headers[key]

    def _plan_spec(self, spec: ModelSpec, request: PlanRequest) -> DownloadPlan:
        if not spec.sources:
            raise ModelNotFound(f"{spec.name} cannot be downloaded", spec.notes)
        errors = []
        for source in spec.sources:
            try:
                listing = self._listed(source.repo_id, source.revision)
                models = [model for model in variants(listing.files) if source.matches(Path(model.files[0]).name)]
                return self._plan_listing(spec, listing, models, request)
            except ModelNotFound as error:
                errors.append(error)
        raise errors[0]

    def _plan_repository(self, reference: ModelReference, request: PlanRequest, spec: ModelSpec | None) -> DownloadPlan:
        repo_id = reference.name
        self.library.catalogue.require_not_refused(repo_id)
        listing = self._listed(repo_id, reference.revision)
        names = [name for name in listing.files if name.lower().endswith(".gguf")]
        if self.from_weights or not (names or reference.file):
            return self._plan_conversion(listing, request, spec)
        models = variants(listing.files)
        if reference.file:
            if reference.file not in names:
                ending = reference.file.lower()
                alike = [name for name in names if name.lower().endswith(ending)]
                similar = did_you_mean(reference.file, alike or names, 3, 0 if alike else 0.6)
                hint = f"{similar}list its models: cerebrum pull --dry-run {repo_id}"
                raise ModelNotFound(f"{repo_id} has no complete model {reference.file}", hint)
            models = (variant_of(reference.file),)
        elif not in_quantization(models, reference.quantization):
            if lacking := lacking_part(names, reference.quantization if models else None):
                listing.file(lacking)  # raises the error for it
            if not models:  # companions alone: the header of one says what it is
                models = complete_variants(names)
                request = replace(request, quantization=None)
        return self._plan_listing(None, listing, models, request)

    def _listed(self, repo_id: str, revision: str | None) -> Listing:
        listing = RetryPolicy(self.progress).run(list_repository, repo_id, revision)
        if listing.left_out:
            files = format_count(listing.left_out, "file")
            self.progress.notice(NoticeEvent(f"{repo_id}: {files} left out", "their names cannot be stored"))
        return listing

    def _plan_listing(
        self, spec: ModelSpec | None, listing: Listing, models: Sequence[Variant], request: PlanRequest
    ) -> DownloadPlan:
        """Plan with models of a repository; without a `spec`, the catalog's row is that of one of their files.

        The header of the chosen file is read, unless the catalog has its memory, or several were meant.
        """
        if not models:
            raise ModelNotFound(f"{listing.repo_id} has no GGUF model", "see its page on the Hub")
        spec = spec or self._known(listing, models)
        models = considered(models, request.quantization)
        plan = self._assess(spec, listing, models, request)
        if len(plan.variants) > 1 or (spec and spec.kv_bytes_per_token):
            return plan
        chosen = plan.variants[0]
        try:
            header = self.header(listing, chosen)
        except NoLanguageModel as error:
            if others := sorted({model.quantization for model in models} - {chosen.quantization}):
                named = format_names([f"{listing.repo_id}:{quantization}" for quantization in others], MAX_NAMED)
                error.hint += f"; or choose another file: {named}"
            raise
        return self._assess(spec, listing, models, request, header)

    def _assess(
        self,
        spec: ModelSpec | None,
        listing: Listing,
        models: Sequence[Variant],
        request: PlanRequest,
        header: Header | None = None,
    ) -> DownloadPlan:
        """Plan with the likely models of a repository: with the sizes in the header of one, or those of the catalog."""
        models = likely_models(models, request.quantization)
        sizes = [(model.quantization, sum(listing.file(name).size for name in model.files)) for model in models]
        installed = [model.quantization for model in models if self.is_stored(listing, model.files)]
        name = spec.name if spec else listing.repo_id
        memory = header.sizes if header else spec_sizes(spec)
        trained = header.context_length if header else spec and spec.context_size
        plan = request.plan(name, sizes, installed, memory, trained or None, spec)
        chosen = in_quantization(models, request.quantization or plan.chosen.quantization)
        if request.quantization is None and not is_labeled(chosen[0]):
            chosen = [model for model in models if not is_labeled(model)]
        return replace(plan, listing=listing, variants=tuple(chosen))

    def _plan_conversion(self, source: Path | Listing, request: PlanRequest, spec: ModelSpec | None) -> DownloadPlan:
        """Plan a conversion; without a requested type, prefer the one installed last."""
        conversion = self.conversion(source)
        if conversion.installed and request.quantization is None:
            request = replace(request, quantization=conversion.installed[-1])
        name = spec.name if spec and spec.is_built else conversion.name
        header = conversion.header
        plan = request.plan(
            name, conversion.sizes.items(), conversion.installed, header.sizes, header.context_length, spec
        )
        listing = source if isinstance(source, Listing) else None
        return replace(plan, listing=listing, conversion=conversion)

    def other_conversions(self, repo_id: str) -> str:
        """Commands that pull a GGUF of the same model; empty if none are found."""
        try:
            found = find_repositories(MOST_OTHERS, f"base_model:quantized:{repo_id}")
        except CerebrumError:
            return ""
        return " or ".join(f"cerebrum pull {each.repo_id} ({each.downloads:,} downloads)" for each in found)

    def _known(self, listing: Listing, models: Sequence[Variant]) -> ModelSpec | None:
        return self.library.catalogue.in_repository(listing.repo_id, (model.files[0] for model in models))

    def is_stored(self, listing: Listing, names: Sequence[str]) -> bool:
        """Whether the files of these names in a listing are in the cache."""
        if not exists(self.library.cache.repository_directory(listing.repo_id)):
            return False
        places = [listing.place(self.library.cache, listing.files[name]) for name in names if name in listing.files]
        return all(exists(place.stored) for place in places)

    def outdated(self) -> list[InstalledModel]:
        """Installed models with newer uploads on the Hub that are not installed. Raises HubError."""
        list_once = cache(self._list_repository)
        outdated = []
        for model in self.library.models():
            cached = model.cached
            if model.is_converted and "commit" in model.converted_from:
                listing = list_once(model.converted_from["source"], None)
                files = f"{model.converted_from['sha256']}, {model.converted_from['configuration']}"
                if listing and not {*files.split(", ")} <= {
                    f"{file.digest} {file.name}" for file in listing.files.values()
                }:
                    outdated.append(model)
            if cached is None or model.is_shadowed:
                continue
            revisions = {source.repo_id: source.revision for source in model.spec.sources} if model.spec else {}
            listing = list_once(cached.repo_id, revisions.get(cached.repo_id))
            if listing and not self.is_stored(listing, cached.names):
                outdated.append(model)
        return outdated

    def _list_repository(self, repo_id: str, revision: str | None) -> Listing | None:
        try:
            return RetryPolicy(self.progress).run(list_repository, repo_id, revision)
        except ModelNotFound as error:  # gone, or private
            self.progress.notice(NoticeEvent(error.message, "its models are skipped"))
            return None


def considered(models: Sequence[Variant], quantization: str | None) -> Sequence[Variant]:
    """Models of a repository; of more than MOST_MODELS, the first that are meant, since each takes a millisecond."""
    if len(models) <= MOST_MODELS:
        return models
    return in_quantization(likely_models(models, quantization), quantization)[:MOST_MODELS] or models


def _read_header(listing: Listing, file: HubFile) -> bytes:
    """Read a header: the first bytes of the file, and more while it does not end within these."""
    data = b""
    end = FIRST_BYTES
    while True:
        with open_file(listing, file.name, len(data), min(end, file.size)) as response:
            data = b"" if response.is_whole else data
            while len(data) < end and (chunk := next(response.chunks, b"")):  # without ranges, all of it is sent
                data += chunk
        try:
            return data[: _header_length(Path(listing.repo_id, file.name), data, file.size)]
        except HeaderTruncated:
            if len(data) >= file.size or end >= MOST_BYTES:
                raise
        end *= 4


def _header_length(path: Path, data: bytes, size: int) -> int:
    """Bytes up to the weights of a file that begins with `data`. Raises HeaderTruncated if these are too few."""
    if path.suffix.lower() == ".gguf":
        return parse_tables(path, data, size).length
    end = size
    if path.suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
    if end > len(data):
        raise HeaderTruncated(path, f"its header is too large: {end:,} bytes", "use another model")
    return end
