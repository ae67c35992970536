"""Installed models, and where each comes from."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cerebrum_cli.core.declaration import LORA, InvalidValue
from cerebrum_cli.core.errors import CerebrumError, ModelFileError
from cerebrum_cli.core.files import Paths, is_missing
from cerebrum_cli.core.metadata_keys import CONVERTED, MERGE_FORMAT, MERGE_SOURCES
from cerebrum_cli.core.settings import EMBEDDED, MODEL_FILE, OPTIONS, Layer, SourcedLayer
from cerebrum_cli.core.text import short_digest
from cerebrum_cli.formats.choice import FORMAT_NAMES
from cerebrum_cli.gguf.header import Header, parts_sizes, read_header, require_generative
from cerebrum_cli.gguf.sizes import ModelSizes
from cerebrum_cli.library.reference import ModelReference, parts_of
from cerebrum_cli.library.registry import RegistryEntry, Source

if TYPE_CHECKING:
    from cerebrum_cli.library.adapters import Adapter
    from cerebrum_cli.library.cache import CachedModel
    from cerebrum_cli.library.catalogue import ModelSpec


_SETTINGS = {  # by keys of general.sampling.*; there are others without an equivalent here
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "penalty_repeat": "repeat_penalty",
}
_FLOAT_DIGITS = 6  # of a number that the file holds in 32 bits: 0.95 is read as 0.949999988...


def recommended_sampling(header: Header) -> SourcedLayer:
    """The sampling settings that a file recommends; invalid ones are ignored."""
    values = {}
    for key, name in _SETTINGS.items():
        value: object = header.metadata.get(f"general.sampling.{key}")
        if value is None:
            continue
        if isinstance(value, float):
            value = round(value, _FLOAT_DIGITS)
        with suppress(InvalidValue):
            values[name] = OPTIONS[name].convert(value)
    return SourcedLayer(values, origin=MODEL_FILE)


_PACKAGE = Path(__file__).parents[1]
NANO = _PACKAGE / "data" / "nano.gguf"  # the bundled model
NANO_NAME = "nano"


@dataclass(frozen=True)
class InstalledModel:
    """An installed model: its files in order, where they come from, its registry entry and its row in the catalog.

    It may be `cached` in the Hugging Face cache; if `is_shadowed`, another one there has the same short name, which
    refers to that one. A model that only a `server` has has the file of the bundled one, whose vocabulary stands in for
    its own; weights to merge have their `folder`. `adapters` are applied when it is loaded.
    """

    name: str
    paths: Paths
    source: Source | Literal["bundled", "server", "folder"] = "local"
    entry: RegistryEntry | None = None
    cached: CachedModel | None = None
    is_shadowed: bool = False
    spec: ModelSpec | None = None
    adapters: tuple[Adapter, ...] = ()

    @classmethod
    def bundled(cls) -> InstalledModel:
        return cls(NANO_NAME, (NANO,), "bundled")

    @classmethod
    def served(cls, name: str) -> InstalledModel:
        """A model that only a server has."""
        return cls(name, (NANO,), "server")

    @classmethod
    def folder(cls, name: str, folder: Path, spec: ModelSpec | None = None) -> InstalledModel:
        """Weights in a folder with safetensors, which can be merged."""
        return cls(name, (folder,), "folder", spec=spec)

    @property
    def path(self) -> Path:
        return self.paths[0]

    @property
    def stored(self) -> Paths:
        """Where its bytes are, which commits of a repository share."""
        return self.cached.blobs if self.cached else self.paths

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
        return self.source == "server"

    @property
    def is_unregistered(self) -> bool:
        """Whether it is a user's file that only its path refers to."""
        return self.source == "local" and self.entry is None

    @property
    def is_verified(self) -> bool:
        """Whether its digest was compared with a published one, or we wrote it ourselves; unknown of several parts."""
        if self.entry is None or self.source in ("local", "ollama") or len(self.paths) > 1:
            return self.source == "bundled"
        return self.entry.is_current

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
    def usage_key(self) -> str:
        """Name of its usage record, which stays the same in new commits of its repository."""
        name = f"{self.cached.repo_id}/{self.cached.names[0]}" if self.cached else str(self.path)
        return short_digest(os.fsencode(name))

    @property
    def quantization(self) -> str | None:
        """The quantization that its repository or its file states."""
        return self.cached.quantization if self.cached else self.header.quantization

    @property
    def type_name(self) -> str:
        """What tells it from other files of the same model: its quantization, or else the name of its file."""
        return self.quantization or self.path.stem

    @property
    def reference(self) -> str:
        """What refers to it on a command line."""
        if self.is_unregistered:
            return str(self.path)
        if self.entry or self.cached is None:
            return self.name
        if self.is_shadowed:
            return str(ModelReference(self.cached.repo_id, file=self.cached.names[0], revision=self.cached.commit))
        return str(ModelReference(self.name, self.cached.quantization))

    @property
    def label(self) -> str:
        """Its name for people and for files that may be shared: without local directories."""
        return self.name if self.is_unregistered else self.reference

    @property
    def references(self) -> set[str]:
        """Its reference, and that of its repository or its row in the catalog."""
        if self.cached is None:
            return {self.reference}
        name = self.spec.name if self.spec else self.cached.repo_id
        return {self.reference, str(ModelReference(name, self.cached.quantization))}

    @property
    def known_format(self) -> str | None:
        if self.spec and self.spec.format:
            return self.spec.format
        if self.source in ("bundled", "folder"):
            return "cerebrum" if self.source == "bundled" else None
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


def model_paths(path: Path) -> Paths:
    """All files of the model whose first file is `path`. Raises ModelFileError for another part of it."""
    names = parts_of(path.name)
    if names[0] != path.name:
        raise ModelFileError(path, "is not the first part of its model", f"use {path.parent / names[0]}")
    return tuple(path.parent / name for name in names)
