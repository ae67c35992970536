"""Pull models that are built on this machine: merged from a recipe, or converted from safetensors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import ConfigError, MergeError, PullError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import exists, on_same_disk, require_space
from cerebrum_cli.core.text import format_duration, format_size
from cerebrum_cli.engine.machine import thread_count
from cerebrum_cli.gguf.contents import TYPE_NUMBERS
from cerebrum_cli.gguf.header import header_from_tables, parse_tables, require_generative
from cerebrum_cli.library.catalogue import ModelSpec
from cerebrum_cli.library.download import DATA_ELSEWHERE, Download
from cerebrum_cli.library.fit import PREFERRED_QUANTIZATION, DownloadPlan, PlanRequest
from cerebrum_cli.library.hub import delete
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.library.pull import Puller, require_free_name
from cerebrum_cli.library.reference import ModelReference
from cerebrum_cli.library.weights import Weights
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.weights.table import Table

if TYPE_CHECKING:
    from cerebrum_cli.weights.recipe import Recipe

ROW = 256  # weights; a multiple of every type's block size


class BuildingPuller(Puller):
    """Pulls models, and builds those that are not published as GGUF files."""

    def plan_weights(self, weights: Weights, request: PlanRequest, spec: ModelSpec | None) -> DownloadPlan:
        from cerebrum_cli.weights.convert import TYPES, plan_conversion

        plans = {name: plan_conversion(weights.table, name, {}) for name in TYPES}
        path, full = Path(weights.name), plans["F32"]
        header = header_from_tables(path, parse_tables(path, full.header, full.size))
        require_generative(path, header)
        installed = [*self._conversions_of(weights)]
        if installed and request.quantization is None:
            request = replace(request, quantization=installed[-1])
        name = spec.name if spec and spec.is_built else weights.name
        sizes = [(type, planned.size) for type, planned in plans.items()]
        plan = request.plan(name, sizes, installed, header.sizes, header.context_length, spec)
        return replace(plan, listing=weights.listing, weights=weights)

    def _conversions_of(self, weights: Weights) -> dict[str, InstalledModel]:
        """Installed conversions of the same files by quantization."""
        found = {}
        for model in self.library.models():
            if model.is_converted:
                origin = model.converted_from
                is_same = origin.get("configuration") == weights.configuration  # fast, unlike the digest of the shards
                if is_same and origin["sha256"] == weights.sha256:
                    found[model.display_name] = model
        return found

    def convert(self, plan: DownloadPlan, name: str | None) -> InstalledModel:
        """Convert weights, which are downloaded first, unless a conversion of them is installed."""
        weights = plan.required_weights
        if plan.chosen.installed:
            model = self.with_name(self._conversions_of(weights)[plan.chosen.quantization], name)
        else:
            model = self._write_conversion(plan, weights, name)
        if weights.listing and self.discards:
            cache = self.library.cache
            places = [weights.listing.place(cache, file).pointer for file in weights.files]
            freed = delete(tuple(filter(exists, places)), cache.directory)
            self.progress.notice(NoticeEvent(f"deleted the download of {weights.name}", f"freed {format_size(freed)}"))
        return model

    def _write_conversion(self, plan: DownloadPlan, weights: Weights, name: str | None) -> InstalledModel:
        library, kind, size = self.library, plan.chosen.quantization, plan.chosen.size
        base = name or plan.name
        directory = library.conversion_directory / base.replace("/", "--")
        path = directory / f"{weights.name.rpartition('/')[2]}-{kind}.gguf"
        registered = name or f"{base}:{kind}"
        if name in [model.name for model in self._conversions_of(weights).values()]:
            registered = f"{name}:{kind}"  # the name means another type of these weights
        elif name or not weights.listing:
            require_free_name(library, base, library.spec_of_file(path), path=path)
        for entry in library.registry.entries():
            if entry.path == path and not weights.listing:
                hint = f"choose another name with --name, or remove it: cerebrum rm {entry.name}"
                raise UsageError(f"{path} was converted from other weights", hint)
        self.require_confirmation(plan)
        duration = format_duration(estimate_seconds(weights.table, kind))
        self._download_weights(plan, size, f"convert it to {kind} ({format_size(size)}, in about {duration})")
        return self._write(weights, kind, path, registered)

    def _download_weights(self, plan: DownloadPlan, size: int, then: str) -> None:
        """Download weights if the user agrees and a result of `size` bytes fits on the disk, too. Raises PullError."""
        weights, cache = plan.required_weights, self.library.cache
        if weights.listing is None:
            return
        download = Download(weights.listing, cache, self.progress, self.digest)
        missing = download.missing_bytes(weights.files)
        directory = self.library.conversion_directory
        if on_same_disk(directory, cache.directory):
            size += missing
        require_space(directory, size, PullError, DATA_ELSEWHERE)
        if missing:
            self._require_agreement(plan, weights.name, format_size(missing), then)
        download.fetch(weights.files)

    def _require_agreement(self, plan: DownloadPlan, name: str, size: str, then: str) -> None:
        """Ask about a download of weights. Without a terminal, --from-weights or a type must have been given."""
        is_requested = plan.is_requested or self.from_weights
        hint = f"add -y or --type {plan.chosen.quantization}"
        if not self.from_weights:
            others = self.other_conversions(name)
            self.progress.notice(NoticeEvent(f"{name} has no GGUF files", others or "none were found elsewhere"))
            hint = f"{others}; or {hint}" if others else hint
        answer = self.confirm(f"Download {size} and {then}?", True)
        if answer is False or (answer is None and not is_requested):
            raise PullError(f"not confirmed: the download of {name} ({size} of safetensors)", hint)

    def _write(self, weights: Weights, type: str, path: Path, name: str) -> InstalledModel:
        """Convert weights in their folder, and register the model.

        Raises ModelFileError for damaged weights, MergeError if the file cannot be written, which leaves none.
        """
        from cerebrum_cli.weights.convert import plan_conversion
        from cerebrum_cli.weights.merge import write_plan

        texts = {"source": weights.name}
        if weights.listing:
            texts["commit"] = weights.listing.commit
        texts |= {"sha256": weights.sha256, "configuration": weights.configuration}
        table = read_checkpoint(weights.folder, weights.name)
        plan = plan_conversion(table, type, texts)
        return write_plan(self.library, plan, path, name, "converted", partial(self.progress.update, "convert"))

    def merge(self, spec: ModelSpec, reference: ModelReference, name: str | None) -> InstalledModel:
        """Merge a catalog model from source models in the planned quantization, or from weights.

        Without a quantization it takes that of the first source model.
        """
        from cerebrum_cli.weights.merge import MergeOptions, prepare, read_recipe, write

        library, directory = self.library, self.library.merge_directory
        recipe, _, quantization = read_recipe(library, str(reference))
        if spec.quantizations:
            plan = self.plan(reference)
            if plan.chosen.installed and not self.from_weights:
                return self.with_name(library.find(plan.reference), name)
            self.require_confirmation(plan)
            require_space(directory, plan.chosen.size, MergeError, DATA_ELSEWHERE)
            quantization = plan.chosen.quantization
        if name:
            require_free_name(library, name, spec, path=directory)
        kind = None
        if self.from_weights:
            kind, quantization = quantization or PREFERRED_QUANTIZATION, None
        models = self._find_sources(spec, recipe, quantization)
        label = kind or quantization or models[recipe.models[0]].display_name
        file = spec.file or f"{spec.name}-{{quant}}.gguf"
        options = MergeOptions(
            type=kind,
            output=directory / file.replace("{quant}", label),
            name=name or f"{spec.name}:{label}",
            title=spec.title,
            quantization=quantization,
        )
        return write(library, prepare(recipe, models, options), partial(self.progress.update, "merge"))

    def _find_sources(self, spec: ModelSpec, recipe: Recipe, quantization: str | None) -> dict[str, InstalledModel]:
        """Find the models in a recipe. Raises ConfigError if the model is one of its own sources."""
        from cerebrum_cli.weights.merge import source_references

        if spec.name in self.merge_stack:
            raise ConfigError(f"{spec.name}: circular recipe", "correct its row in models.toml")
        inner = replace(self, merge_stack=(*self.merge_stack, spec.name))
        references = source_references(self.library, recipe.models, quantization)
        return {name: inner.find_source(text) for name, text in references.items()}

    def find_source(self, text: str) -> InstalledModel:
        """Find a model to merge, or pull it, or only download its weights, if these are to be merged.

        A file or folder is used as it is, and not registered.
        """
        from cerebrum_cli.weights.merge import local_source

        source = self.library.parse(text)
        if self.from_weights:
            plan = self.plan(source)
            weights = plan.required_weights
            self._download_weights(plan, 0, "merge it")
            return InstalledModel(weights.name, (weights.folder,), self.library.spec_of(source), is_weights=True)
        if isinstance(source, Path):
            return local_source(source) or self.library.find(source)
        return self.find_or_pull(source)


def estimate_seconds(table: Table, type: str) -> float:
    """Estimate the time of a conversion, without disk access, by converting a few weights."""
    import numpy as np

    from cerebrum_cli.weights.execute import CHUNK_WEIGHTS, llama_codec

    codec, stored = llama_codec(), TYPE_NUMBERS["BF16"]
    sample = np.random.default_rng(0).standard_normal((CHUNK_WEIGHTS // ROW, ROW), np.float32)
    data = codec.quantize(sample, stored)
    started = perf_counter()
    codec.dequantize(data, stored, sample)
    codec.quantize(sample, TYPE_NUMBERS.get(type, TYPE_NUMBERS.get(type[:4], 0)))  # Q4_K of Q4_K_M
    weights = sum(prod(tensor.shape) for tensor in table.tensors.values())
    return (perf_counter() - started) * weights / sample.size / thread_count()
