"""The catalog: its rows, each a model with its sources and what is known of it before a download."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path, PurePosixPath

from cerebrum_cli.core.errors import PullError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.settings import CATALOGUE, MODES, Layer, SourcedLayer
from cerebrum_cli.library.reference import ModelReference, Reference

_QUANT = r"(?:UD-)?(?:I?Q|TQ|MXFP|NVFP|B?F|B?FP)[0-9][A-Z0-9_]*"  # another word names a model of its own
_SPLIT = r"-\d{5}-of-\d{5}"


Sizes = Mapping[str, int]
"""Bytes of a model's files by quantizations, as file names spell them."""


@frozen
class Repository:
    """A repository on the Hub with a model's files, and the pattern of their names."""

    repo_id: str
    file: str
    quantizations: Sizes = field(default_factory=dict)
    revision: str | None = None

    def matches(self, filename: str) -> bool:
        """Whether a file of this name, possibly part of a split file, belongs to this model."""
        start = self.file.partition("{quant}")[0].removesuffix(".gguf")
        if not filename.lower().startswith(start.lower()):
            return False  # most rows; a pattern for each takes longer
        pattern = _QUANT.join(map(re.escape, self.file[: -len(".gguf")].split("{quant}")))
        return bool(re.fullmatch(rf"{pattern}(?:{_SPLIT})?\.gguf", filename, re.IGNORECASE))


@frozen
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


@frozen
class ModelSpec:
    """A catalog model. Without `format` its chat template is used; without a source it is merged or converted.

    `assumed_format` is a guess for a model without a template whose card states no format. `card` is the repository of
    its model card, if its files are in others. `context_size` is the trained context in tokens, `kv_bytes_per_token`
    its KV cache in f16. `active_percent` of the weights are read for each token. It thinks for about `thinking_tokens`
    before it answers; 0 if unknown. In `file`, `{quant}` stands for the quantization; `revision` is a commit, branch or
    tag other than main. `recipe` is the merge recipe of a model that is not downloaded itself. `weights` is the
    repository with its own weights in safetensors.
    `settings` are recommended settings; `thinking` and `no_thinking` override them while `think` is on or off.
    `good_for` is one word. It is `tested` if it was run with its real weights, and `made_for` if the program was
    made for it. `refuse` has broken repositories, and what is wrong with each.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    repo_id: str | None = None
    revision: str | None = None
    file: str | None = None
    quantizations: Sizes = field(default_factory=dict)
    format: str | None = None
    assumed_format: str | None = None
    context_size: int | None = None
    kv_bytes_per_token: int | None = None
    active_percent: int | None = None
    thinking_tokens: int = 0
    license: str | None = None
    good_for: str | None = None
    tested: bool = False
    made_for: bool = False
    notes: str = ""
    package: PackageSource | None = None
    recipe: Path | None = None
    weights: str | None = None
    card: str | None = None
    alternatives: tuple[Repository, ...] = ()
    refuse: Mapping[str, str] = field(default_factory=dict)
    settings: Layer = field(default_factory=dict)
    thinking: Layer = field(default_factory=dict)
    no_thinking: Layer = field(default_factory=dict)

    @property
    def recommended(self) -> Layer:
        modes = {mode: SourcedLayer(getattr(self, mode), origin=CATALOGUE) for mode in MODES}
        return SourcedLayer(self.settings, modes, origin=CATALOGUE)

    @property
    def sources(self) -> tuple[Repository, ...]:
        """Repositories with this model, the preferred one first."""
        if self.repo_id is None or self.file is None:
            return self.alternatives
        return (Repository(self.repo_id, self.file, self.quantizations, self.revision), *self.alternatives)

    @property
    def is_obtainable(self) -> bool:
        """Whether it can be downloaded or built."""
        return bool(self.package or self.sources or self.is_built)

    @property
    def is_built(self) -> bool:
        """Whether it is merged or converted, since no file can be downloaded."""
        return bool(self.recipe) or (self.weights is not None and not self.sources)

    def has_name(self, name: str) -> bool:
        return name.lower() in (self.name.lower(), *map(str.lower, self.aliases))

    def matches(self, filename: str) -> bool:
        """Whether a file of this name is this model, in any quantization and from any source."""
        if self.package and filename.lower() == self.package.filename.lower():
            return True
        if self.is_built and self.file and Repository("", self.file).matches(filename):
            return True
        return any(source.matches(filename) for source in self.sources)


@frozen
class Catalogue:
    """The models of the catalog, in order of first mention."""

    specs: tuple[ModelSpec, ...]

    def named(self, name: str) -> ModelSpec | None:
        matches = [spec for spec in self.specs if spec.has_name(name)]
        return min(matches, key=lambda spec: spec.name.lower() != name.lower(), default=None)

    def meant_by(self, reference: Reference) -> ModelSpec | None:
        return self.named(reference.name) if isinstance(reference, ModelReference) else None

    def of_card(self, reference: ModelReference) -> ModelReference | None:
        """The model of the catalog whose card or weights are in a repository, in the same quantization."""
        if not reference.is_on_hub or reference.file or reference.revision:
            return None
        for spec in self.specs:
            if reference.name.lower() in (str(spec.card).lower(), str(spec.weights).lower()):
                return replace(reference, name=spec.name)
        return None

    def merged(self, text: str) -> ModelSpec | None:
        """The model that a text names, with or without a quantization, if it is merged from a recipe."""
        spec = self.named(text.partition(":")[0])
        return spec if spec and spec.recipe else None

    def in_file(self, path: Path) -> ModelSpec | None:
        return next((spec for spec in self.specs if spec.matches(path.name)), None)

    def in_repository(self, repo_id: str, files: Iterable[str]) -> ModelSpec | None:
        """The model that the first of these files of a repository that is known belongs to."""
        sources = [(source, spec) for spec in self.specs for source in spec.sources]
        known = [(source, spec) for source, spec in sources if source.repo_id.lower() == repo_id.lower()]
        specs = (spec for file in files for source, spec in known if source.matches(PurePosixPath(file).name))
        return next(specs, None)

    def require_not_refused(self, repo_id: str) -> None:
        """Raise PullError for a repository that is listed as broken; the hint names the model's own."""
        for spec in self.specs:
            if reason := spec.refuse.get(repo_id):
                raise PullError(f"{repo_id}: {reason}", f"cerebrum pull {spec.name}")
