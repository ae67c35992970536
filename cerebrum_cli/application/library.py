"""Which model a name means, where its file is, and how it comes here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

from cerebrum_cli.catalogue.header import Header, read_header
from cerebrum_cli.catalogue.registry import ModelFile, Registry, Source, sha256_of
from cerebrum_cli.catalogue.spec import MODEL_NAME, ModelSpec, load_catalogue
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.ground.errors import ModelNotFound, NoModel, PullError, UsageError

Progress = Callable[[str, int, int], None]
"""Told the stage (`download`, `extract`, `verify`), bytes done and bytes in all."""


@dataclass(frozen=True)
class Model:
    """A model file on this machine; `spec` is its row of the catalogue, `file` its entry in the registry, if any."""

    name: str
    path: Path
    spec: ModelSpec | None = None
    file: ModelFile | None = None

    @cached_property
    def header(self) -> Header:
        """What the file says of itself; ModelFileError if it is no whole GGUF file."""
        return read_header(self.path)

    @property
    def known_format(self) -> str | None:
        """The prompt format the catalogue gives this model, if it does."""
        return self.spec.format if self.spec else None

    @property
    def usual_format(self) -> str | None:
        """The format this model is asked in without --format: the catalogue's, else its embedded template."""
        return self.known_format or (EMBEDDED if self.header.chat_template else None)

    @property
    def trained_context(self) -> int:
        """Tokens of context the model was trained with; what the file does not say, the catalogue may."""
        return self.header.context_length or (self.spec and self.spec.context_size) or 2048


