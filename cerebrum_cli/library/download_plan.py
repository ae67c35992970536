"""Plan downloads from the Hub's listings, or from the catalog when offline. Nothing is downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread

from cerebrum_cli.core.errors import ModelNotFound, PullError
from cerebrum_cli.core.files import exists
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.gguf.header import Header, header_from_tables
from cerebrum_cli.gguf.parser import HeaderTruncated, parse_tables
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.download import Progress, RetryPolicy
from cerebrum_cli.library.fit import (
    DownloadPlan,
    PlanRequest,
    known_plan,
    spec_sizes,
)
from cerebrum_cli.library.hub import (
    FoundRepository,
    HubFile,
    Listing,
    is_offline,
    list_repository,
    open_file,
    search_repositories,
)
from cerebrum_cli.library.installed import Library
from cerebrum_cli.library.listing import quantization_plan
from cerebrum_cli.library.reference import ModelReference, Reference, Variant, variants

FIRST_BYTES, MOST_BYTES = 1 << 20, 1 << 26  # of a header: vocabularies take up to 20 MB
MOST_FOUND = 10  # repositories of a search


@dataclass(slots=True)
class DownloadPlanner:
    library: Library
    progress: Progress
    offline: bool = False
    _headers: dict[tuple[str, str], bytes] = field(default_factory=dict, init=False)

    @property
    def is_offline(self) -> bool:
        return self.offline or is_offline()

    def plan(self, reference: Reference, context: int | None = None) -> DownloadPlan:
        """Plan a reference's download. Raises ModelNotFound if nothing matches, HubError if the Hub fails."""
        spec = self.library.spec_of(reference)
        if isinstance(reference, ModelReference) and reference.is_on_hub and not self.is_offline:
            return self._plan_repository(reference, context)
        if isinstance(reference, Path) or spec is None:
            plan = quantization_plan(self.library, self.library.find(reference), context)
        elif spec.package or spec.recipe or self.is_offline:
            request = PlanRequest(context, reference.quantization, self.library.capacity())
            plan = known_plan(spec, self.library.models(), request)
        else:
            plan = self._plan_spec(spec, reference.quantization, context)
        if plan is None:
            raise ModelNotFound(f"no quantizations of {reference} are known", "list them online: omit --offline")
        return plan

    def search(self, text: str, context: int | None) -> list[tuple[FoundRepository, DownloadPlan | None]]:
        """Search the Hub for GGUF repositories, with a plan of each; None without a model or if the Hub lists none.

        Raises PullError if the search itself fails.
        """
        if self.is_offline:
            raise PullError("cannot search the Hub: the network is disabled", "omit --offline, or unset HF_HUB_OFFLINE")
        repositories = RetryPolicy(self.progress).run(search_repositories, well_formed(text), MOST_FOUND)
        listings = _list_repositories([repository.repo_id for repository in repositories])
        return [(repository, self._estimate(listings.get(repository.repo_id), context)) for repository in repositories]

    def _estimate(self, listing: Listing | None, context: int | None) -> DownloadPlan | None:
        """Plan a repository's download without reading a header, which would take megabytes of each."""
        if listing is None:
            return None
        try:
            return self._plan_listing(None, listing, _variants(listing), None, context, reads_header=False)
        except (ModelNotFound, PullError):
            return None

    def header(self, listing: Listing, file: HubFile) -> Header:
        path = Path(listing.repo_id, file.name)
        return header_from_tables(path, parse_tables(path, self.header_bytes(listing, file), file.size))

    def header_bytes(self, listing: Listing, file: HubFile) -> bytes:
        """Bytes of a file on the Hub up to its tensor data. Raises ModelFileError."""
        key = (listing.commit, file.name)
        if key not in self._headers:
            self._headers[key] = RetryPolicy(self.progress).run(_read_header, listing, file)
        return self._headers[key]

    def _plan_spec(self, spec: ModelSpec, quantization: str | None, context: int | None) -> DownloadPlan:
        if not spec.sources:
            raise ModelNotFound(f"{spec.name} cannot be downloaded", spec.notes)
        errors: list[ModelNotFound] = []
        for source in spec.sources:
            try:
                listing = RetryPolicy(self.progress).run(list_repository, source.repo_id, source.revision)
                models = [model for model in _variants(listing) if source.matches(Path(model.files[0]).name)]
                return self._plan_listing(spec, listing, models, quantization, context)
            except ModelNotFound as error:
                errors.append(error)
        raise errors[0]

    def _plan_repository(self, reference: ModelReference, context: int | None) -> DownloadPlan:
        repo_id = reference.name
        self.library.require_not_refused(repo_id)
        listing = RetryPolicy(self.progress).run(list_repository, repo_id, reference.revision)
        models: Sequence[Variant] = _variants(listing)
        if reference.file:
            models = [model for model in models if reference.file in model.files]
            if not models:
                raise ModelNotFound(
                    f"{repo_id} has no complete model {reference.file}",
                    f"list its models: cerebrum pull --dry-run {repo_id}",
                )
        return self._plan_listing(None, listing, models, reference.quantization, context)

    def _plan_listing(
        self,
        spec: ModelSpec | None,
        listing: Listing,
        models: Sequence[Variant],
        quantization: str | None,
        context: int | None,
        reads_header: bool = True,
    ) -> DownloadPlan:
        """Plan with models of a repository; without a `spec`, the catalog's row is that of one of their files."""
        if not models:
            raise ModelNotFound(f"{listing.repo_id} has no GGUF model", "see its page on the Hub")
        spec = spec or self._spec_of(listing, models)
        sizes = []
        for model in models:
            sizes.append((model.quantization, sum(listing.file(name).size for name in model.files)))
        if (spec and spec.kv_bytes_per_token) or not reads_header:
            layer_sizes = spec_sizes(spec)
            trained = spec.context_size if spec else None
        else:
            header = self.header(listing, listing.file(models[0].files[0]))
            layer_sizes = header.sizes
            trained = header.context_length
        installed = [model.quantization for model in models if self._is_cached(listing, model)]
        request = PlanRequest(context, quantization, self.library.capacity())
        name = spec.name if spec else listing.repo_id
        plan = request.plan(name, sizes, installed, layer_sizes, trained, spec)
        return replace(plan, listing=listing, variants=tuple(models))

    def _spec_of(self, listing: Listing, models: Sequence[Variant]) -> ModelSpec | None:
        for model in models:
            if spec := self.library.spec_in(listing.repo_id, model.files[0]):
                return spec
        return None

    def _is_cached(self, listing: Listing, variant: Variant) -> bool:
        places = [listing.place(self.library.cache, listing.file(name)) for name in variant.files]
        return all(exists(place.stored) for place in places)


def _list_repositories(repo_ids: Sequence[str]) -> dict[str, Listing]:
    """Request listings at the same time, without those that the Hub does not give at once."""
    listings: dict[str, Listing] = {}

    def request(repo_id: str) -> None:
        with contextlib.suppress(ModelNotFound, PullError):
            listings[repo_id] = list_repository(repo_id)

    # Daemon threads: those of a pool would delay the exit after Ctrl-C.
    threads = [Thread(target=request, args=(repo_id,), daemon=True) for repo_id in repo_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return listings


def _variants(listing: Listing) -> tuple[Variant, ...]:
    return variants(file.name for file in listing.files)


def _read_header(listing: Listing, file: HubFile) -> bytes:
    """Read a header: the first bytes of the file, and more while it does not end within these."""
    data = b""
    end = FIRST_BYTES
    while True:
        with open_file(listing, file.name, len(data), min(end, file.size)) as (start, chunks):
            data = data[:start]
            while len(data) < end and (chunk := next(chunks, b"")):  # without range support, the whole file is sent
                data += chunk
        try:
            return data[: parse_tables(Path(listing.repo_id, file.name), data, file.size).length]
        except HeaderTruncated:
            if len(data) >= file.size or end >= MOST_BYTES:
                raise
        end *= 4
