"""Merge models that are here into one that is: the recipe read, planned and carried out, and the result remembered."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cerebrum_cli.application.models.fit import needed_memory, wanted_context
from cerebrum_cli.application.models.library import Library, OnProgress
from cerebrum_cli.application.models.model import (
    MERGE_FORMAT,
    MERGE_RECIPE,
    MERGE_SOURCES,
    Model,
    is_file,
    require_loadable,
)
from cerebrum_cli.application.models.names import require_name
from cerebrum_cli.catalogue.registry import ModelFile
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.catalogue.variants import whole_name
from cerebrum_cli.core.errors import MergeError, UsageError
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.machine import thread_count
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.gguf.adapter import read_table
from cerebrum_cli.gguf.header import Header, parse_header, read_header
from cerebrum_cli.merge.execute import OutputFile, execute, plan_files, require_supported_types
from cerebrum_cli.merge.metadata import Origin, Provenance
from cerebrum_cli.merge.methods import input_tensors
from cerebrum_cli.merge.output_files import PART_SUFFIX, WrittenFile
from cerebrum_cli.merge.plan import Plan, plan_merge
from cerebrum_cli.merge.recipe import Recipe
from cerebrum_cli.merge.target_types import Target
from cerebrum_cli.merge.weights import CHUNK_WEIGHTS, PENDING_PER_THREAD, CodecFactory

# Bytes of memory: of the program with the libraries that files are read with, and while one is of each array's item.
BASE_MEMORY, MEMORY_PER_ITEM = 80_000_000, 200
DISK_RESERVE = 64_000_000  # bytes of the disk left to others


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Where a merge goes, what it is called here, and what its file says it is called unless the recipe does.

    `type` is that of all weights, None for each tensor's own; `quantization` is what its sources are known to be where
    their files do not say; no file is larger than `split_size` bytes.
    """

    output: Path
    name: str
    type: str | None = None
    split_size: int | None = None
    title: str | None = None
    quantization: str | None = None

    def replaces(self, entry: ModelFile) -> bool:
        """Return whether an entry of the registry is of what the merge is written over, split or not."""
        return entry.path.parent == self.output.parent.resolve() and whole_name(entry.path.name) == self.output.name


@dataclass(frozen=True)
class Merge:
    """A merge that can be carried out: its plan, and the files it comes to.

    `items` counts those of all arrays of its sources.
    """

    recipe: Recipe
    models: Mapping[str, Model]
    options: MergeOptions
    plan: Plan
    files: tuple[OutputFile, ...]
    array_items: int

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @cached_property
    def header(self) -> Header:
        """What its first file will say of itself."""
        first = self.files[0]
        return parse_header(first.path, first.header, first.size)

    @property
    def memory(self) -> int:
        """About how many bytes of memory carrying it out takes at most."""
        most = max(len(input_tensors(tensor.op)) for tensor in self.plan.tensors)
        return (
            BASE_MEMORY
            + self.array_items * MEMORY_PER_ITEM
            + thread_count() * PENDING_PER_THREAD * (most + 1) * CHUNK_WEIGHTS * 4
        )

    @property
    def copied_bytes(self) -> int:
        """The bytes that are only copied."""
        return sum(each.size for each in self.plan.tensors if each.is_copy)


