"""Pull models: download and verify them, or register a local file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import CerebrumError, ConfigError, ModelNotFound, PullError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import atomic_write, exists, is_directory, is_file
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.paths import is_missing
from cerebrum_cli.core.text import name_from_stem
from cerebrum_cli.core.transfers import Progress
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.library.catalogue import ModelSpec, PackageSource
from cerebrum_cli.library.download import Download
from cerebrum_cli.library.hub import HubFile, Listing, delete
from cerebrum_cli.library.hub_headers import header_bytes
from cerebrum_cli.library.hub_requests import HubError
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.ollama import OllamaModel, find_ollama_model
from cerebrum_cli.library.online import other_conversions
from cerebrum_cli.library.packaged import fetch_from_package
from cerebrum_cli.library.planning import Conversion, DownloadPlan, Planner
from cerebrum_cli.library.reference import ModelReference, OllamaReference, Reference, Variant
from cerebrum_cli.library.registry import RegistryEntry


class ModelBuilder(NamedTuple):
    """What the optional package `weights` does for a Puller: convert safetensors, and merge catalog models.

    `conversion` reads what weights in a folder or repository can be converted to; `merge` makes a model of the catalog,
    by its reference and a chosen name, from source models, which are pulled first; `describe_merge` says how.
    """

    conversion: Callable[[Puller, Path | RemoteFiles], Conversion]
    merge: Callable[[Puller, str, str | None], InstalledModel]
    describe_merge: Callable[[Puller, str], str]


@dataclass(kw_only=True)
class Puller:
    """Carries out what its planner plans: pulls models into a library; a failure leaves installed models unchanged.

    `confirm` asks about models that do not fit, and downloads of weights, with a default answer; `choose` asks which of
    several is meant, and returns its number from 1; both return None without a user.
    Downloads of weights are deleted once converted if it `discards`. `merging` are the catalog models whose merge is in
    progress. Other fields are those of Planner.
    """

    library: Library
    progress: Progress
    confirm: Callable[[str, bool], bool | None]
    choose: Callable[[str, Sequence[str]], int | None] = lambda *_: None
    builder: ModelBuilder | None = None
    offline: bool = False
    context: int | None = None
    type: str | None = None
    from_weights: bool = False
    discards: bool = False
    merging: tuple[str, ...] = ()

    @cached_property
    def planner(self) -> Planner:
        chosen = (self.offline, self.context, self.type, self.from_weights)
        return Planner(self.library, self.progress, self._conversion, *chosen)

    def parse(self, text: str) -> Reference:
        """Parse a reference, and add the chosen type. Raises UsageError for a type of a file, or a second one."""
        reference = self.library.parse(text)
        match reference:
            case _ if self.type is None:
                return reference
            case Path() if not is_file(reference):
                return reference
            case OllamaReference():
                return replace(reference, name=f"{reference.name}:{self.type}")
            case ModelReference(file=None, quantization=None):
                return replace(reference, quantization=self.type)
        raise UsageError.conflict(str(reference), "--type")

    def plan(self, reference: Reference) -> DownloadPlan:
        return self.planner.plan(reference)

    def digest(self, path: Path) -> RegistryEntry:
        """Digest of a file, with progress while it is read."""
        return self.library.registry.digest(path, partial(self.progress.update, "verify"))

    def is_unavailable_offline(self, reference: Reference) -> bool:
        spec = self.library.catalogue.meant_by(reference)
        return self.offline or (self.planner.is_offline and not (spec and spec.recipe))  # whose sources may be here

    def pull(self, reference: Reference, name: str | None = None) -> InstalledModel:
        """Pull a model unless it is installed, of several the chosen one. It becomes the default if there is none.

        Raises ModelFileError for one that cannot answer, and PullError for a repository that has only the card of a
        catalog model, unless the user agrees to that model.
        """
        model = self.find_or_pull(self._or_catalogued(reference), name)
        require_generative(model.path, model.header)
        try:
            self.library.resolve(None)
        except CerebrumError:
            with suppress(ConfigError):  # a read-only directory has no default model
                self.library.registry.set_default(model.reference)
        return model

    def catalogued(self, reference: Reference) -> ModelReference | None:
        """The model of the catalog whose card or weights a repository has, unless its weights are to be converted."""
        if self.from_weights or not isinstance(reference, ModelReference):
            return None
        if self.library.best_match(reference, self.library.models()):  # an installed conversion
            return None
        return self.library.catalogue.of_card(reference)

    def _or_catalogued(self, reference: Reference) -> Reference:
        """The model of the catalog in place of a repository with its card, if the user agrees.

        The question is left out if its row has no other files than these weights.
        """
        model = self.catalogued(reference)
        if model is None:
            return reference
        spec = self.library.catalogue.meant_by(model)
        if spec and not (spec.sources or spec.recipe):
            return model
        problem = f"{reference} is {model} in the catalog"
        answer = self.confirm(f"{problem}. Pull that?", True)
        if answer is None:
            hint = f"cerebrum pull {model}; add --from-weights to convert the safetensors of {reference} instead"
            raise PullError(problem, hint)
        return model if answer else reference

    def describe_merge(self, plan: DownloadPlan) -> str | None:
        """How the chosen model is merged; None if it is not."""
        if not (plan.spec and plan.spec.recipe and self.builder):
            return None
        return self.builder.describe_merge(self, str(plan.available.reference))

    def _plan_or_find(self, reference: Reference) -> DownloadPlan | InstalledModel:
        """Plan a download; the installed model, if the network is disabled or the Hub fails."""
        if self.is_unavailable_offline(reference):
            try:
                return self.library.find(reference)
            except ModelNotFound as error:
                spec = self.library.catalogue.meant_by(reference)
                if spec and not spec.is_obtainable:
                    raise
                hint = (
                    "pull it without --offline or HF_HUB_OFFLINE; a file needs no network: cerebrum pull ./model.gguf"
                )
                if not self.offline:
                    hint += "; starter needs no Hub: cerebrum pull starter"
                raise ModelNotFound(f"{error.message}, and the network is disabled", hint) from error
        try:
            return self.planner.plan(reference)
        except HubError as error:
            try:
                model = self.library.find(reference)
            except ModelNotFound:
                raise error from None
            self.progress.notice(NoticeEvent(error.message, f"using the installed {model.reference}"))
            return model

    def find_or_pull(self, reference: Reference, name: str | None = None) -> InstalledModel:
        """Pull a model unless it is installed, and leave the default model as it is."""
        library = self.library
        spec = library.catalogue.meant_by(reference)
        match reference:
            case ModelReference() if spec and spec.recipe:
                return self._merge(spec.name, reference, name)
            case _ if self.from_weights:
                return self._convert(self.plan(reference), name)
            case Path() if is_directory(reference):
                return self._convert(self.plan(reference), name)
            case Path():
                return self._register_local(reference, name)
            case OllamaReference():
                return self._register_ollama(find_ollama_model(reference), name)
            case ModelReference() if spec and spec.package and not self.is_unavailable_offline(reference):
                return self._pull_package(spec, spec.package, name or spec.name)
            case ModelReference() if spec or reference.is_on_hub:
                return self._pull_planned(reference, name)
        entry = library.registry.find(str(reference))
        if entry and not is_missing(entry.path):
            return self._pull_registered(entry, name)
        return self.with_name(library.find(reference), name)

    def _pull_planned(self, reference: Reference, name: str | None) -> InstalledModel:
        plan = self._plan_or_find(reference)
        if isinstance(plan, InstalledModel):
            return self.with_name(plan, name)
        if plan.conversion:
            return self._convert(plan, name)
        if len(plan.builds) > 1:
            plan = self.plan(self._choose_build(plan))
        self.require_confirmation(plan)
        return self.with_name(self._download(plan, name), name)

    def _choose_build(self, plan: DownloadPlan) -> ModelReference:
        """The one of several models of a repository that the user chooses. Raises UsageError without a user."""
        several = plan.several_builds()
        choices = plan.build_references
        number = self.choose(f"{several.message}:", [str(choice.file) for choice in choices])
        if number is None:
            raise several
        return choices[number - 1]

    def _convert(self, plan: DownloadPlan, name: str | None) -> InstalledModel:
        """Convert weights, which are downloaded first, unless a conversion of them is installed."""
        conversion = plan.required_conversion
        self.require_confirmation(plan)
        return conversion.build(plan, name)

    def _conversion(self, source: Path | Listing) -> Conversion:
        if self.builder:
            return self.builder.conversion(self, source if isinstance(source, Path) else RemoteFiles(self, source))
        if isinstance(source, Path):
            raise _no_builder(f"{source}: safetensors need", "pull a .gguf file instead")
        if not any(name.endswith(".safetensors") for name in source.files):
            raise ModelNotFound(f"{source.repo_id} has no GGUF model", "see its page on the Hub")
        others = other_conversions(source.repo_id)
        raise _no_builder(f"{source.repo_id}: safetensors need", others or "pull a repository with GGUF files instead")

    def _merge(self, own_name: str, reference: ModelReference, name: str | None) -> InstalledModel:
        """Merge a catalog model. Raises ConfigError if it is one of its own sources."""
        if self.builder is None:
            raise _no_builder(f"{own_name} is merged, which needs", "choose another: cerebrum list --available")
        if own_name in self.merging:
            raise ConfigError(f"{own_name}: circular recipe", "correct its row in models.toml")
        inner = replace(self, merging=(*self.merging, own_name))
        return self.builder.merge(inner, str(reference), name)

    def _pull_registered(self, entry: RegistryEntry, name: str | None) -> InstalledModel:
        """The model of a name, in its newest upload if it is from the Hub, or registered under another name."""
        if name is not None:
            return self._register_local(entry.path, name)
        model = self.library.model_from_entry(entry)
        if model.cached is None:
            return model
        reference = ModelReference(model.cached.repo_id, file=model.cached.names[0])
        pulled = self.find_or_pull(reference)
        return self.library.register(pulled.path, self.digest(pulled.path).sha256, entry.name, "hub")

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
        if plan.spec and not plan.chosen.installed:
            self._show_notes(plan.spec)
        warning = plan.available.warning
        if warning and not plan.chosen.installed and not self.confirm(f"{warning}. Pull it anyway?", False):
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
        if not plan.chosen.installed:
            self.planner.header(listing, variant)
        self.download(listing).fetch(files)
        pulled = self._stored(listing, variant)
        for model in library.models():
            if model.cached and model.path == pulled.path:
                return model
        return pulled

    def _stored(self, listing: Listing, variant: Variant) -> InstalledModel:
        """The model that was just stored in the cache; the digests of its files are known from now on."""
        registry, cache = self.library.registry, self.library.cache
        for file in map(listing.file, variant.files):
            stored = listing.place(cache, file).stored
            if registry.known_digest(stored) is None:
                registry.remember_digest(RegistryEntry.of_file(stored, file.digest))
        cached = cache.model_from_files(listing.repo_id, listing.commit, variant)
        return self.library.model_from_cache(cached)

    def with_name(self, model: InstalledModel, name: str | None) -> InstalledModel:
        if name is None or (model.entry and name in (model.entry.name, model.entry.name.partition(":")[0])):
            return model
        sha256 = self.digest(model.path).sha256
        self.library.require_free_name(name, model.spec, sha256)
        return self.library.register(model.path, sha256, name, "hub" if model.cached else "local")

    def _register_local(self, path: Path, name: str | None) -> InstalledModel:
        hashed = self._hash(path)
        name = name_from_stem(hashed.path.stem) if name is None else name
        self.library.require_free_name(name, self.library.catalogue.in_file(path), hashed.sha256, hashed.path)
        return self.library.register(hashed.path, hashed.sha256, name, "local")

    def _register_ollama(self, model: OllamaModel, name: str | None) -> InstalledModel:
        hashed = self._hash(model.path)
        if model.sha256 != hashed.sha256:
            problem = f"{model.reference} is damaged: its SHA-256 does not match its manifest"
            raise PullError(problem, f"pull it again: ollama pull {model.reference.name}")
        if name is not None:
            self.library.require_free_name(name, None, hashed.sha256)
        return self.library.register(hashed.path, hashed.sha256, name or str(model.reference), "ollama")

    def _hash(self, path: Path) -> RegistryEntry:
        local = self.library.model_at(path)
        require_generative(local.path, local.header)
        return self.digest(local.path)


@frozen
class RemoteFiles:
    """The files of a repository by name, which can be read up to their weights, downloaded and deleted again."""

    puller: Puller
    listing: Listing

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

    def discard(self, names: Iterable[str]) -> int:
        """Delete downloaded files, and return the number of freed bytes."""
        places = [self.folder / name for name in names]
        return delete(tuple(filter(exists, places)), self.puller.library.cache.directory)

    def _files(self, names: Iterable[str]) -> tuple[HubFile, ...]:
        return tuple(map(self.listing.file, names))


def _no_builder(problem: str, hint: str) -> ModelNotFound:
    return ModelNotFound(f"{problem} the optional package weights, which is not installed", hint)
