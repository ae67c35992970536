"""Catalog models that are merged instead of downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cerebrum_cli.core.errors import CerebrumError, ConfigError
from cerebrum_cli.core.files import existing_parent
from cerebrum_cli.merge.merge import Merge, MergeOptions, Merger, catalogue_recipe, with_quantization
from cerebrum_cli.merge.recipe import Recipe
from cerebrum_cli.models.catalogue import ModelSpec
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
        raise ConfigError(f"{spec.name}: circular recipe", "correct its row in models.toml")
    inner = replace(puller, merge_stack=(*puller.merge_stack, spec.name))
    recipe, quantization = catalogue_recipe(spec), reference.quantization
    if spec.quantizations:
        plan = _plan(puller, recipe, reference, context)
        if plan.chosen.installed:
            return puller.with_name(puller.library.find(plan.reference), name)
        require_confirmation(plan, confirm)
        quantization = plan.chosen.quantization
        merger.require_disk_space(existing_parent(puller.library.merge_directory), plan.chosen.size)
    pull = partial(inner.find_or_pull, name=None, context=context, confirm=confirm)
    merge = _prepare(merger, spec, recipe, quantization, name, pull)
    sha256 = merger.write(merge, lambda done, total: puller.progress.update("merge", done, total))
    return merger.register(merge, sha256)


def _plan(puller: Puller, recipe: Recipe, reference: NameReference, context: int | None) -> DownloadPlan:
    """Plan the download; without a quantization in the reference, prefer one whose models are installed."""
    planner = puller.planner
    plan = planner.plan(reference, context)
    if plan.chosen.installed or reference.quantization:
        return plan
    candidates = [row for row in plan.candidates if row.installed] if planner.is_offline else []
    candidates = candidates or [row for row in plan.candidates if _is_ready(puller.library, recipe, row.quantization)]
    if not candidates:
        return plan
    best = min(candidates, key=lambda row: (not row.recommended, row.verdict != "fits", -row.size))
    return planner.plan(NameReference(reference.name, best.quantization), context)


def _prepare(
    merger: Merger, spec: ModelSpec, recipe: Recipe, quantization: str | None, name: str | None, pull: PullReference
) -> Merge:
    """Pull the source models and prepare the merge. Raises UsageError for a name in use.

    Without a quantization it takes that of the first source model.
    """
    library, directory = merger.library, merger.library.merge_directory
    if name:
        require_free_name(library, name, lambda row: row is spec, lambda entry: entry.path.parent == directory)
    directory.mkdir(parents=True, exist_ok=True)
    models = {}
    for model, reference in zip(recipe.models, _references(library, recipe, quantization), strict=True):
        is_path = isinstance(reference, PathReference)  # a file is used as it is, and not registered
        models[model] = library.find(reference) if is_path else pull(reference)
    label = quantization or models[recipe.models[0]].display_name
    output, name = directory / spec.merged_name(label), name or f"{spec.name}:{label}"
    options = MergeOptions(output, name, title=spec.title, quantization=quantization)
    merge = merger.prepare(recipe, models, options)
    merger.require_writable(merge)
    return merge


def _references(library: Library, recipe: Recipe, quantization: str | None) -> list[Reference]:
    names = [with_quantization(library, model, quantization) if quantization else model for model in recipe.models]
    return [library.parse(name) for name in names]


def _is_ready(library: Library, recipe: Recipe, quantization: str) -> bool:
    """Whether all source models are installed in a quantization."""
    try:
        for reference in _references(library, recipe, quantization):
            library.find(reference)
    except CerebrumError:
        return False
    return True
