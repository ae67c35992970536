"""Merge models that are here into one that is: the recipe read, planned and carried out, and the result remembered."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cerebrum_cli.application.fitting import needed_memory, wanted_context
from cerebrum_cli.application.library import Library, Told
from cerebrum_cli.application.model import (
    MERGE_FORMAT,
    MERGE_RECIPE,
    MERGE_SOURCES,
    Model,
    as_path,
    is_file,
    require_loadable,
)
from cerebrum_cli.application.naming import require_name
from cerebrum_cli.catalogue.header import Header, parse_header, read_header
from cerebrum_cli.catalogue.reference import Named
from cerebrum_cli.catalogue.registry import ModelFile
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.engine.machine import thread_count
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.ground.errors import MergeError, ModelFileError, ModelNotFound, UsageError
from cerebrum_cli.ground.text import size_text
from cerebrum_cli.merge.execute import File, execute, files, require_codec
from cerebrum_cli.merge.gguf_file import read_table
from cerebrum_cli.merge.metadata import Origin, Provenance
from cerebrum_cli.merge.methods import Copy, tensors_of
from cerebrum_cli.merge.plan import Plan, planned
from cerebrum_cli.merge.recipe import Recipe, parse_recipe
from cerebrum_cli.merge.target import Target
from cerebrum_cli.merge.weights import AHEAD, WORKED, CodecFactory
from cerebrum_cli.merge.writing import PART, Written

# Bytes of memory: of the program with the libraries that files are read with, and while one is of each array's item.
MEMORY, ITEM = 80_000_000, 1200
MARGIN = 64_000_000  # bytes of the disk left to others
LONGEST_RECIPE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Wish:
    """What a merge is to be: where its file goes, what it is called, its type and the most bytes of a file."""

    output: Path
    name: str
    type: str | None = None
    split_size: int | None = None
    system: str | None = None  # the name that goes into the file, where it is another


@dataclass(frozen=True)
class Merge:
    """A merge that can be carried out: its plan, and the files it comes to.

    `items` counts those of the longest arrays that are read of one source.
    """

    recipe: Recipe
    models: Mapping[str, Model]
    wish: Wish
    plan: Plan
    files: tuple[File, ...]
    items: int

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
        most = max(len(tensors_of(tensor.work)) for tensor in self.plan.tensors)
        return MEMORY + self.items * ITEM + thread_count() * AHEAD * (most + 1) * WORKED * 4

    @property
    def copied(self) -> int:
        """The bytes that are only copied."""
        tensors = self.plan.tensors
        return sum(each.size for each in tensors if isinstance(each.work, Copy) and each.work.tensor.type == each.type)


@dataclass(frozen=True, slots=True)
class Merger:
    """Merges models of a library."""

    library: Library
    codec: CodecFactory
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free

    def prepare(self, recipe: Recipe, models: Mapping[str, Model], wish: Wish) -> Merge:
        """Return a merge of models by the names a recipe gives them.

        Raises MergeError where they do not fit it or each other, ModelFileError for a file that cannot be read.
        """
        tables = {}
        for name, model in models.items():
            require_loadable(model.path, read_header(model.path))
            tables[name] = read_table(told_name(model), model.paths)
        target = Target(wish.type, None if recipe.method == "passthrough" else recipe.dtype)
        plan = planned(recipe, tables, target, provenance(recipe, models, wish.system or wish.name))
        merge = Merge(
            recipe,
            models,
            wish,
            plan,
            files(plan, wish.output, wish.split_size),
            max(each.items for each in tables.values()),
        )
        require_codec(plan, self.codec)
        return merge

    def require_name(self, merge: Merge, spec: ModelSpec | None) -> None:
        """Raise UsageError where another model is called what it is to be; `spec` is the row whose recipe it is."""
        path = merge.files[0].path.resolve()
        require_name(self.library, merge.wish.name, lambda row: row is spec, lambda entry: entry.path == path)

    def require_place(self, merge: Merge) -> None:
        """Raise UsageError where a merge would be written over its sources, MergeError where the disk has no room."""
        paths = [file.path for file in merge.files]
        sources = {path.resolve() for model in merge.models.values() for path in model.paths}
        if taken := next((path for path in paths if path.resolve() in sources), None):
            raise UsageError(f"{taken} is one of the files that are merged", "write elsewhere")
        parts = [path.with_name(path.name + PART) for path in paths]  # a killed process's are written over
        left = sum(part.stat().st_size for part in parts if is_file(part))
        self.require_room(paths[0].parent, merge.size - left)

    def require_room(self, folder: Path, size: int) -> None:
        """Raise MergeError where a folder's disk has no room for so many bytes."""
        free, need = self.free_bytes(folder), size + MARGIN
        if free < need:
            what = f"{folder}: the disk is too full: {size_text(free)} are free, and the merge needs {size_text(need)}"
            raise MergeError(what, f"free {size_text(need - free)}, or write elsewhere")

    def carry_out(self, merge: Merge, told: Told) -> tuple[Model, tuple[Written, ...]]:
        """Write a merge, telling the bytes that are written, of how many, and remember it.

        MergeError where it cannot be written; then, and where anything else ends this, nothing is left of it.
        """
        written = execute(merge.files, self.codec, thread_count(), told)
        first, path = written[0], written[0].path.resolve()
        stat = path.stat()
        entry = ModelFile(merge.wish.name, path, stat.st_size, first.sha256, stat.st_mtime_ns, "merge")
        self.library.registry.add(entry)
        return self.library.registered(entry), written


