"""Find the model that a reference means: in the registry, in the Hugging Face cache, or at a path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversion import parse_adapter
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import ModelFileError, ModelNotFound, NoModel, PullError, UsageError
from cerebrum_cli.core.files import exists, is_file
from cerebrum_cli.core.text import did_you_mean
from cerebrum_cli.models.catalogue import ModelSpec
from cerebrum_cli.models.model import InstalledModel, absolute_path, as_path, is_missing, model_paths
from cerebrum_cli.models.reference import (
    STORES,
    HubReference,
    NameReference,
    PathReference,
    Reference,
    names_stored,
    parse_reference,
)
from cerebrum_cli.models.registry import Digest, Registry, RegistryEntry, hash_file
from cerebrum_cli.models.variants import same_quantization

if TYPE_CHECKING:
    from cerebrum_cli.models.cache import Cache, CachedModel
    from cerebrum_cli.models.fit import Capacity

ADAPTED = " with adapters "  # in an identity, between those of the file and of its adapters
_OLLAMA_TAG = re.compile(r"[\w.-]+:(?:latest|e?\d+(?:\.\d+)?[bm]\b.*)", re.IGNORECASE)

NANO = Path(__file__).parents[1] / "data" / "nano.gguf"  # the bundled model
NANO_SPEC = ModelSpec("nano", "nano", format="cerebrum")

OnProgress = Callable[[int, int], None]  # receives the bytes done and the total


@dataclass
class Library:
    """The catalog, the registry, the Hugging Face cache, and the capacity of this machine."""

    catalogue_paths: tuple[Path, ...]
    registry: Registry
    capacity: Callable[[], Capacity]

    @cached_property
    def cache(self) -> Cache:
        from cerebrum_cli.models.cache import Cache
        from cerebrum_cli.models.hub import cache_directory

        return Cache(cache_directory())

    @property
    def vocabulary_cache(self) -> Cache:
        """Headers of models that are not installed, as sparse files, in the layout of the Hugging Face cache."""
        from cerebrum_cli.models.cache import Cache

        return Cache((self.registry.directory / "vocabularies").resolve())

    @cached_property
    def specs(self) -> tuple[ModelSpec, ...]:
        from cerebrum_cli.models.catalogue_file import load_catalogue

        return load_catalogue(self.catalogue_paths)

    @property
    def merge_directory(self) -> Path:
        return (self.registry.directory / "merged").resolve()  # as the registry has it

    def models(self) -> list[InstalledModel]:
        """Installed models: registered ones in order of registration, then those in the cache."""
        registered = [self.model_from_entry(entry) for entry in self.registry.entries()]
        paths = {model.path for model in registered}
        return registered + [model for model in _marked(self.cached_models()) if model.path not in paths]

    def vocabularies(self) -> list[InstalledModel]:
        models = map(self.model_from_cache, self.vocabulary_cache.models())
        return _marked(replace(model, is_vocabulary=True) for model in models)

    def cached_models(self) -> Iterator[InstalledModel]:
        return map(self.model_from_cache, self.cache.models())

    def model_from_cache(self, cached: CachedModel) -> InstalledModel:
        spec = self.spec_in(cached.repo_id, cached.names[0])
        return InstalledModel(spec.name if spec else cached.repo_id, cached.paths, spec, cached=cached)

    def resolve(self, text: str | None) -> InstalledModel:
        """The model of a reference, or the default model if None. Raises ModelNotFound."""
        return self._default_model() if text is None else self.find(self.parse(text))

    def resolve_vocabulary(self, text: str | None) -> InstalledModel:
        """The installed model, or else its vocabulary file; the default model if None. Raises ModelNotFound."""
        if text is None and (text := self.registry.default) is None:
            hint = "name the model that the server runs: -m MODEL"
            raise ModelNotFound("no model given, and no default model is set", hint)
        return self.find_vocabulary(self.parse(text))

    def find_vocabulary(self, reference: Reference) -> InstalledModel:
        try:
            return self.find(reference)
        except ModelNotFound as error:
            if vocabulary := self.stored_vocabulary(reference):
                return vocabulary
            spec = self.spec_of(reference)
            if error.pullable is None or (spec and (spec.package or spec.recipe)):
                raise
            whole = f"(or the whole model: cerebrum pull {error.pullable})"
            hint = f"cerebrum pull --vocabulary {error.pullable}  {whole}"
            raise ModelNotFound(error.message, hint, error.pullable) from error

    def stored_vocabulary(self, reference: Reference) -> InstalledModel | None:
        """The vocabulary file of a reference, whether or not its model is installed."""
        return self._best_match(reference, self.vocabularies())

    def parse(self, text: str) -> Reference:
        """Parse a reference; registered names come first. Raises ModelNotFound, or UsageError for an invalid URL."""
        if self.registry.find(text):
            return NameReference(text)
        try:
            reference = parse_reference(text, environment("HF_ENDPOINT"))
        except UsageError as error:
            if "://" in text:
                raise
            raise self._unknown(text) from error
        return PathReference(as_path(text)) if isinstance(reference, PathReference) else reference

    def find(self, reference: Reference) -> InstalledModel:
        if isinstance(reference, PathReference):
            return self.model_at(reference.path)
        if entry := self.registry.find(str(reference)):
            registered = self.model_from_entry(entry)
            if is_missing(entry.path):
                raise _file_missing(registered, self.merge_directory)
            return registered
        if str(reference) == NANO_SPEC.name:
            return InstalledModel(NANO_SPEC.name, (NANO,), NANO_SPEC, is_bundled=True)
        if model := self._best_match(reference, self.models()):
            return model
        if isinstance(reference, HubReference):
            self.require_not_refused(reference.repo_id)
            raise _not_installed(reference)
        if names_stored(reference.name):
            return self._registered_from_store(reference.name)
        if spec := self.spec_named(reference.name):
            raise _not_installed(reference, spec)
        raise self._unknown(str(reference))

    def model_at(self, path: Path) -> InstalledModel:
        """The model in a file. Raises ModelNotFound if there is no file, ModelFileError if it is not a model."""
        if is_missing(path):
            raise ModelNotFound(
                f"{path}: file not found", "check the path, or list installed models with cerebrum list"
            )
        target = Path(os.path.realpath(path))
        for model in self.vocabularies() if target.is_relative_to(self.vocabulary_cache.directory) else ():
            if target in map(Path.resolve, model.paths):
                raise ModelFileError(path, "only a vocabulary, without weights", f"cerebrum pull {model.reference}")
        resolved = absolute_path(path)
        if entry := next((entry for entry in self.registry.entries() if entry.path == resolved), None):
            return self.model_from_entry(entry)
        model = InstalledModel(path.stem, model_paths(resolved), self.spec_of_file(path))
        _ = model.header
        return model

    def find_unregistered(self, reference: Reference) -> InstalledModel | None:
        """The model that a reference means among those of the cache that no registered name refers to."""
        return self._best_match(reference, [model for model in self.models() if not model.file])

    def older_uploads(self, model: InstalledModel) -> list[InstalledModel]:
        """Models of the cache that were uploaded under the names of this model's files before."""
        shadowed = [older for older in self.models() if older.is_shadowed and older.path != model.path]
        return [older for older in shadowed if older.usage_key == model.usage_key]

    def _registered_from_store(self, reference: str) -> InstalledModel:
        from cerebrum_cli.models.stores import find_in_store

        stored = find_in_store(reference)
        if (entry := self.registry.find(stored.reference)) and entry.path == absolute_path(stored.path):
            return self.model_from_entry(entry)
        raise ModelNotFound(f"{reference} is not registered", f"cerebrum pull {reference}")

    def model_from_entry(self, entry: RegistryEntry) -> InstalledModel:
        spec = self.spec_named(entry.name) or self.spec_of_file(entry.path)
        cached = self.cache.model_at(entry.path) if entry.source == "hub" else None
        return InstalledModel(entry.name, model_paths(entry.path), spec, entry, cached)

    def spec_of(self, reference: Reference) -> ModelSpec | None:
        """The catalog model that a name means; None for other references."""
        return self.spec_named(reference.name) if isinstance(reference, NameReference) else None

    def spec_named(self, name: str) -> ModelSpec | None:
        matches = (spec for spec in self.specs if spec.has_name(name))
        return min(matches, key=lambda spec: spec.name.lower() != name.lower(), default=None)

    def spec_in(self, repo_id: str, file: str) -> ModelSpec | None:
        name, repo_id = file.rpartition("/")[2], repo_id.lower()
        pairs = ((spec, source) for spec in self.specs for source in spec.sources)
        rows = (spec for spec, source in pairs if source.repo_id.lower() == repo_id and source.matches(name))
        return next(rows, None)

    def require_not_refused(self, repo_id: str) -> None:
        """Raise PullError for a repository that the catalog lists as broken; the hint names a working one."""
        for spec in self.specs:
            for refusal in spec.refuse:
                if refusal.repo_id.lower() == repo_id.lower():
                    source = f"  (from {spec.repo_id})" if spec.repo_id else ""
                    raise PullError(f"{refusal.repo_id}: {refusal.reason}", f"cerebrum pull {spec.name}{source}")

    def identity(self, model: InstalledModel) -> str:
        """Unique text for what a model computes: its file, and its adapters."""
        file = self.file_identity(model)
        return f"{file}{ADAPTED}{model.adapter_identity}" if model.adapters else file

    def file_identity(self, model: InstalledModel) -> str:
        """Unique text for a model's files: for each, its size, and its digest if known without reading it.

        Otherwise its path and time take the place of the digest.
        """
        if model.is_served:
            return model.name
        identities = []
        for part, path in enumerate(model.paths):
            stat, digest = path.stat(), self._known_digest(model, part)
            content = digest.sha256 if digest else f"{path} {stat.st_mtime_ns}"
            identities.append(f"{content} {stat.st_size}")
        return " ".join(identities)

    def hashed_identity(self, model: InstalledModel) -> str:
        """`file_identity` with the digests of all files, which are computed unless they are known."""
        digests = (self.digest(model, lambda *_: None, part) for part in range(len(model.paths)))
        return " ".join(f"{digest.sha256} {digest.size}" for digest in digests)

    def digest(self, model: InstalledModel, on_progress: OnProgress, part: int = 0) -> Digest:
        """Digest of one of a model's files: the name of its blob, else stored, else computed."""
        return self._known_digest(model, part) or self.remembered_digest(model.paths[part], on_progress)

    def _known_digest(self, model: InstalledModel, part: int) -> Digest | None:
        """Digest of one of a model's files, if that need not be read."""
        if model.cached and (sha256 := model.cached.digests[part]):
            return Digest.known(model.paths[part], sha256)
        return self.registry.digest(model.paths[part])

    def remembered_digest(self, path: Path, on_progress: OnProgress) -> Digest:
        """Digest of a file, stored until its size or time changes."""
        if known := self.registry.digest(path):
            return known
        digest = hash_file(path, on_progress)
        self.registry.remember_digest(digest)
        return digest

    def with_adapters(self, model: InstalledModel, texts: Iterable[str]) -> InstalledModel:
        """The model with the adapters that `--lora` names; one with scale 0 is only checked.

        Raises UsageError for a missing file, and ModelFileError for one that is no adapter, or does not fit the model.
        """
        adapters = []
        for text in texts:
            from cerebrum_cli.models.adapters import Adapter, adapter_sizes

            name, scale = parse_adapter(text)
            path = absolute_path(as_path(name))
            if not exists(path):
                raise UsageError(f"adapter {path} does not exist", "check the path, or use --lora none")
            sizes = adapter_sizes(path, model.paths)
            adapters.append(Adapter(path, scale, self.remembered_digest(path, lambda *_: None).sha256, sizes))
        applied = tuple(adapter for adapter in adapters if adapter.scale)
        return replace(model, adapters=applied) if applied != model.adapters else model

    def is_managed(self, model: InstalledModel) -> bool:
        """Whether this program installed a model, rather than another tool: it has a name or a stored digest."""
        return bool(model.file or (model.cached and self.registry.digest(model.cached.blobs[0])))

    def is_default(self, model: InstalledModel) -> bool:
        return self.registry.default in model.references

    def similar_names(self, text: str) -> str:
        """Beginning of a hint with the names of models most like that of a reference; empty without any."""
        names = {NANO_SPEC.name, *(model.name for model in self.models()), *(spec.name for spec in self.specs)}
        return did_you_mean(text.partition(":")[0], sorted(names), 3, 0.5)

    def _unknown(self, text: str) -> ModelNotFound:
        similar = self.similar_names(text)
        if _OLLAMA_TAG.fullmatch(text) and not similar:
            hint = f"if Ollama has it, run cerebrum pull ollama:{text}; or pull from the Hub: cerebrum pull OWNER/REPO"
            return ModelNotFound(f"unknown model {text!r}", hint)
        if "gguf" in text.lower() and not similar:
            hint = f"if it is on the Hub, name its owner: cerebrum pull OWNER/{text}"
        else:
            suggestion = similar or "see cerebrum list --available; "
            searched = quote(text.partition(":")[0])
            hint = f"{suggestion}to find others: cerebrum search {searched}, then cerebrum pull OWNER/REPO"
        return ModelNotFound(f"unknown model {text!r}", f"{hint}{_file_hint(text)}")

    def _default_model(self) -> InstalledModel:
        default = self.registry.default
        if default is not None:
            return self.resolve(default)
        if model := next(iter(self.models()), None):  # installed by another tool, so not chosen by the user
            hint = f"add -m {model.reference}, or set the default: cerebrum pull --default {model.reference}"
            raise ModelNotFound("no model given, and no default model is set", hint)
        raise NoModel

    def _matches(self, reference: Reference, model: InstalledModel) -> bool:
        if isinstance(reference, PathReference) or is_missing(model.path):
            return False
        if isinstance(reference, NameReference):
            name_matches = model.name == reference.name or (model.spec and model.spec.has_name(reference.name))
        else:
            cached, revision = model.cached, reference.revision
            cache = self.vocabulary_cache if model.is_vocabulary else self.cache
            name_matches = (
                cached is not None
                and cached.repo_id.lower() == reference.repo_id.lower()
                and reference.file in (None, *cached.names)
                and (revision is None or cache.commit(cached.repo_id, revision) in (None, cached.commit))
            )
        quantization = reference.quantization
        return bool(name_matches) and (
            quantization is None or same_quantization(quantization, model.quantization or "")
        )

    def _best_match(self, reference: Reference, models: Iterable[InstalledModel]) -> InstalledModel | None:
        """The model of a reference: of several quantizations the default, else the recommended one."""
        from cerebrum_cli.models.fit import assess_quantizations, planned_context

        matching = [model for model in models if self._matches(reference, model)]
        readable = [model for model in matching if model.is_readable] or matching[:1]
        chosen = next((model for model in readable if self.is_default(model)), None)
        if chosen or len(readable) <= 1:
            return chosen or next(iter(readable), None)
        by_name = {model.display_name: model for model in reversed(readable)}
        context = planned_context(None, readable[0].header.context_length)
        quantizations = [(name, model.size) for name, model in by_name.items()]
        candidates = assess_quantizations(quantizations, (), readable[0].sizes, context, self.capacity())
        return by_name[next(candidate.quantization for candidate in candidates if candidate.recommended)]

    def spec_of_file(self, path: Path) -> ModelSpec | None:
        return next((spec for spec in self.specs if spec.matches(path.name)), None)


