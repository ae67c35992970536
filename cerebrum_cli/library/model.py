"""An installed model, and checks of paths."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.declaration import LORA, InvalidValue
from cerebrum_cli.core.errors import ModelFileError
from cerebrum_cli.core.files import Paths, expand_user
from cerebrum_cli.core.settings import EMBEDDED, MODEL_FILE, OPTIONS, Layer, SourcedLayer
from cerebrum_cli.formats.choice import FORMAT_NAMES
from cerebrum_cli.gguf.header import Header, parts_sizes, read_header
from cerebrum_cli.gguf.sizes import ModelSizes
from cerebrum_cli.library.reference import STORES, ModelReference, looks_like_path, parts_of

if TYPE_CHECKING:
    from cerebrum_cli.library.adapters import Adapter
    from cerebrum_cli.library.cache import CachedModel
    from cerebrum_cli.library.catalogue import ModelSpec
    from cerebrum_cli.library.registry import RegistryEntry

SAMPLING_KEYS = {  # general.sampling.*, by the settings they recommend; there are others without an equivalent here
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "penalty_repeat": "repeat_penalty",
}
FLOAT_DIGITS = 6  # of a number that the file holds in 32 bits: 0.95 is read as 0.949999988...
# Metadata of a merge: the recipe, the names of its models, and their prompt format.
MERGE_RECIPE, MERGE_SOURCES, MERGE_FORMAT = "cerebrum.merge.recipe", "cerebrum.merge.sources", "cerebrum.format"
CONVERTED = "cerebrum.convert."  # before the keys of `InstalledModel.converted_from`


@dataclass(frozen=True)
class InstalledModel:
    """An installed model: its files in order, its catalog entry, and its registry or cache entry.

    If `is_shadowed`, another model has the same short name, which refers to that one. If `is_vocabulary`, its files
    have their headers only and no weights: it is not installed, but its vocabulary is. `adapters` are applied when it
    is loaded. One that `is_served` is known by name only: a server has it, and the file is that of another. One that
    `is_bundled` is part of this program. One that `is_weights` is a folder with safetensors, which can be merged.
    """

    name: str
    paths: Paths
    spec: ModelSpec | None = None
    file: RegistryEntry | None = None
    cached: CachedModel | None = None
    is_shadowed: bool = False
    is_vocabulary: bool = False
    adapters: tuple[Adapter, ...] = ()
    is_served: bool = False
    is_bundled: bool = False
    is_weights: bool = False

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
        adapters = sum(adapter.size for adapter in self.adapters)
        return replace(sizes, input_bytes=sizes.input_bytes + adapters)

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
                return sha256(file.read(end - start)).hexdigest()[:32]
        except OSError:
            return None

    @property
    def missing(self) -> Path | None:
        """A file of the model that certainly does not exist."""
        return next(filter(is_missing, self.paths), None)

    @cached_property
    def is_usable(self) -> bool:
        """Whether it has all its files, and can answer a prompt as far as its header shows."""
        try:
            return self.header.kind is None and not self.missing
        except ModelFileError:
            return False

    @property
    def is_verified(self) -> bool:
        """Whether its digest was compared with a published one, or we wrote it ourselves; unknown of several parts."""
        file = self.file
        is_whole = len(self.paths) == 1
        is_published = file is not None and file.source not in ("local", *STORES) and is_whole and file.is_current
        return self.is_bundled or is_published

    @property
    def is_unnamed(self) -> bool:
        """Whether only its path refers to it: it is neither registered, nor in the cache, nor bundled."""
        return self.file is None and self.cached is None and not (self.is_bundled or self.is_weights)

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
        return self.file is not None and self.file.source == "converted" and self.is_usable

    @property
    def display_name(self) -> str:
        return self.quantization or self.path.stem

    @property
    def usage_key(self) -> str:
        """Name of its usage record, which stays the same in new commits of its repository."""
        name = f"{self.cached.repo_id}/{self.cached.names[0]}" if self.cached else str(self.path)
        return sha256(os.fsencode(name)).hexdigest()[:32]

    @property
    def quantization(self) -> str | None:
        if self.cached:
            return self.cached.quantization
        return self.header.quantization

    @property
    def reference(self) -> str:
        if self.file or self.is_served or self.is_bundled or self.is_weights:
            return self.name
        if self.cached is None:
            return str(self.path)
        if self.is_shadowed:
            return str(ModelReference(self.cached.repo_id, file=self.cached.names[0], revision=self.cached.commit))
        return str(ModelReference(self.name, self.cached.quantization))

    @property
    def label(self) -> str:
        return self.name if self.is_unnamed else self.reference

    @property
    def references(self) -> set[str]:
        if self.cached is None:
            return {self.reference}
        unnamed = replace(self, file=None, name=self.spec.name if self.spec else self.cached.repo_id)
        return {self.reference, unnamed.reference}

    @property
    def names(self) -> tuple[str, ...]:
        return (self.label, *sorted(self.references), *([self.spec.name] if self.spec else []))

    @property
    def known_format(self) -> str | None:
        if self.spec and self.spec.format:
            return self.spec.format
        if self.is_bundled:
            return "cerebrum"
        if self.is_weights:
            return None
        merged = self.text_of(MERGE_FORMAT)
        if merged != EMBEDDED and merged in FORMAT_NAMES:
            return merged
        return None

    @property
    def default_format(self) -> str | None:
        return self.known_format or (EMBEDDED if self.header.chat_template else None)

    @property
    def recommended(self) -> Layer:
        """Settings that its file recommends, and over them those of its row in the catalog. Raises ModelFileError."""
        of_file = recommended_sampling(self.header)
        if self.spec is None:
            return of_file
        return SourcedLayer(of_file, self.spec.recommended)

    @property
    def trained_context(self) -> int:
        return self.header.context_length or (self.spec and self.spec.context_size) or 2048


def recommended_sampling(header: Header) -> SourcedLayer:
    """The sampling settings that a file recommends; invalid ones are ignored."""
    values = {}
    for key, name in SAMPLING_KEYS.items():
        value: object = header.metadata.get(f"general.sampling.{key}")
        if value is None:
            continue
        if isinstance(value, float):
            value = round(value, FLOAT_DIGITS)
        with suppress(InvalidValue):
            values[name] = OPTIONS[name].convert(value)
    return SourcedLayer(values, origin=MODEL_FILE)


def model_paths(path: Path) -> Paths:
    """All files of the model whose first file is `path`. Raises ModelFileError for another part of it."""
    names = parts_of(path.name)
    if names[0] != path.name:
        raise ModelFileError(path, "is not the first part of its model", f"use {path.parent / names[0]}")
    return tuple(path.parent / name for name in names)


def as_path(reference: str) -> Path:
    return Path(expand_user(reference))


def absolute_reference(reference: str) -> str:
    """A reference that means the same in any directory: of a path, the absolute one."""
    if looks_like_path(reference):
        return str(absolute_path(as_path(reference)))
    return reference


def absolute_path(path: Path) -> Path:
    """Absolute path of a file, with links resolved in its directory only: in the Hub's cache, it links to a blob."""
    return path.parent.resolve() / path.name


def is_missing(path: Path) -> bool:
    """Whether a path certainly does not exist; an inaccessible one might."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False