@dataclass(frozen=True, slots=True)
class Merger:
    """Merges models of a library."""

    library: Library
    codec: CodecFactory
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    def prepare(self, recipe: Recipe, models: Mapping[str, Model], options: MergeOptions) -> Merge:
        """Return a merge of models by the names a recipe gives them.

        Raises MergeError where they do not fit it or each other, ModelFileError for a file that cannot be read.
        """
        tables = {}
        for name, model in models.items():
            require_loadable(model.path, read_header(model.path))
            tables[name] = read_table(public_name(model), model.paths)
        dtype = None if recipe.method == "passthrough" else recipe.dtype
        target = Target(options.type, dtype, options.quantization)
        title = recipe.name or options.title or options.name
        plan = plan_merge(recipe, tables, target, provenance(recipe, models, title))
        merge = Merge(
            recipe,
            models,
            options,
            plan,
            plan_files(plan, options.output, options.split_size),
            sum(each.array_items for each in tables.values()),
        )
        require_supported_types(plan, self.codec)
        return merge

    def require_name(self, options: MergeOptions, spec: ModelSpec | None) -> None:
        """Raise UsageError where another model is called what it is to be; `spec` is the row whose recipe it is."""
        require_name(self.library, options.name, lambda row: row is spec, options.replaces)

    def require_writable(self, merge: Merge) -> None:
        """Raise UsageError where a merge would be written over its sources, MergeError where the disk has no room."""
        paths = [file.path for file in merge.files]
        require_not_source(merge.models, paths)
        parts = [path.with_name(path.name + PART_SUFFIX) for path in paths]  # a killed process's are written over
        left = sum(part.stat().st_size for part in parts if is_file(part))
        self.require_room(paths[0].parent, merge.size - left)

    def require_room(self, folder: Path, size: int) -> None:
        """Raise MergeError where a folder's disk has no room for so many bytes."""
        free, need = self.free_bytes(folder), size + DISK_RESERVE
        if free < need:
            what = f"the disk is too full: {format_size(free)} are free, and the merge needs {format_size(need)}"
            raise MergeError(f"{folder.resolve()}: {what}", f"free {format_size(need - free)}, or write elsewhere")

    def write(self, merge: Merge, on_progress: OnProgress) -> tuple[WrittenFile, ...]:
        """Write a merge, telling the bytes that are written, of how many.

        MergeError where it cannot be written; then, and where anything else ends this, nothing is left of it.
        """
        return execute(merge.files, self.codec, thread_count(), on_progress)

    def register(self, merge: Merge, written: Sequence[WrittenFile]) -> Model:
        """Return the model that was written, which is known from now on; what its files were before is not."""
        registry, path = self.library.registry, written[0].path.resolve()
        for entry in registry.entries():
            if entry.source == "merge" and entry.name != merge.options.name and merge.options.replaces(entry):
                registry.remove(entry.name)
        stat = path.stat()
        model = ModelFile(merge.options.name, path, stat.st_size, written[0].sha256, stat.st_mtime_ns, "merge")
        registry.add(model)
        return self.library.registered(model)


def require_not_source(models: Mapping[str, Model], paths: Iterable[Path]) -> None:
    """Raise UsageError where a merge would be written over one of its sources."""
    sources = {path.resolve() for model in models.values() for path in model.paths}
    if taken := next((path for path in paths if path.resolve() in sources), None):
        raise UsageError(f"{taken} is one of the files that are merged", "write elsewhere")


def public_name(model: Model) -> str:
    """Return what a source is called in what others may read: no folders of this machine."""
    return model.reference if model.file or model.cached else model.path.name


def provenance(recipe: Recipe, models: Mapping[str, Model], name: str) -> Provenance:
    """Return where a merge of this name comes from."""
    tokenizer = models[recipe.tokenizer_model]
    origins = {
        each: Origin(public_name(model), model.cached.repo_id if model.cached else None)
        for each, model in models.items()
    }
    references = dict.fromkeys(origin.reference for origin in origins.values())
    extra = {MERGE_RECIPE: recipe.text, MERGE_SOURCES: "\n".join(references)}
    if tokenizer.known_format and tokenizer.known_format != EMBEDDED:
        extra[MERGE_FORMAT] = tokenizer.known_format
    return Provenance(name, origins, extra)


def merge_object(merge: Merge, context: int | None, free: int) -> dict[str, Any]:
    """Return what `merge --dry-run --json` prints; sizes in bytes."""
    header = merge.header
    context = wanted_context(context, header.context_length)
    return {
        "name": merge.options.name,
        "merge_method": merge.recipe.method,
        "models": {name: model.reference for name, model in merge.models.items()},
        "layers": [
            {"layer": layer.number, "sources": [{"model": model, "layer": number} for model, number in layer.sources]}
            for layer in merge.plan.layers
        ],
        "tensors": len(merge.plan.tensors),
        "tensor_types": dict(Counter(tensor.kind.name for tensor in merge.plan.tensors)),
        "parameters": merge.plan.n_parameters,
        "size": merge.size,
        "files": [{"path": str(file.path), "size": file.size} for file in merge.files],
        "copied": merge.copied_bytes,
        "unmatched_filters": list(merge.plan.unmatched_filters),
        "kv_bytes_per_token": header.kv_bytes_per_token,
        "context": context,
        "memory": needed_memory(merge.size, header.kv_bytes_per_token, context),
        "memory_to_merge": merge.memory,
        "free": free,
    }
