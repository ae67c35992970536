"""Pull models that are built on this machine: merged from a recipe, or converted from safetensors."""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path
from time import perf_counter

from cerebrum_cli.core.errors import MergeError, PullError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import DATA_ELSEWHERE, on_same_disk, require_space
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import format_duration, format_size
from cerebrum_cli.engine.local import thread_count
from cerebrum_cli.gguf.contents import TYPE_NUMBERS
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.fit import PREFERRED_QUANTIZATION, Conversion, DownloadPlan
from cerebrum_cli.library.hub import Listing
from cerebrum_cli.library.installed import Folder, InstalledModel
from cerebrum_cli.library.pull import ModelBuilder, Puller
from cerebrum_cli.library.reference import ModelReference
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.weights.source_weights import Weights, local_weights, repository_weights
from cerebrum_cli.weights.table import Table

ROW = 256  # weights; a multiple of every type's block size


@frozen
class Converter:
    """Converts weights with what a Puller asks and reports."""

    puller: Puller
    weights: Weights

    def conversion(self) -> Conversion:
        from cerebrum_cli.weights.convert import TYPES, plan_conversion

        weights = self.weights
        plans = {name: plan_conversion(weights.table, name, {}) for name in TYPES}
        path, full = Path(weights.name), plans["F32"]
        header = full.header_at(path)
        require_generative(path, header)
        sizes = {type: planned.size for type, planned in plans.items()}
        return Conversion(
            weights.name, weights.size, header, sizes, [*self._installed()], self._build, self._fetch_to_merge
        )

    def _installed(self) -> dict[str, InstalledModel]:
        """Installed conversions of the same files by quantization."""
        found = {}
        for model in self.puller.library.models():
            if model.is_converted:
                origin = model.converted_from
                # The configuration first: its digest is fast, unlike that of the shards.
                is_same = origin.get("configuration") == self.weights.configuration
                if is_same and origin["sha256"] == self.weights.sha256:
                    found[model.display_name] = model
        return found

    def _build(self, plan: DownloadPlan, name: str | None) -> str:
        """Convert weights, which are downloaded first, unless a conversion of them is installed."""
        puller, listing = self.puller, self.weights.listing
        if plan.chosen.installed:
            model = puller.with_name(self._installed()[plan.chosen.quantization], name)
        else:
            model = self._write(plan, name)
        if listing and puller.discards:
            freed = puller.discard(listing, self.weights.files)
            problem = f"deleted the download of {self.weights.name}"
            puller.progress.notice(NoticeEvent(problem, f"freed {format_size(freed)}"))
        return model.reference

    def _write(self, plan: DownloadPlan, name: str | None) -> InstalledModel:
        """Convert weights in their folder, and register the model.

        Raises ModelFileError for damaged weights, MergeError if the file cannot be written, which leaves none.
        """
        from cerebrum_cli.weights.convert import plan_conversion
        from cerebrum_cli.weights.merge import write_plan

        weights, library = self.weights, self.puller.library
        kind, size = plan.chosen.quantization, plan.chosen.size
        base = name or plan.name
        directory = library.registry.conversion_directory / base.replace("/", "--")
        path = directory / f"{weights.name.rpartition('/')[2]}-{kind}.gguf"
        registered = self._free_name(base, name, kind, path)
        self.puller.require_confirmation(plan)
        duration = format_duration(estimate_seconds(weights.table, kind))
        self._fetch(plan, size, f"convert it to {kind} ({format_size(size)}, in about {duration})")
        texts = {"source": weights.name}
        if weights.listing:
            texts["commit"] = weights.listing.commit
        texts |= {"sha256": weights.sha256, "configuration": weights.configuration}
        converted = plan_conversion(read_checkpoint(weights.folder, weights.name), kind, texts)
        on_progress = partial(self.puller.progress.update, "convert")
        return write_plan(library, converted, path, registered, "converted", on_progress)

    def _free_name(self, base: str, name: str | None, kind: str, path: Path) -> str:
        """The name for a conversion to a type. Raises UsageError if it, or the path, belongs to other weights."""
        library = self.puller.library
        is_local = self.weights.listing is None
        registered = name or f"{base}:{kind}"
        if name in [model.name for model in self._installed().values()]:
            registered = f"{name}:{kind}"  # the name means another type of these weights
        elif name or is_local:
            library.require_free_name(base, library.spec_of_file(path), path=path)
        for entry in library.registry.entries():
            if entry.path == path and is_local:
                hint = f"choose another name with --name, or remove it: cerebrum rm {entry.name}"
                raise UsageError(f"{path} was converted from other weights", hint)
        return registered

    def _fetch_to_merge(self, plan: DownloadPlan) -> Path:
        self._fetch(plan, 0, "merge it")
        return self.weights.folder

    def _fetch(self, plan: DownloadPlan, size: int, then: str) -> None:
        """Download weights if the user agrees and a result of `size` bytes fits on the disk, too. Raises PullError."""
        weights, library = self.weights, self.puller.library
        if weights.listing is None:
            return
        download = self.puller.download(weights.listing)
        missing = download.missing_bytes(weights.files)
        directory = library.registry.conversion_directory
        if on_same_disk(directory, library.cache.directory):
            size += missing
        require_space(directory, size, PullError, DATA_ELSEWHERE)
        if missing:
            self._require_agreement(plan, format_size(missing), then)
        download.fetch(weights.files)

    def _require_agreement(self, plan: DownloadPlan, size: str, then: str) -> None:
        """Ask about a download of weights. Without a terminal, --from-weights or a type must have been given."""
        puller, name = self.puller, self.weights.name
        is_requested = plan.is_requested or puller.from_weights
        hint = f"add -y or --type {plan.chosen.quantization}"
        if not puller.from_weights:
            others = puller.planner.other_conversions(name)
            puller.progress.notice(NoticeEvent(f"{name} has no GGUF files", others or "none were found elsewhere"))
            hint = f"{others}; or {hint}" if others else hint
        answer = puller.confirm(f"Download {size} and {then}?", True)
        if answer is False or (answer is None and not is_requested):
            raise PullError(f"not confirmed: the download of {name} ({size} of safetensors)", hint)


