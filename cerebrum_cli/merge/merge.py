"""Merge installed models: plan a recipe, write the merged files and register the result."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from cerebrum_cli.core.errors import ConfigError, MergeError, UsageError
from cerebrum_cli.core.locks import PART
from cerebrum_cli.core.text import format_size
from cerebrum_cli.engine.machine import thread_count
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.gguf.adapter import read_table
from cerebrum_cli.gguf.header import Header, parse_header, read_header
from cerebrum_cli.merge.execute import OutputFile, execute, plan_files, require_supported_types
from cerebrum_cli.merge.metadata import Origin, Provenance
from cerebrum_cli.merge.methods import input_tensors
from cerebrum_cli.merge.output_files import WrittenFile
from cerebrum_cli.merge.plan import Plan, plan_merge
from cerebrum_cli.merge.recipe import Recipe
from cerebrum_cli.merge.target_types import Target
from cerebrum_cli.merge.weights import CHUNK_WEIGHTS, PENDING_PER_THREAD, CodecFactory
from cerebrum_cli.models.fit import Capacity, fit_memory, planned_context
from cerebrum_cli.models.library import Library, OnProgress
from cerebrum_cli.models.model import (
    MERGE_FORMAT,
    MERGE_RECIPE,
    MERGE_SOURCES,
    Model,
    is_file,
    require_loadable,
)
from cerebrum_cli.models.names import require_free_name
from cerebrum_cli.models.registry import ModelFile
from cerebrum_cli.models.spec import ModelSpec
from cerebrum_cli.models.variants import unsplit_name

# Bytes of memory: the process with the libraries that read files, and each metadata array item while it is read.
BASE_MEMORY, MEMORY_PER_ITEM = 80_000_000, 200
DISK_RESERVE = 64_000_000  # bytes of the disk left free for other programs


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Output path and name of a merge.

    `type` is the type of all weights, None to leave each tensor's type. `split_size` is the maximum size of a file in
    bytes. `title` is the model name in the file unless the recipe has one. `quantization` is that of the sources, for
    files that do not state it.
    """

    output: Path
    name: str
    type: str | None = None
    split_size: int | None = None
    title: str | None = None
    quantization: str | None = None

    def replaces(self, entry: ModelFile) -> bool:
        """Whether a registry entry is for the file, split or whole, that the merge overwrites."""
        return entry.path.parent == self.output.parent.resolve() and unsplit_name(entry.path.name) == self.output.name


@dataclass(frozen=True)
class Merge:
    """A merge ready to be written: its plan and files.

    `array_items` counts the items of all metadata arrays of its sources.
    """

    recipe: Recipe
    models: Mapping[str, Model]
    options: MergeOptions
    plan: Plan
    files: tuple[OutputFile, ...]
    array_items: int

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size for file in self.files)

    @cached_property
    def header(self) -> Header:
        first = self.files[0]
        return parse_header(first.path, first.header, first.size)

    @property
    def memory(self) -> int:
        """Estimate of the peak memory needed to write it, in bytes."""
        most = max(len(input_tensors(tensor.op)) for tensor in self.plan.tensors)
        return (
            BASE_MEMORY
            + self.array_items * MEMORY_PER_ITEM
            + thread_count() * PENDING_PER_THREAD * (most + 1) * CHUNK_WEIGHTS * 4
        )

    @property
    def copied_bytes(self) -> int:
        return sum(each.size for each in self.plan.tensors if each.is_copy)


