"""Models of the catalogue that are not downloaded but merged of others, which are brought here first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.application.merging.merge import Merge, MergeOptions, Merger
from cerebrum_cli.application.merging.recipes import with_quantization
from cerebrum_cli.application.models.availability import DownloadPlan
from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model, as_path, is_file
from cerebrum_cli.application.models.names import require_name
from cerebrum_cli.application.pulling.download_plan import DownloadPlanner
from cerebrum_cli.catalogue.reference import Named
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.catalogue.variants import same_quantization
from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.merge.recipe import Recipe

Bring = Callable[[str], Model]
"""Return the model a reference names, brought here if it is not."""


@dataclass(frozen=True, slots=True)
class Building:
    """A row of the catalogue that has a recipe, and a model that is to be merged by it."""

    library: Library
    merger: Merger
    spec: ModelSpec
    recipe: Recipe

    def plan(self, offers: DownloadPlanner, text: str, context: int | None) -> DownloadPlan:
        """Return what a reference offers: where no quantisation is named, one whose models are here goes first."""
        offer = offers.find(text, context)
        reference = self.library.parse(text)
        if offer.chosen.installed or not isinstance(reference, Named) or reference.quantization:
            return offer
        here = [each for each in offer.candidates if each.installed] if offers.is_offline else []
        ready = here or [each for each in offer.candidates if self.is_ready(each.quantization)]
        if not ready:
            return offer
        best = min(ready, key=lambda each: (not each.recommended, each.verdict != "fits", -each.size))
        return offers.find(str(Named(self.spec.name, best.quantization)), context)

    def is_ready(self, quantization: str) -> bool:
        """Return whether all models that would be merged are here in a quantisation."""
        return not any(map(self._is_missing, self._references(quantization)))

    def build(self, quantization: str | None, name: str | None, bring: Bring) -> Merge:
        """Return what is to be merged, its models brought here; UsageError for a name that is taken.

        Without a quantisation it has that of the first of its models.
        """
        if name:
            require_name(
                self.library, name, lambda row: row is self.spec, lambda entry: entry.path.parent == self.folder
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if quantization:
            self.merger.require_disk_space(self.folder, self._room(quantization))
        references = zip(self.recipe.models, self._references(quantization), strict=True)
        models = {each: self._brought(reference, bring) for each, reference in references}
        told = quantization or models[self.recipe.models[0]].display_name
        output, told_name = self.folder / self.spec.merged_name(told), name or str(Named(self.spec.name, told))
        options = MergeOptions(output, told_name, title=self.spec.system, quantization=quantization)
        merge = self.merger.prepare(self.recipe, models, options)
        self.merger.require_writable(merge)
        return merge

    @property
    def folder(self) -> Path:
        """Where it goes."""
        return self.library.merges

    def _references(self, quantization: str | None) -> list[str]:
        if quantization is None:
            return [*self.recipe.models]
        return [with_quantization(self.library, each, quantization) for each in self.recipe.models]

    def _brought(self, reference: str, bring: Bring) -> Model:
        path = as_path(reference)
        return self.library.at_path(path) if is_file(path) else bring(reference)

    def _is_missing(self, reference: str) -> bool:
        try:
            self.library.resolve(reference)
        except CerebrumError:
            return True
        return False

    def _room(self, quantization: str) -> int:
        """Return the bytes that will come to the disk: the merge, and what is downloaded to the same one for it."""
        cache = self.library.cache.directory
        at = next(path for path in (cache, *cache.parents) if path.exists())
        missing = [each for each in self._references(quantization) if self._is_missing(each)]
        coming = missing if at.stat().st_dev == self.folder.stat().st_dev else []
        return sum(self._size(each, quantization) for each in (self.spec.name, *coming))

    def _size(self, reference: str, quantization: str) -> int:
        """Return the bytes of a model of the catalogue, 0 where it does not say."""
        spec = self.library.spec_named(reference.partition(":")[0])
        known = spec.known_quantizations if spec else ()
        return next((each.size for each in known if same_quantization(each.name, quantization)), 0)