def conversion(puller: Puller, source: Path | Listing) -> Conversion:
    """What the weights in a folder or repository can be converted to. Raises ModelFileError or ModelNotFound."""
    if isinstance(source, Path):
        return Converter(puller, local_weights(puller, source)).conversion()
    return Converter(puller, repository_weights(puller, source)).conversion()


def merge(puller: Puller, spec: ModelSpec, reference: ModelReference, name: str | None) -> InstalledModel:
    """Merge a catalog model from source models in the planned quantization, or from weights.

    Without a quantization it takes that of the first source model.
    """
    from cerebrum_cli.weights.merge import MergeOptions, prepare, read_recipe, source_references, write

    library, directory = puller.library, puller.library.registry.merge_directory
    recipe, _, quantization = read_recipe(library, str(reference))
    if spec.quantizations:
        plan = puller.plan(reference)
        if plan.chosen.installed and not puller.from_weights:
            return puller.with_name(library.find(plan.reference), name)
        puller.require_confirmation(plan)
        require_space(directory, plan.chosen.size, MergeError, DATA_ELSEWHERE)
        quantization = plan.chosen.quantization
    if name:
        library.require_free_name(name, spec, path=directory)
    kind = None
    if puller.from_weights:
        kind, quantization = quantization or PREFERRED_QUANTIZATION, None
    references = source_references(library, recipe.models, quantization)
    models = {source: find_source(puller, text) for source, text in references.items()}
    label = kind or quantization or models[recipe.models[0]].display_name
    file = spec.file or f"{spec.name}-{{quant}}.gguf"
    options = MergeOptions(
        type=kind,
        output=directory / file.replace("{quant}", label),
        name=name or f"{spec.name}:{label}",
        title=spec.title,
        quantization=quantization,
    )
    return write(library, prepare(recipe, models, options), partial(puller.progress.update, "merge"))


def find_source(puller: Puller, text: str) -> InstalledModel:
    """Find a model to merge, or pull it, or only download its weights, if these are to be merged.

    A file or folder is used as it is, and not registered.
    """
    from cerebrum_cli.weights.merge import local_source

    source = puller.library.parse(text)
    if puller.from_weights:
        plan = puller.plan(source)
        weights = plan.required_conversion
        spec = puller.library.spec_of(source)
        return InstalledModel(weights.name, (weights.fetch(plan),), Folder(), spec)
    if isinstance(source, Path):
        return local_source(source) or puller.library.find(source)
    return puller.find_or_pull(source)


def estimate_seconds(table: Table, type: str) -> float:
    """Estimate the time of a conversion, without disk access, by converting a few weights."""
    import numpy as np

    from cerebrum_cli.weights import codec
    from cerebrum_cli.weights.execute import CHUNK_WEIGHTS

    stored = TYPE_NUMBERS["BF16"]
    sample = np.random.default_rng(0).standard_normal((CHUNK_WEIGHTS // ROW, ROW), np.float32)
    data = codec.quantize(sample, stored)
    started = perf_counter()
    codec.dequantize(data, stored, sample)
    codec.quantize(sample, TYPE_NUMBERS.get(type, TYPE_NUMBERS.get(type[:4], 0)))  # Q4_K of Q4_K_M
    weights = sum(prod(tensor.shape) for tensor in table.tensors.values())
    return (perf_counter() - started) * weights / sample.size / thread_count()


BUILDER = ModelBuilder(conversion, merge)
