"""Catalog models that are merged instead of downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cerebrum_cli.core.errors import CerebrumError, ConfigError
from cerebrum_cli.core.files import existing_parent
from cerebrum_cli.merge.merge import Merge, MergeOptions, Merger, catalogue_recipe, with_quantization
from cerebrum_cli.merge.recipe import Recipe
from cerebrum_cli.models.catalogue import ModelSpec
from cerebrum_cli.models.download_plan import DownloadPlanner
from cerebrum_cli.models.fit import DownloadPlan
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import Model
from cerebrum_cli.models.pull import Confirm, Puller, require_confirmation, require_free_name
from cerebrum_cli.models.reference import NameReference, PathReference, Reference

PullReference = Callable[[Reference], Model]  # returns a model, pulled if it is not installed


def pull_merge(
    merger: Merger,
    puller: Puller,
    spec: ModelSpec,
    reference: NameReference,
    name: str | None,
    context: int | None,
    confirm: Confirm,
) -> Model:
    """Merge a catalog model from source models in the planned quantization, which are pulled first."""
    if spec.name in puller.merge_stack:
        raise ConfigError(f"{spec.name}: circular recipe", "fix its row in models.toml")
    inner = replace(puller, merge_stack=(*puller.merge_stack, spec.name))
    catalogue_merge = CatalogueMerge(merger, spec, catalogue_recipe(spec))
    quantization = reference.quantization
    if spec.quantizations:
        plan = catalogue_merge.plan(puller.planner, reference, context)
        if plan.chosen.installed:
            return puller.with_name(puller.library.find(plan.reference), name)
        require_confirmation(plan, confirm)
        quantization = plan.chosen.quantization
        merger.require_disk_space(existing_parent(puller.library.merge_directory), plan.chosen.size)
    merge = catalogue_merge.build(quantization, name, lambda each: inner.find_or_pull(each, None, context, confirm))
    sha256 = merger.write(merge, lambda done, total: puller.progress.update("merge", done, total))
    return merger.register(merge, sha256)


@dataclass(frozen=True, slots=True)
class CatalogueMerge:
    """A catalog model with a recipe, and its merge."""

    merger: Merger
    spec: ModelSpec
    recipe: Recipe

    @property
    def library(self) -> Library:
        return self.merger.library

    def plan(self, planner: DownloadPlanner, reference: NameReference, context: int | None) -> DownloadPlan:
        """Plan the download; without a quantization in the reference, prefer one whose models are installed."""
        plan = planner.plan(reference, context)
        if plan.chosen.installed or reference.quantization:
            return plan
        installed = [each for each in plan.candidates if each.installed] if planner.is_offline else []
        ready = installed or [each for each in plan.candidates if self._is_ready(each.quantization)]
        if not ready:
            return plan
        best = min(ready, key=lambda each: (not each.recommended, each.verdict != "fits", -each.size))
        return planner.plan(NameReference(self.spec.name, best.quantization), context)

    def build(self, quantization: str | None, name: str | None, pull: PullReference) -> Merge:
        """Pull the source models and prepare the merge. Raises UsageError for a name in use.

        Without a quantization it takes that of the first source model.
        """
        directory = self.library.merge_directory
        if name:
            require_free_name(
                self.library, name, lambda row: row is self.spec, lambda entry: entry.path.parent == directory
            )
        directory.mkdir(parents=True, exist_ok=True)
        models = {}
        for each, reference in zip(self.recipe.models, self._references(quantization), strict=True):
            is_path = isinstance(reference, PathReference)  # a file is used as it is, and not registered
            models[each] = self.library.find(reference) if is_path else pull(reference)
        label = quantization or models[self.recipe.models[0]].display_name
        output, name = directory / self.spec.merged_name(label), name or f"{self.spec.name}:{label}"
        options = MergeOptions(output, name, title=self.spec.title, quantization=quantization)
        merge = self.merger.prepare(self.recipe, models, options)
        self.merger.require_writable(merge)
        return merge

    def _references(self, quantization: str | None) -> list[Reference]:
        library, names = self.library, self.recipe.models
        return [
            library.parse(with_quantization(library, each, quantization) if quantization else each) for each in names
        ]

    def _is_ready(self, quantization: str) -> bool:
        """Whether all source models are installed in a quantization."""
        try:
            for reference in self._references(quantization):
                self.library.find(reference)
        except CerebrumError:
            return False
        return True