def read_recipe(library: Library, text: str) -> tuple[Recipe, ModelSpec | None]:
    """Return the recipe in a file, or that of a model of the catalogue, and then the model's row.

    UsageError where there is none, or it cannot be read as one.
    """
    path, spec = as_path(text), library.spec_called(text)
    if spec and spec.recipe and not is_file(path):
        return parse_recipe(recipe_text(spec.recipe), spec.name), spec
    if not is_file(path):
        known = ", ".join(spec.name for spec in library.specs if spec.recipe)
        do = f"name a mergekit recipe in YAML, or a model of the catalogue that has one: {known}"
        raise UsageError(f"{text}: there is no such recipe", do)
    return parse_recipe(recipe_text(path), path.name), None


def recipe_text(path: Path) -> str:
    """Return what stands in a recipe's file. UsageError where it cannot be read."""
    try:
        if path.stat().st_size > LONGEST_RECIPE:
            raise UsageError(f"{path}: too long for a recipe", "name a mergekit recipe in YAML")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: no text in UTF-8", "name a mergekit recipe in YAML") from error


def meant(recipe: Recipe, sources: Iterable[str]) -> dict[str, str]:
    """Return which model each name of a recipe means, given NAME=MODEL for some. UsageError for a name it has not."""
    found = {name: name for name in recipe.models}
    for text in sources:
        names = [name for name in recipe.models if text.startswith(f"{name}=")]
        if not names:
            do = f"give NAME=MODEL, where NAME is {' or '.join(recipe.models)}"
            raise UsageError(f"--source {text}: the recipe names no such model", do)
        name = max(names, key=len)
        found[name] = text[len(name) + 1 :]
    return found


def found(references: Mapping[str, str], find: Callable[[str], Model]) -> dict[str, Model]:
    """Return the models that a recipe's names mean. ModelNotFound for one that is not here."""
    models = {}
    for name, reference in references.items():
        try:
            models[name] = find(reference)
        except (ModelNotFound, ModelFileError) as error:
            if name != reference or (isinstance(error, ModelNotFound) and error.offer):
                raise
            what = f"the recipe names a model {name}: {error.what}"
            raise ModelNotFound(what, f"say which one is meant: --source {name}=MODEL") from error
    return models


def in_quantization(library: Library, text: str, quantization: str) -> str:
    """Return a reference to a model of the catalogue with the quantisation that is meant; any other as it is."""
    reference = library.parse(text)
    if isinstance(reference, Named) and reference.quantization is None and library.spec_called(reference.name):
        return str(Named(reference.name, quantization))
    return text


def told_name(model: Model) -> str:
    """Return what a source is called in what others may read: no folders of this machine."""
    return model.reference if model.file or model.cached else model.path.name


def provenance(recipe: Recipe, models: Mapping[str, Model], name: str) -> Provenance:
    """Return where a merge of this name comes from."""
    spoken = models[recipe.speaker]
    origins = {
        each: Origin(told_name(model), model.cached.repo_id if model.cached else None) for each, model in models.items()
    }
    kept = {MERGE_RECIPE: recipe.text, MERGE_SOURCES: "\n".join(origin.reference for origin in origins.values())}
    if spoken.known_format and spoken.known_format != EMBEDDED:
        kept[MERGE_FORMAT] = spoken.known_format
    return Provenance(name, origins, kept)


def merge_object(merge: Merge, context: int | None, free: int) -> dict[str, Any]:
    """Return what `merge --dry-run --json` prints; sizes in bytes."""
    header = merge.header
    context = wanted_context(context, header.context_length)
    return {
        "name": merge.wish.name,
        "merge_method": merge.recipe.method,
        "models": {name: model.reference for name, model in merge.models.items()},
        "layers": [
            {"layer": layer.number, "sources": [{"model": model, "layer": number} for model, number in layer.sources]}
            for layer in merge.plan.layers
        ],
        "tensors": len(merge.plan.tensors),
        "tensor_types": dict(Counter(tensor.kind.name for tensor in merge.plan.tensors)),
        "parameters": merge.plan.parameters,
        "size": merge.size,
        "files": [{"path": str(file.path), "size": file.size} for file in merge.files],
        "copied": merge.copied,
        "kv_bytes_per_token": header.kv_bytes_per_token,
        "context": context,
        "memory": needed_memory(merge.size, header.kv_bytes_per_token, context),
        "memory_to_merge": merge.memory,
        "free": free,
    }