def served_model(name: str) -> InstalledModel:
    """A model that only a server has; the bundled model's vocabulary stands in for its own, to handle text."""
    return InstalledModel(name, (NANO,), is_served=True)


def _marked(models: Iterable[InstalledModel]) -> list[InstalledModel]:
    """Models of a cache, marked where an earlier one has the same reference."""
    seen, marked = set[str](), []
    for model in models:
        marked.append(replace(model, is_shadowed=model.reference in seen))
        seen.add(model.reference)
    return marked


def _file_missing(model: InstalledModel, merge_directory: Path) -> ModelNotFound:
    name, spec, cached = model.name, model.spec, model.cached
    problem = f"{name}: its file {model.path} no longer exists{model.remover_note}"
    if model.file and model.file.source in STORES:
        again = name if names_stored(name) else f"{model.file.source}:NAME --name {name}"
        return ModelNotFound(problem, f"cerebrum pull {again}  (once it is back), or cerebrum rm {name}")
    if cached:
        return ModelNotFound(problem, f"cerebrum pull {cached.repo_id}:{cached.quantization} --name {name}")
    if spec and spec.package:
        option = "" if name == spec.name else f" --name {name}"
        return ModelNotFound(problem, f"cerebrum pull {spec.name}{option}", None if option else spec.name)
    if spec and model.path.parent == merge_directory:
        return ModelNotFound(problem, f"cerebrum pull {name}", name)
    return ModelNotFound(problem, f"cerebrum pull PATH --name {name}  (PATH: where the file is now)")


def _not_installed(reference: NameReference | HubReference, spec: ModelSpec | None = None) -> ModelNotFound:
    if spec and not (spec.package or spec.sources or spec.recipe):
        return ModelNotFound(f"{spec.name} is not installed and cannot be downloaded", spec.notes)
    if spec and not spec.is_available_in(reference.quantization):
        problem = f"{reference} is not installed, and the catalog lists no such quantization"
        return ModelNotFound(problem, f"list quantizations: cerebrum pull --dry-run {spec.name}")
    hint = f"cerebrum pull {reference}{_file_hint(str(reference))}"
    return ModelNotFound(f"{reference} is not downloaded", hint, str(reference))


def _file_hint(text: str) -> str:
    """Hint for referring to the file of this name, if there is one: a name never means a file."""
    return f"; for a file of this name, use ./{text}" if is_file(Path(text)) else ""