@dataclass(slots=True)
class Library:
    """The catalogue, the registry of what is here, and the directory pulled files go to."""

    catalogue_paths: tuple[Path, ...]
    directory: Path
    _specs: tuple[ModelSpec, ...] | None = field(default=None, init=False)

    @property
    def registry(self) -> Registry:
        """The models that are here."""
        return Registry(self.directory)

    @property
    def specs(self) -> tuple[ModelSpec, ...]:
        """The rows of the catalogue."""
        if self._specs is None:
            self._specs = load_catalogue(self.catalogue_paths)
        return self._specs

    def models(self) -> list[Model]:
        """Return the models that are here, in the order they came."""
        return [self._registered(entry) for entry in self.registry.entries()]

    def resolve(self, reference: str | None) -> Model:
        """Return the model a reference names: a name, or a path; without one the default. ModelNotFound if none."""
        if reference is None:
            default = self.registry.default
            if default is None:
                raise NoModel
            reference = default
        if entry := self.registry.find(reference):
            if is_missing(entry.path):
                raise self._gone(entry)
            return self._registered(entry)
        path = as_path(reference)
        if is_file(path) or looks_like_path(reference):
            return self._local(path)
        for model in self.models():
            if model.spec and model.spec.name == reference and not is_missing(model.path):
                return model
        if self._spec(reference) is None and is_directory(path):
            return self._local(path)  # whose header cannot be read, as the error says
        raise self._missing(reference)

    def pull(self, reference: str, name: str | None, progress: Progress, offline: bool = False) -> Model:
        """Bring a model here and remember it: a known one from its source, a file by where it lies.

        Offline only what is here already can be pulled; PullError for the rest.
        """
        path = as_path(reference)
        spec = self._spec(reference)
        if spec is None and (is_file(path) or looks_like_path(reference)):
            # The directory's true name, but the file's own: in the Hugging Face cache that is a link to a digest.
            return self._adopt(path.parent.resolve() / path.name, name, progress)
        if spec is None:
            return self.resolve(reference)
        if offline:
            return self._already_here(spec)
        if spec.package is not None:
            self._claim(spec.name if name is None else name, lambda claimed: claimed is spec, spec.package.sha256)
            from cerebrum_cli.catalogue.package import fetch

            return self._remember(
                name or spec.name, fetch(spec.package, self.directory, progress), spec.package.sha256, "package"
            )
        raise _cannot_download(spec)

    def download_size(self, name: str) -> int | None:
        """Return the bytes of a model that ships in a package; None for others."""
        spec = self._spec(name)
        return spec.package.size if spec and spec.package else None

    def digest(self, model: Model, progress: Progress) -> str:
        """Return the file's sha256: as remembered while size and time are the same, else computed and remembered."""
        stat = model.path.stat()
        entry = model.file
        if entry and (entry.size, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return entry.sha256
        digest = verified(model.path, progress)
        if entry:
            self.registry.add(replace(entry, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=digest))
        return digest

    def _already_here(self, spec: ModelSpec) -> Model:
        try:
            return self.resolve(spec.name)
        except ModelNotFound as error:
            raise PullError(f"{error.what}, and --offline forbids a download", "pull it without --offline") from error

    def _adopt(self, path: Path, name: str | None, progress: Progress) -> Model:
        local = self._local(path)
        digest = verified(path, progress)
        for entry in self.registry.entries():
            ours = entry.source == "package" and not is_missing(entry.path)
            if ours and entry.sha256 == digest and name in (None, entry.name):
                return self._registered(entry)  # the copy that was pulled outlives the one the user points at
        packaged = next((spec for spec in self.specs if spec.package and spec.package.sha256 == digest), None)
        if name is None:
            name = packaged.name if packaged else as_name(local.name)

        def is_that(spec: ModelSpec) -> bool:
            return spec.package.sha256 == digest if spec.package else spec.matches(path.name)

        self._claim(name, is_that, digest)
        return self._remember(name, path, digest, "local")

    def _claim(self, name: str, is_that: Callable[[ModelSpec], bool], digest: str) -> None:
        """Raise UsageError unless a model may be called this: no other one is, here or in the catalogue."""
        if not MODEL_NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name", "names are made of letters, digits, `.`, `_` and `-`: use --name")
        known, spec = self.registry.find(name), self._spec(name)
        taken = known and known.sha256 != digest and not is_missing(known.path)
        if taken or (spec and not is_that(spec)):
            raise UsageError(f"the name {name} is taken by another model", "choose one with --name")

    def _remember(self, name: str, path: Path, sha256: str, source: Source) -> Model:
        stat = path.stat()
        entry = ModelFile(name, path, stat.st_size, sha256, stat.st_mtime_ns, source)
        model = self._registered(entry)
        _ = model.header  # a file that cannot be read is not remembered
        self.registry.add(entry)
        return model

    def _registered(self, entry: ModelFile) -> Model:
        return Model(entry.name, entry.path, self._spec(entry.name) or self._spec_of_file(entry.path), entry)

    def _local(self, path: Path) -> Model:
        if is_missing(path):
            raise ModelNotFound(f"{path}: there is no such file", "check the path; cerebrum list shows what is here")
        whole = path.parent.resolve() / path.name
        for entry in self.registry.entries():
            if entry.path == whole:
                return self._registered(entry)
        model = Model(path.stem, whole, self._spec_of_file(path))
        _ = model.header
        return model

    def _spec(self, name: str) -> ModelSpec | None:
        return next((spec for spec in self.specs if spec.name == name), None)

    def _spec_of_file(self, path: Path) -> ModelSpec | None:
        return next((spec for spec in self.specs if spec.matches(path.name)), None)

    def _gone(self, entry: ModelFile) -> ModelNotFound:
        what = f"{entry.name}: its file {entry.path} is gone"
        spec = self._registered(entry).spec
        if spec and spec.package:
            named = "" if entry.name == spec.name else f" --name {entry.name}"
            return ModelNotFound(what, f"cerebrum pull {spec.name}{named}", offer=None if named else spec.name)
        return ModelNotFound(what, f"cerebrum pull PATH --name {entry.name}  (PATH is where it is now)")

    def _missing(self, reference: str) -> ModelNotFound:
        if spec := self._spec(reference):
            offer = reference if spec.package else None
            return ModelNotFound(f"{reference} is not downloaded", f"cerebrum pull {reference}", offer=offer)
        names = sorted({entry.name for entry in self.registry.entries()} | {spec.name for spec in self.specs})
        near = get_close_matches(reference, names, n=3, cutoff=0.5)
        like = f"did you mean {' or '.join(near)}? " if near else ""
        return ModelNotFound(f"unknown model {reference!r}", f"{like}cerebrum list --available shows all", near)


def verified(path: Path, progress: Progress) -> str:
    """Return the sha256 of a file, telling how far it is."""
    return sha256_of(path, lambda done, total: progress("verify", done, total))


def as_name(stem: str) -> str:
    """Return a file name's stem as the name of a model, which has no spaces and no colons."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")


def as_path(reference: str) -> Path:
    """Return a reference as a path, `~` replaced where it stands for a home directory."""
    try:
        return Path(reference).expanduser()
    except RuntimeError:  # nobody has that name
        return Path(reference)


def is_file(path: Path) -> bool:
    """Return whether a path surely names a file."""
    try:
        return path.is_file()
    except OSError:  # a directory that cannot be entered, a name that is too long
        return False


def is_directory(path: Path) -> bool:
    """Return whether a path surely names a directory."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_missing(path: Path) -> bool:
    """Return whether a path surely names nothing; what cannot be looked at may be there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def looks_like_path(reference: str) -> bool:
    """Return whether a reference can only be a path: it ends in .gguf, or begins as paths do."""
    return reference.lower().endswith(".gguf") or reference.startswith(("/", "./", "../", "~"))


def _cannot_download(spec: ModelSpec) -> PullError:
    if spec.repo_id is None:
        return PullError(
            f"no GGUF file of {spec.system} is published: {spec.notes}", "cerebrum pull PATH registers one you made"
        )
    wanted = "Q4_K_M" if any(quantization.name == "Q4_K_M" for quantization in spec.quantizations) else "QUANT"
    file = (spec.file or "FILE").format(quant=wanted)
    return PullError(
        f"{spec.name}: downloads from the Hugging Face Hub are not built in yet",
        f"hf download {spec.repo_id} {file} --local-dir . && cerebrum pull ./{file}",
    )