@dataclass(frozen=True, slots=True)
class Merger:
    library: Library
    codec: CodecFactory
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    def prepare(self, recipe: Recipe, models: Mapping[str, Model], options: MergeOptions) -> Merge:
        """Plan a merge; `models` maps the recipe's names to models.

        Raises MergeError if they do not fit the recipe or each other, ModelFileError for an unreadable file.
        """
        tables = {}
        for name, model in models.items():
            require_loadable(model.path, read_header(model.path))
            tables[name] = read_table(public_name(model), model.paths)
        dtype = None if recipe.method == "passthrough" else recipe.dtype
        target = Target(options.type, dtype, options.quantization)
        title = recipe.name or options.title or options.name
        plan = plan_merge(recipe, tables, target, provenance(recipe, models, title))
        require_supported_types(plan, self.codec)
        files = plan_files(plan, options.output, options.split_size)
        return Merge(recipe, models, options, plan, files, sum(each.array_items for each in tables.values()))

    def require_name(self, options: MergeOptions, spec: ModelSpec | None) -> None:
        """Raise UsageError if another model has the name; `spec` is the catalog row of the recipe, if it has one."""
        require_free_name(self.library, options.name, lambda row: row is spec, options.replaces)

    def require_writable(self, merge: Merge) -> None:
        """Raise UsageError if a file is one of the sources, MergeError if the disk has too little space."""
        paths = [file.path for file in merge.files]
        require_not_source(merge.models, paths)
        parts = [path.with_name(path.name + PART) for path in paths]  # files of a killed process are overwritten
        reclaimed = sum(part.stat().st_size for part in parts if is_file(part))
        self.require_disk_space(paths[0].parent, merge.size - reclaimed)

    def require_disk_space(self, folder: Path, size: int) -> None:
        """Raise MergeError if the disk of a directory has too little space for `size` bytes."""
        free, need = self.free_bytes(folder), size + DISK_RESERVE
        if free < need:
            problem = f"not enough disk space: {format_size(free)} free, {format_size(need)} needed"
            raise MergeError(f"{folder.resolve()}: {problem}", f"free {format_size(need - free)}, or write elsewhere")

    def write(self, merge: Merge, on_progress: OnProgress) -> tuple[WrittenFile, ...]:
        """Write the files of a merge, reporting bytes done and total.

        Raises MergeError if it cannot be written. No partial file remains after an error or an interruption.
        """
        return execute(merge.files, self.codec, thread_count(), on_progress)

    def register(self, merge: Merge, written: Sequence[WrittenFile]) -> Model:
        """Register the written model, and remove entries for the files it replaced.

        Raises ConfigError if that fails: the files are kept, since writing them may have taken an hour.
        """
        registry, path, name = self.library.registry, written[0].path, merge.options.name
        stat = path.stat()
        model = ModelFile(name, path.resolve(), stat.st_size, written[0].sha256, stat.st_mtime_ns, "merge")
        try:
            for entry in registry.entries():
                if entry.source == "merge" and entry.name != name and merge.options.replaces(entry):
                    registry.remove(entry.name)
            registry.add(model)
        except ConfigError as error:
            problem = f"{path} is complete, but not registered: {error.message}"
            then = f"cerebrum pull {quote(str(path))} --name {quote(name)}"
            raise ConfigError(problem, f"{error.hint}, then run {then}") from error
        return self.library.model_from_entry(model)


def require_not_source(models: Mapping[str, Model], paths: Iterable[Path]) -> None:
    """Raise UsageError if an output path is a source file of the merge."""
    sources = {path.resolve() for model in models.values() for path in model.paths}
    if taken := next((path for path in paths if path.resolve() in sources), None):
        raise UsageError(f"{taken} is a source of this merge", "choose another output file")


def public_name(model: Model) -> str:
    """Name of a source for a file that may be shared: without local directories."""
    return model.path.name if model.is_unnamed else model.reference


def provenance(recipe: Recipe, models: Mapping[str, Model], name: str) -> Provenance:
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
    """Keys of `merge --dry-run --json`; sizes in bytes."""
    header = merge.header
    context = planned_context(context, header.context_length)
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
        "ignored_keys": list(merge.recipe.ignored_keys),
        "kv_bytes_per_token": header.kv_bytes_per_token,
        "context": context,
        "memory": fit_memory(header.sizes.with_weights(merge.size), context, Capacity(0)).needed,
        "memory_to_merge": merge.memory,
        "free": free,
    }
