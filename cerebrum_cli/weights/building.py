"""Pull models that are built on this machine: merged from a recipe, or converted from safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cerebrum_cli.core.errors import MergeError, PullError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import DATA_ELSEWHERE, on_same_disk, require_space
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import format_size
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.pull import Conversion, DownloadPlan, ModelBuilder, Puller, RemoteFiles
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.weights.source_weights import Weights, local_weights, repository_weights


@frozen
class Converter:
    """Converts weights with what a Puller asks and reports; `found` are installed conversions of the same files."""

    puller: Puller
    weights: Weights
    found: Mapping[str, InstalledModel]

    def build(self, plan: DownloadPlan, name: str | None) -> InstalledModel:
        """Convert the weights, which are downloaded first, unless this is installed."""
        if found := self.found.get(plan.chosen.quantization):
            return self.puller.with_name(found, name)
        return self._write(plan, name)

    def _write(self, plan: DownloadPlan, name: str | None) -> InstalledModel:
        """Convert weights in their folder, and register the model.

        Raises ModelFileError for damaged weights, MergeError if the file cannot be written, which leaves none.
        """
        from cerebrum_cli.weights.merge import write_plan
        from cerebrum_cli.weights.plan import plan_conversion

        weights, progress, type = self.weights, self.puller.progress, plan.chosen.quantization
        registered, path = self._free_place(plan, name)
        self._fetch(plan, plan.chosen.size, f"convert it to {type} ({format_size(plan.chosen.size)})")
        texts = {"source": weights.name}
        if weights.remote:
            texts["commit"] = weights.remote.listing.commit
        texts |= {"sha256": weights.sha256, "configuration": weights.configuration}
        converted = plan_conversion(read_checkpoint(weights.folder, weights.name), type, texts)
        if notice := converted.unfit_notice(type):
            progress.notice(notice)
        on_progress = partial(progress.update, "convert")
        return write_plan(self.puller.library, converted, path, registered, "converted", on_progress)

    def _free_place(self, plan: DownloadPlan, name: str | None) -> tuple[str, Path]:
        """The name and the path of a conversion. Raises UsageError if they belong to other weights."""
        library, type = self.puller.library, plan.chosen.quantization
        base = name or plan.available.name
        registered = name or f"{base}:{type}"
        directory = library.registry.conversion_directory / base.replace("/", "--")
        path = directory / f"{self.weights.name.rpartition('/')[2]}-{type}.gguf"
        is_local = self.weights.remote is None
        if name or is_local:
            library.require_free_name(base, library.catalogue.in_file(path), path=path)
        if is_local and library.registry.find(registered):
            hint = f"choose another name with --name, or remove it: cerebrum rm {registered}"
            raise UsageError(f"{registered} was converted from other weights", hint)
        return registered, path

    def fetch(self, plan: DownloadPlan) -> Path:
        """Download the weights alone, to be merged, and return their folder."""
        self._fetch(plan, 0, "merge it")
        return self.weights.folder

    def _fetch(self, plan: DownloadPlan, size: int, then: str) -> None:
        """Download weights if the user agrees and a result of `size` bytes fits on the disk, too. Raises PullError."""
        remote, files, library = self.weights.remote, self.weights.files, self.puller.library
        if remote is None:
            return
        missing = remote.missing_bytes(files)
        directory = library.registry.conversion_directory
        if on_same_disk(directory, library.cache.directory):
            size += missing
        require_space(directory, size, PullError, DATA_ELSEWHERE)
        if missing:
            self._require_agreement(plan, remote, format_size(missing), then)
        remote.fetch(files)

    def _require_agreement(self, plan: DownloadPlan, remote: RemoteFiles, size: str, then: str) -> None:
        """Ask about a download of weights. Without a terminal, --from-weights or a type must have been given."""
        puller, name = self.puller, self.weights.name
        hint = f"add -y or --type {plan.chosen.quantization}"
        if not puller.options.from_weights:
            others = remote.other_conversions
            puller.progress.notice(NoticeEvent(f"{name} has no GGUF files", others or "none were found elsewhere"))
            hint = f"{others}; or {hint}" if others else hint
        answer = puller.confirm(f"Download {size} and {then}?", True)
        if answer is False or (answer is None and not (plan.is_requested or puller.options.from_weights)):
            raise PullError(f"not confirmed: the download of {name} ({size} of safetensors)", hint)


def read_conversion(puller: Puller, source: Path | RemoteFiles) -> Conversion:
    """What the weights in a folder or repository can be converted to. Raises ModelFileError or ModelNotFound."""
    from cerebrum_cli.weights.plan import plan_conversion
    from cerebrum_cli.weights.target import TYPES

    weights = local_weights(puller, source) if isinstance(source, Path) else repository_weights(puller, source)
    plans = {name: plan_conversion(weights.table, name, {}) for name in TYPES}
    path = Path(weights.name)
    header = plans["F32"].header_at(path)
    require_generative(path, header)
    sizes = {type: planned.size for type, planned in plans.items()}
    converter = Converter(puller, weights, find_conversions(puller.library, weights))
    installed = tuple(converter.found)
    return Conversion(weights.name, weights.size, header, sizes, installed, converter.build, converter.fetch)


def find_conversions(library: Library, weights: Weights) -> dict[str, InstalledModel]:
    """Installed conversions of weights by quantization."""
    found = {}
    for model in library.models():
        if model.is_converted:
            origin = model.converted_from
            # The configuration first: its digest is fast, unlike that of the shards.
            is_same = origin.get("configuration") == weights.configuration
            if is_same and origin["sha256"] == weights.sha256:
                found[model.type_name] = model
    return found


def merge(puller: Puller, text: str, name: str | None) -> InstalledModel:
    """Merge a catalog model from source models in the planned quantization, or from weights to this type."""
    from cerebrum_cli.weights.merge import MergeOptions, prepare, read_recipe, source_references, write

    library, directory = puller.library, puller.library.registry.merge_directory
    from_weights = puller.options.from_weights
    recipe, _ = read_recipe(library, text)
    spec = library.catalogue.merged(text)
    assert spec, "only models of the catalog are merged"
    plan = puller.plan(library.parse(text))
    type = plan.chosen.quantization
    if plan.chosen.installed and not from_weights:
        return puller.with_name(library.find(plan.available.reference), name)
    puller.require_confirmation(plan)
    require_space(directory, plan.chosen.size, MergeError, DATA_ELSEWHERE)
    if name:
        library.require_free_name(name, spec, path=directory)
    references = source_references(library, recipe.models, None if from_weights else type)
    models = {source: find_source(puller, reference) for source, reference in references.items()}
    file = spec.file or f"{spec.name}-{{quant}}.gguf"
    options = MergeOptions(
        output=directory / file.replace("{quant}", type),
        name=name or f"{spec.name}:{type}",
        type=type if from_weights else None,
        title=spec.title,
    )
    return write(library, prepare(recipe, models, options), partial(puller.progress.update, "merge"))


def find_source(puller: Puller, text: str) -> InstalledModel:
    """Find a model to merge, or pull it, or only download its weights, if these are to be merged.

    A file or folder is used as it is, and not registered.
    """
    from cerebrum_cli.weights.merge import local_source

    source = puller.library.parse(text)
    if puller.options.from_weights:
        plan = puller.plan(source)
        weights = plan.required_conversion
        folder = weights.fetch(plan)
        return InstalledModel.folder(weights.name, folder, puller.library.catalogue.meant_by(source))
    if isinstance(source, Path):
        return local_source(puller.library, text) or puller.library.find(source)
    return puller.find_or_pull(source)


def describe_merge(puller: Puller, reference: str) -> str:
    """What a merge of a catalog model pulls and writes, as the end of a sentence."""
    from cerebrum_cli.weights.merge import read_recipe, source_references

    recipe, quantization = read_recipe(puller.library, reference)
    if puller.options.from_weights:
        sources = f"download the safetensors of {' and '.join(recipe.models)}"
    else:
        references = source_references(puller.library, recipe.models, quantization)
        sources = f"pull {' and '.join(references.values())}"
    how = f"stack {len(recipe.slices)} slices of it" if len(recipe.slices) > 1 else "merge"
    return f"{sources}, and {how} to {reference}"


BUILDER = ModelBuilder(read_conversion, merge, describe_merge)
