"""Installed models, and where each comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.declaration import LORA
from cerebrum_cli.core.errors import CerebrumError, ModelFileError
from cerebrum_cli.core.files import Paths
from cerebrum_cli.core.metadata_keys import CONVERTED, MERGE_FORMAT, MERGE_SOURCES
from cerebrum_cli.core.paths import is_missing
from cerebrum_cli.core.settings import EMBEDDED, Layer, SourcedLayer
from cerebrum_cli.core.text import short_digest
from cerebrum_cli.formats.choice import FORMAT_NAMES
from cerebrum_cli.gguf.header import Header, parts_sizes, read_header, require_generative
from cerebrum_cli.gguf.sizes import ModelSizes
from cerebrum_cli.library.origins import LOCAL_FILE, Bundled, Folder, LocalFile, Origin, Pulled, Registered, Served
from cerebrum_cli.library.recommended import recommended_sampling
from cerebrum_cli.library.reference import (
    ModelReference,
    parts_of,
)
from cerebrum_cli.library.registry import RegistryEntry

if TYPE_CHECKING:
    from cerebrum_cli.library.adapters import Adapter
    from cerebrum_cli.library.cache import CachedModel
    from cerebrum_cli.library.catalogue import ModelSpec


_PACKAGE = Path(__file__).parents[1]
NANO = _PACKAGE / "data" / "nano.gguf"  # the bundled model
NANO_NAME = "nano"


@dataclass(frozen=True)
class InstalledModel:
    """An installed model: its files in order, where it comes from, and its catalog entry.

    `adapters` are applied when it is loaded.
    """

    name: str
    paths: Paths
    origin: Origin = LOCAL_FILE
    spec: ModelSpec | None = None
    adapters: tuple[Adapter, ...] = ()

    @property
    def path(self) -> Path:
        return self.paths[0]

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    @cached_property
    def header(self) -> Header:
        """Header of the file. Raises ModelFileError if it is not a complete GGUF file."""
        return read_header(self.path)

    @cached_property
    def sizes(self) -> ModelSizes:
        sizes = self.header.sizes if len(self.paths) == 1 else parts_sizes(self.paths)
        for adapter in self.adapters:
            sizes = replace(sizes, input_bytes=sizes.input_bytes + adapter.size)
        return sizes

    @property
    def adapter_names(self) -> list[str]:
        return [str(adapter) for adapter in self.adapters]

    @property
    def adapter_params(self) -> dict[str, list[str]]:
        return {LORA: self.adapter_names} if self.adapters else {}

    @property
    def adapter_identity(self) -> str | None:
        return ", ".join(sorted(adapter.identity for adapter in self.adapters)) or None

    @cached_property
    def vocabulary(self) -> str | None:
        """Digest in hexadecimal of its vocabulary; None if the file cannot be read any more.

        It has 16 bytes, and covers those of the vocabulary in the file, a few megabytes: a millisecond for 49,000
        tokens.
        """
        start, end = self.header.vocabulary
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                return short_digest(file.read(end - start))
        except OSError:
            return None

    @property
    def missing(self) -> Path | None:
        """A file of the model that certainly does not exist."""
        return next(filter(is_missing, self.paths), None)

    @cached_property
    def refusal(self) -> CerebrumError | None:
        """Why it cannot answer a prompt, as far as its files show; None if it can."""
        if self.missing:
            hint = f"pull it again, or remove it: cerebrum rm {self.reference}"
            return ModelFileError(self.missing, "file not found", hint)
        try:
            _ = self.sizes, self.size
            require_generative(self.path, self.header)
        except ModelFileError as error:
            return error
        except OSError as error:
            return ModelFileError(self.path, error.strerror or str(error), "check the file, or pull the model again")
        return None

    @property
    def is_usable(self) -> bool:
        return self.refusal is None

    @property
    def is_served(self) -> bool:
        return isinstance(self.origin, Served)

    @property
    def is_shadowed(self) -> bool:
        return isinstance(self.origin, Pulled) and self.origin.is_shadowed

    @property
    def entry(self) -> RegistryEntry | None:
        return self.origin.entry if isinstance(self.origin, Registered) else None

    @property
    def cached(self) -> CachedModel | None:
        return self.origin.cached if isinstance(self.origin, Registered | Pulled) else None

    @property
    def source(self) -> str:
        """What `list --json` has as its source."""
        match self.origin:
            case Registered(entry):
                return entry.source
            case Pulled():
                return "hub"
        return "local"

    @property
    def is_verified(self) -> bool:
        """Whether its digest was compared with a published one, or we wrote it ourselves; unknown of several parts."""
        match self.origin:
            case Bundled():
                return True
            case Registered(entry):
                return entry.source not in ("local", "ollama") and len(self.paths) == 1 and entry.is_current
        return False

    def text_of(self, key: str) -> str:
        """The text of a key of the header; empty without it, and for any other value."""
        value = self.header.metadata.get(key)
        if isinstance(value, str):
            return value
        return ""

    @property
    def merged_from(self) -> tuple[str, ...]:
        return tuple(self.text_of(MERGE_SOURCES).splitlines())

    @property
    def converted_from(self) -> dict[str, str]:
        """The `source` of its weights (a repository, with a `commit`, or a folder), and digests of what was read.

        `sha256` is that of the shards, `configuration` that of other files.
        """
        keys = [key for key in self.header.metadata if key.startswith(CONVERTED)]
        return {key.removeprefix(CONVERTED): self.text_of(key) for key in keys}

    @property
    def is_converted(self) -> bool:
        """Whether this program converted the weights of another format to this file."""
        return self.source == "converted" and self.is_usable

    @property
    def display_name(self) -> str:
        return self.quantization or self.path.stem

    @property
    def usage_key(self) -> str:
        """Name of its usage record, which stays the same in new commits of its repository."""
        name = f"{self.cached.repo_id}/{self.cached.names[0]}" if self.cached else str(self.path)
        return short_digest(os.fsencode(name))

    @property
    def quantization(self) -> str | None:
        return self.cached.quantization if self.cached else self.header.quantization

    @property
    def reference(self) -> str:
        match self.origin:
            case LocalFile():
                return str(self.path)
            case Pulled(cached, is_shadowed=True):
                return str(ModelReference(cached.repo_id, file=cached.names[0], revision=cached.commit))
            case Pulled(cached):
                return str(ModelReference(self.name, cached.quantization))
        return self.name

    @property
    def label(self) -> str:
        return self.name if self.origin == LocalFile() else self.reference

    @property
    def public_name(self) -> str:
        """Its name for a file that may be shared: without local directories."""
        return self.path.name if self.origin == LocalFile() else self.reference

    @property
    def references(self) -> set[str]:
        if self.cached is None:
            return {self.reference}
        name = self.spec.name if self.spec else self.cached.repo_id
        return {self.reference, str(ModelReference(name, self.cached.quantization))}

    @property
    def names(self) -> tuple[str, ...]:
        return (self.label, *sorted(self.references), *([self.spec.name] if self.spec else []))

    @property
    def known_format(self) -> str | None:
        if self.spec and self.spec.format:
            return self.spec.format
        match self.origin:
            case Bundled():
                return "cerebrum"
            case Folder():
                return None
        merged = self.text_of(MERGE_FORMAT)
        return merged if merged != EMBEDDED and merged in FORMAT_NAMES else None

    @property
    def assumed_format(self) -> str | None:
        """A guess in its catalog entry, if nothing else says what its format is."""
        if self.spec is None or self.known_format or self.header.chat_template:
            return None
        return self.spec.assumed_format

    @property
    def default_format(self) -> str | None:
        return self.known_format or self.assumed_format or (EMBEDDED if self.header.chat_template else None)

    @property
    def recommended(self) -> Layer:
        """Settings that its file recommends, and over them those of its row in the catalog. Raises ModelFileError."""
        of_file = recommended_sampling(self.header)
        return SourcedLayer(of_file, self.spec.recommended) if self.spec else of_file

    @property
    def trained_context(self) -> int:
        return self.header.context_length or (self.spec and self.spec.context_size) or 2048


def bundled_model() -> InstalledModel:
    return InstalledModel(NANO_NAME, (NANO,), Bundled())


def served_model(name: str) -> InstalledModel:
    """A model that only a server has."""
    return InstalledModel(name, (NANO,), Served())


def folder_model(name: str, folder: Path, spec: ModelSpec | None = None) -> InstalledModel:
    """Weights in a folder with safetensors, which can be merged."""
    return InstalledModel(name, (folder,), Folder(), spec)


def model_paths(path: Path) -> Paths:
    """All files of the model whose first file is `path`. Raises ModelFileError for another part of it."""
    names = parts_of(path.name)
    if names[0] != path.name:
        raise ModelFileError(path, "is not the first part of its model", f"use {path.parent / names[0]}")
    return tuple(path.parent / name for name in names)
