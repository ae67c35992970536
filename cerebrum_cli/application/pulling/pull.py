"""Bring a model here: download and check it, or take a file as it lies, and remember it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.application.models.availability import DownloadPlan
from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model, as_name, as_path, is_file, is_missing, require_loadable
from cerebrum_cli.application.models.names import require_name
from cerebrum_cli.application.pulling.download_plan import DownloadPlanner
from cerebrum_cli.catalogue.download import Download, Progress
from cerebrum_cli.catalogue.hub_errors import HubError
from cerebrum_cli.catalogue.reference import AtPath, Named
from cerebrum_cli.catalogue.registry import ModelFile, Source
from cerebrum_cli.catalogue.spec import ModelSpec, PackageSource
from cerebrum_cli.core.errors import CerebrumError, ConfigError, ModelNotFound, PullError
from cerebrum_cli.core.events import NoticeEvent

if TYPE_CHECKING:
    from cerebrum_cli.merge.weights import CodecFactory


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls models into a library; whatever goes wrong, what was here stays."""

    library: Library
    progress: Progress
    codec: CodecFactory
    offline: bool = False
    within: tuple[str, ...] = ()  # the models that are being merged of what is pulled

    @property
    def planner(self) -> DownloadPlanner:
        """What can be pulled."""
        return DownloadPlanner(self.library, self.progress, self.offline)

    def is_cut_off(self, text: str) -> bool:
        """Return whether what a reference names could not be fetched even if it exists: we are offline."""
        reference = self.library.parse(text)
        spec = self.library.spec_named(reference.name) if isinstance(reference, Named) else None
        return self.offline or (self.planner.is_offline and not (spec and (spec.package or spec.recipe)))

    def pull(
        self,
        text: str,
        name: str | None = None,
        context: int | None = None,
        agree: Callable[[str], bool] = lambda _: False,
    ) -> Model:
        """Return the model a reference names, brought here unless it is; `agree` is asked where it will not fit.

        The first model that comes, or comes after the default has gone, is the one asked when none is named.
        """
        model = self._brought(text, name, context, agree)
        registry = self.library.registry
        default = registry.default
        try:
            self.library.resolve(default)
        except CerebrumError:
            with contextlib.suppress(ConfigError):  # a directory that is only read from has no default
                registry.set_default(model.reference, instead_of=(default,))
        return model

    def _brought(self, text: str, name: str | None, context: int | None, agree: Callable[[str], bool]) -> Model:
        library = self.library
        if (entry := library.registry.find(text)) and library.spec_named(text) is None and not is_missing(entry.path):
            return library.registered(entry) if name is None else self._adopt(entry.path, name)
        reference = None if is_file(as_path(text)) else library.parse(text)
        if reference is None or isinstance(reference, AtPath):
            return self._adopt(as_path(text), name)
        spec = library.spec_named(reference.name) if isinstance(reference, Named) else None
        if isinstance(reference, Named) and spec is None:
            return self._named(library.resolve(text), name)
        if spec and spec.recipe:
            return self._merge(spec, text, name, context, agree)
        if self.is_cut_off(text):
            return self._named(self._already_here(text), name)
        if spec and spec.package:
            return self._unpack(spec, spec.package, name)
        offers = self.planner
        try:
            offer = offers.find(text, context)
        except HubError as error:
            return self._named(self._instead(text, error), name)
        require_agreement(offer, agree)
        return self._named(self._download(offers, offer, name), name)

    def _merge(
        self, spec: ModelSpec, text: str, name: str | None, context: int | None, agree: Callable[[str], bool]
    ) -> Model:
        """Merge a model by its row's recipe, of models that are brought here in the quantisation that is meant."""
        from cerebrum_cli.application.merging.merge import Merger
        from cerebrum_cli.application.merging.recipes import catalogue_recipe
        from cerebrum_cli.application.pulling.building import Building

        if spec.name in self.within:
            raise ConfigError(f"{spec.name}: its recipe comes back to itself", "correct its row in models.toml")
        inner = replace(self, within=(*self.within, spec.name))
        merger = Merger(self.library, self.codec)
        plan = Building(self.library, merger, spec, catalogue_recipe(spec))
        reference = self.library.parse(text)
        quantization = reference.quantization if isinstance(reference, Named) else None
        if spec.quantizations:
            offer = plan.plan(self.planner, text, context)
            if offer.chosen.installed:
                return self._named(self.library.resolve(offer.reference), name)
            require_agreement(offer, agree)
            quantization = offer.chosen.quantization
        merge = plan.build(quantization, name, lambda each: inner._brought(each, None, context, agree))
        written = merger.write(merge, lambda done, total: self.progress.update("merge", done, total))
        return merger.register(merge, written)

    def _download(self, offers: DownloadPlanner, offer: DownloadPlan, name: str | None) -> Model:
        library, listing, variant = self.library, offer.availability.listing, offer.variant
        assert listing is not None, "online every offer but a package's has a listing"
        files = tuple(map(listing.file, variant.files))
        digests = [file.digest for file in files]
        if name is not None:
            self._claim(name, lambda spec: spec is offer.availability.spec, digests[0])
        download = Download(listing, library.cache, self.progress, library.remembered_digest)
        download.require_space(files)
        if not offer.chosen.installed:
            require_loadable(Path(listing.repo_id, files[0].name), offers.header(listing, files[0]))
        paths = download.fetch(files)
        for file, digest in zip(files, digests, strict=True):
            stored = library.cache.stored(listing.repo_id, listing.commit, file.name, digest)
            if library.registry.digest(stored) is None:
                library.registry.remember_digest(stored, digest)
        here = (model for model in library.models() if model.cached and model.path == paths[0])
        return next(here, None) or library.of_cached(library.cache.model(listing.repo_id, listing.commit, variant))

    def _named(self, model: Model, name: str | None) -> Model:
        """Return a model under the name the user has given it, if any."""
        if name is None or (model.file and model.file.name == name):
            return model
        digest = self.library.digest(model, lambda done, total: self.progress.update("verify", done, total))
        self._claim(name, lambda spec: spec is model.spec, digest)
        return self._remember(name, model.path, digest, "hub" if model.cached else "local")

    def _unpack(self, spec: ModelSpec, package: PackageSource, name: str | None) -> Model:
        self._claim(name or spec.name, lambda claimed: claimed is spec, package.sha256)
        from cerebrum_cli.catalogue.package import fetch

        path = fetch(package, self.library.directory, self.progress.update)
        return self._remember(name or spec.name, path, package.sha256, "package")

    def _adopt(self, path: Path, name: str | None) -> Model:
        """Remember a file where it lies."""
        library = self.library
        local = library.at_path(path)
        require_loadable(local.path, local.header)
        digest = library.digest(local, lambda done, total: self.progress.update("verify", done, total))
        for entry in library.registry.entries():
            ours = entry.source == "package" and not is_missing(entry.path)
            if ours and entry.sha256 == digest and name in (None, entry.name):
                return library.registered(entry)  # the copy that was pulled outlives the one the user points at
        packaged = next((spec for spec in library.specs if spec.package and spec.package.sha256 == digest), None)
        if name is None:
            name = packaged.name if packaged else as_name(local.path.stem)

        def is_that(spec: ModelSpec) -> bool:
            return spec.package.sha256 == digest if spec.package else spec.matches(path.name)

        self._claim(name, is_that, digest)
        return self._remember(name, local.path, digest, "local")

    def _already_here(self, text: str) -> Model:
        try:
            return self.library.resolve(text)
        except ModelNotFound as error:
            do = "pull it without --offline and HF_HUB_OFFLINE"
            raise ModelNotFound(f"{error.message}, and we are offline", do, error.near) from error

    def _instead(self, text: str, error: HubError) -> Model:
        """Return the model where it is here though the Hub cannot be asked about it."""
        try:
            model = self.library.resolve(text)
        except ModelNotFound:
            raise error from None
        self.progress.notice(NoticeEvent(error.message, f"{model.reference} is here already and stays as it is"))
        return model

    def _claim(self, name: str, is_that: Callable[[ModelSpec], bool], digest: str) -> None:
        """Raise UsageError unless a model of this digest may be called this."""
        require_name(self.library, name, is_that, lambda entry: entry.sha256 == digest)

    def _remember(self, name: str, path: Path, sha256: str, source: Source) -> Model:
        stat = path.stat()
        entry = ModelFile(name, path, stat.st_size, sha256, stat.st_mtime_ns, source)
        model = self.library.registered(entry)
        _ = model.header  # a file that cannot be read is not remembered
        self.library.registry.add(entry)
        return model


def require_agreement(offer: DownloadPlan, agree: Callable[[str], bool]) -> None:
    """Raise PullError where what is to come will not fit this machine and nobody wants it all the same."""
    if offer.warning and not offer.chosen.installed and not agree(offer.warning):
        raise PullError(offer.warning, "choose a smaller quantisation, or go on with -y")
