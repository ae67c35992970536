"""The models of a user, and which of them a reference means: registered, in the Hugging Face cache, or at a path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cerebrum_cli.core.declaration import parse_adapter
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, UsageError
from cerebrum_cli.core.files import (
    Paths,
    absolute_path,
    as_path,
    as_reference,
    exists,
    is_directory,
    is_file,
    is_missing,
    looks_like_path,
)
from cerebrum_cli.core.text import did_you_mean, short_name
from cerebrum_cli.library.installed import NANO_NAME, InstalledModel, model_paths
from cerebrum_cli.library.reference import (
    ModelReference,
    OllamaReference,
    Reference,
    is_model_name,
    parse_reference,
    same_quantization,
)
from cerebrum_cli.library.registry import Registry, RegistryEntry, Source

if TYPE_CHECKING:
    from cerebrum_cli.engine.capacity import Capacity
    from cerebrum_cli.library.cache import Cache, CachedModel
    from cerebrum_cli.library.catalogue import Catalogue, ModelSpec
    from cerebrum_cli.library.fit import Availability, FitRequest
    from cerebrum_cli.library.ollama import OllamaModel
    from cerebrum_cli.library.removal import Removal


_PACKAGE = Path(__file__).parents[1]
_INSTALLED_CATALOGUE = _PACKAGE / "models.toml"  # in a checkout it is beside the package
CATALOGUE = _INSTALLED_CATALOGUE if is_file(_INSTALLED_CATALOGUE) else _PACKAGE.parent / "models.toml"


@dataclass
class Library:
    """The catalog, the registry, the Hugging Face cache, this machine's capacity, and the `default` model's name."""

    catalogue_paths: Paths
    registry: Registry
    capacity: Callable[[], Capacity]
    default: Callable[[], str | None] = lambda: None

    @classmethod
    def of_user(
        cls,
        config_directory: Path,
        data_directory: Path,
        capacity: Callable[[], Capacity],
        default: Callable[[], str | None],
    ) -> Library:
        paths = (CATALOGUE, config_directory / "models.toml")
        return cls(paths, Registry(data_directory / "models"), capacity, default)

    @cached_property
    def cache(self) -> Cache:
        from cerebrum_cli.library.cache import Cache, cache_directory

        return Cache(cache_directory())

    @cached_property
    def catalogue(self) -> Catalogue:
        from cerebrum_cli.library.catalogue import Catalogue
        from cerebrum_cli.library.catalogue_file import load_catalogue

        return Catalogue(load_catalogue(self.catalogue_paths))

    def models(self) -> list[InstalledModel]:
        """Installed models: registered ones in order of registration, then those in the cache."""
        registered = [self.model_from_entry(entry) for entry in self.registry.entries()]
        known = {paths for model in registered for paths in (model.paths, model.stored)}
        return registered + [model for model in self._pulled() if known.isdisjoint((model.paths, model.stored))]

    def _pulled(self) -> list[InstalledModel]:
        pulled: dict[str, InstalledModel] = {}
        for cached in self.cache.models():
            model = self.model_from_cache(cached)
            if model.reference in pulled:
                model = replace(model, is_shadowed=True)
            pulled[model.reference] = model
        return [*pulled.values()]

    def model_from_cache(self, cached: CachedModel) -> InstalledModel:
        spec = self.catalogue.in_repository(cached.repo_id, cached.names[:1])
        return InstalledModel(spec.name if spec else cached.repo_id, cached.paths, "hub", cached=cached, spec=spec)

    def resolve(self, text: str | None) -> InstalledModel:
        """The model of a reference, or the default model if None. Raises ModelNotFound."""
        if text is None:
            return self._default_model()
        return self.find(self.parse(text))

    def parse(self, text: str) -> Reference:
        """Parse a reference. Raises ModelNotFound, or UsageError for an invalid URL."""
        try:
            return parse_reference(text, environment("HF_ENDPOINT"))
        except UsageError as error:
            if "://" in text:
                raise
            raise ModelNotFound(error.message, error.hint) from error

    def find(self, reference: Reference) -> InstalledModel:
        if isinstance(reference, Path):
            return self.model_at(reference)
        if entry := self.registry.find(str(reference)):
            registered = self.model_from_entry(entry)
            if registered.missing:
                problem = f"{entry.name}: {registered.missing} no longer exists"
                raise ModelNotFound(problem, f"pull it again, or remove it: cerebrum rm {entry.name}")
            return registered
        if str(reference) == NANO_NAME:
            return InstalledModel.bundled()
        if isinstance(reference, OllamaReference):
            from cerebrum_cli.library.ollama import find_ollama_model

            find_ollama_model(reference)
            raise ModelNotFound(f"{reference} is not registered", f"cerebrum pull {reference}")
        if model := self.best_match(reference, self.models()):
            return model
        if catalogued := self.catalogue.of_card(reference):
            return self.find(catalogued)
        spec = self.catalogue.named(reference.name)
        if reference.is_on_hub or spec:
            raise not_installed(reference, spec)
        raise self._unknown(str(reference))

    def model_at(self, path: Path) -> InstalledModel:
        """The model in a file. Raises ModelNotFound if there is no file, ModelFileError if it is not a model."""
        if is_missing(path):
            raise file_not_found(path)
        resolved = absolute_path(path)
        entry = next((entry for entry in self.registry.entries() if entry.path == resolved), None)
        if entry:
            model = self.model_from_entry(entry)
        else:
            model = InstalledModel(path.stem, model_paths(resolved), spec=self.catalogue.in_file(path))
        _ = model.header
        if model.missing:
            raise ModelNotFound(
                f"{model.missing}: file not found", "put all files of the model in one directory, or download it again"
            )
        return model

    def model_from_entry(self, entry: RegistryEntry) -> InstalledModel:
        spec = self.catalogue.named(entry.name) or self.catalogue.in_file(entry.path)
        cached = self.cache.model_at(entry.path) if entry.source == "hub" else None
        return InstalledModel(entry.name, model_paths(entry.path), entry.source, entry, cached, spec=spec)

    def register(self, path: Path, sha256: str, name: str, source: Source) -> InstalledModel:
        """Register a file. Raises ModelFileError for one that is no model, and ConfigError."""
        entry = RegistryEntry.of_file(path, sha256, name, source)
        model = self.model_from_entry(entry)
        _ = model.header
        self.registry.add(entry)
        return model

    def require_free_name(
        self, name: str, spec: ModelSpec | None, sha256: str | None = None, path: Path | None = None
    ) -> None:
        """Raise UsageError for an invalid name, or one of a catalog model or file other than these.

        A `path` may also be the directory of the file.
        """
        if not is_model_name(name) or looks_like_path(name):
            hint = "use --name with letters, digits, `.`, `_` and `-`, and without .gguf"
            raise UsageError(f"invalid name: {name!r}", hint)
        named = self.catalogue.named(name)
        entry = self.registry.find(name)
        if entry and (entry.sha256 == sha256 or path in (entry.path, entry.path.parent) or is_missing(entry.path)):
            entry = None
        if entry or (named and named is not spec):
            raise UsageError(f"the name {name} belongs to another model", "choose another with --name")

    def identity(self, model: InstalledModel, is_hashed: bool = False) -> str:
        """Unique text for a model's files: the size of each, and its digest if that is known, or its path and time.

        If it `is_hashed`, digests that are not known are computed.
        """
        digest_of = self.registry.digest if is_hashed else self.registry.known_digest
        if model.is_served:
            return model.name
        texts = []
        for path in model.paths:
            digest, stat = digest_of(path), path.stat()
            content = digest.sha256 if digest else f"{path} {stat.st_mtime_ns}"
            texts.append(f"{content} {stat.st_size}")
        return " ".join(texts)

    def with_adapters(self, model: InstalledModel, texts: Sequence[str]) -> InstalledModel:
        """The model with the adapters that `--lora` names; one with scale 0 is only checked.

        Raises UsageError for a missing file, and ModelFileError for one that is no adapter, or does not fit the model.
        """
        if not (texts or model.adapters):
            return model
        adapters = []
        for text in texts:
            from cerebrum_cli.library.adapters import Adapter, adapter_size

            name, scale = parse_adapter(text)
            path = absolute_path(as_path(name))
            if not exists(path):
                raise UsageError(f"adapter {short_name(path)} does not exist", "check the path, or use --lora none")
            size = adapter_size(path, model.header.architecture)
            adapters.append(Adapter(path, scale, self.registry.digest(path).sha256, size))
        applied = tuple(adapter for adapter in adapters if adapter.scale)
        if applied != model.adapters:
            return replace(model, adapters=applied)
        return model

    def models_of_ollama(self) -> tuple[list[OllamaModel], list[ModelNotFound]]:
        """Ollama's models, and what is wrong with its directories."""
        from cerebrum_cli.library.ollama import ollama_models, unreadable_directories

        return list(ollama_models()), unreadable_directories()

    def is_default(self, model: InstalledModel) -> bool:
        with suppress(CerebrumError):
            return self.resolve(None).reference == model.reference
        return False

    def _unknown(self, text: str) -> ModelNotFound:
        names = {NANO_NAME}
        names.update(model.name for model in self.models())
        names.update(spec.name for spec in self.catalogue.specs)
        return unknown_model(text, sorted(names))

    def _default_model(self) -> InstalledModel:
        default = self.default()
        if default is None:
            raise no_default(next((model.reference for model in self.models() if model.is_usable), None))
        return self.resolve(default)

    def _matches(self, reference: ModelReference, model: InstalledModel) -> bool:
        wanted, cached = reference.quantization, model.cached
        if model.missing or (wanted and not same_quantization(wanted, model.type_name)):
            return False
        if model.is_converted and model.converted_from["source"].lower() == reference.name.lower():
            repo_id, commit = reference.name, model.converted_from.get("commit")
        elif not reference.is_on_hub:
            return model.name == reference.name or bool(model.spec and model.spec.has_name(reference.name))
        elif cached and cached.repo_id.lower() == reference.name.lower() and reference.file in (None, *cached.names):
            repo_id, commit = cached.repo_id, cached.commit
        else:
            return False
        return reference.revision is None or self.cache.commit(repo_id, reference.revision) == commit

    def best_match(self, reference: Reference, models: Iterable[InstalledModel]) -> InstalledModel | None:
        """The model of a reference: of several quantizations the default, else the recommended one."""
        if not isinstance(reference, ModelReference):
            return None
        matching = [model for model in models if self._matches(reference, model)]
        usable = [model for model in matching if model.is_usable] or matching[:1]
        for model in usable:
            if self.default() in model.references:
                return model
        if len(usable) <= 1:
            return usable[0] if usable else None
        first_by_name = {model.type_name: model for model in reversed(usable)}
        available = self.fit_request(None).assess_installed([usable[0], *first_by_name.values()])
        return first_by_name[available.chosen.quantization]

    def fit_request(self, context: int | None, quantization: str | None = None) -> FitRequest:
        from cerebrum_cli.library.fit import FitRequest

        return FitRequest(context, quantization, self.capacity())

    def catalogue_quantizations(self, reference: Reference, context: int | None) -> Availability | None:
        """The quantizations of a catalog model, without the network; None if none are known."""
        if not isinstance(reference, ModelReference) or not (spec := self.catalogue.named(reference.name)):
            return None
        return self.fit_request(context, reference.quantization).assess_spec(spec, self.models())

    def quantizations(self, model: InstalledModel, context: int | None) -> Availability | None:
        """All quantizations of an installed model, without the network; None if none are known."""
        request = self.fit_request(context, model.type_name)
        others = [installed for installed in self.models() if installed.path != model.path]
        if model.spec:
            return request.assess_spec(model.spec, [*others, model])
        if model.cached is None:
            return request.assess_installed([model])
        uploads = [other for other in others if other.cached and other.name == model.name and other.is_usable]
        return request.assess_installed([*uploads, model])

    def removal(self, text: str) -> Removal:
        """The removal of the model that a reference means. Raises ModelNotFound, UsageError."""
        from cerebrum_cli.library.removal import Removal

        model = self._find_removable(self.parse(text))
        return Removal(self.registry, self.cache, model)

    def _find_removable(self, reference: Reference) -> InstalledModel:
        if entry := self.registry.find(str(reference)):
            return self.model_from_entry(entry)
        cached = [model for model in self.models() if not model.entry]
        if isinstance(reference, ModelReference):
            names = sorted({model.reference for model in cached if self._matches(reference, model)})
            if len(names) > 1:
                raise UsageError(f"{reference} names {len(names)} installed models", f"name one: {', '.join(names)}")
        if found := self.best_match(reference, cached):
            return found
        try:
            model = self.find(reference)
        except ModelNotFound as error:
            error.hint = "list installed models with cerebrum list"
            raise
        if model.source == "bundled":
            hint = "cerebrum list shows which models can be deleted"
            raise UsageError(f"{model.name} is part of cerebrum and cannot be deleted", hint)
        if model.is_unregistered:
            hint = "delete the file yourself; cerebrum list shows what rm can remove"
            raise ModelNotFound(f"{model.path} is not registered", hint)
        return model


