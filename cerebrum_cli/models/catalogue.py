"""A row of the catalog: a model with its sources, and what is known of it before a download."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.settings import CATALOGUE, MODES, Layer, SourcedLayer
from cerebrum_cli.models.variants import same_quantization

if TYPE_CHECKING:
    from cerebrum_cli.models.catalogue_sources import PackageSource, Quantization, Refusal, Repository


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
        from cerebrum_cli.models.catalogue_sources import Repository

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
        from cerebrum_cli.models.catalogue_sources import Repository

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