def not_installed(reference: ModelReference, spec: ModelSpec | None = None) -> ModelNotFound:
    if spec and not spec.is_obtainable:
        return ModelNotFound(f"{spec.name} is not installed and cannot be downloaded", spec.notes)
    return ModelNotFound(
        f"{reference} is not downloaded", f"cerebrum pull {reference}{_file_hint(str(reference))}", str(reference)
    )


def unknown_model(text: str, names: Sequence[str]) -> ModelNotFound:
    """The error for a reference that means none of the models with these names."""
    name = text.partition(":")[0]
    similar = did_you_mean(name, names, 3, 0.5)
    problem = f"unknown model {text!r}"
    if ":" in text and not similar:
        pull = f"cerebrum pull ollama:{text}; or pull from the Hub: cerebrum pull OWNER/REPO"
        return ModelNotFound(problem, f"if Ollama has it, run {pull}")
    search = f"to find others: cerebrum search {quote(name)}, then cerebrum pull OWNER/REPO"
    known = similar or "see cerebrum list --available; "
    return ModelNotFound(problem, f"{known}{search}{_file_hint(text)}")


def file_not_found(path: Path) -> ModelNotFound:
    """The error for a path to nothing, or to a folder with a quantization behind it."""
    name, colon, type = str(path).rpartition(":")
    folder = Path(name)
    if colon and is_directory(folder):
        hint = f"cerebrum pull {quote(as_reference(folder))} --type {quote(type)}"
        return ModelNotFound(f"{path}: file not found; {folder} is a folder: give the type with --type", hint)
    return ModelNotFound(
        f"{short_name(path)}: file not found", "check the path, or list installed models with cerebrum list"
    )


def no_default(installed: str | None) -> ModelNotFound:
    """The error where no model is given; one may be installed, by another tool, so not chosen by the user."""
    if installed:
        hint = f"add -m {installed}, or set the default: cerebrum pull --default {installed}"
        return ModelNotFound("no model given, and no default model is set", hint)
    return ModelNotFound(
        "no model is installed",
        "cerebrum pull  (choose one that fits this machine)  or  cerebrum pull starter  (98 MB, to try it out)",
        pullable="starter",
    )


def _file_hint(text: str) -> str:
    """Hint for referring to the file or folder of this name, if there is one: a name never means a file."""
    if exists(Path(text)):
        return f"; for a file or folder of this name, use ./{text}"
    return ""
