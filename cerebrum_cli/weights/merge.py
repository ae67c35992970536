"""From a recipe to a merged model: find the recipe and its models, plan and write the merge, and register it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cerebrum_cli.core.errors import MergeError, ModelNotFound, PullError, UsageError
from cerebrum_cli.core.events import OnProgress
from cerebrum_cli.core.files import (
    DATA_ELSEWHERE,
    as_path,
    as_reference,
    is_directory,
    is_missing,
    looks_like_path,
    read_text,
    remove_abandoned,
    require_space,
    translate_os_errors,
)
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.metadata_keys import MERGE_FORMAT, MERGE_SOURCES
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.engine.capacity import thread_count
from cerebrum_cli.gguf.header import read_header, require_loadable
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.library import Library
from cerebrum_cli.weights.checkpoints.checkpoint import read_checkpoint
from cerebrum_cli.weights.checkpoints.safetensors import file_names
from cerebrum_cli.weights.compatibility import LayerSources
from cerebrum_cli.weights.execute import execute, require_supported_types
from cerebrum_cli.weights.merge_plan import plan_merge
from cerebrum_cli.weights.plan import Plan
from cerebrum_cli.weights.recipe import Recipe, parse_recipe
from cerebrum_cli.weights.source_weights import require_weights
from cerebrum_cli.weights.table import read_table

MAX_RECIPE_BYTES = 1 << 20

MERGE_RECIPE = "cerebrum.merge.recipe"  # metadata of a merge

Models = Mapping[str, InstalledModel]  # by their names in the recipe


def read_recipe(library: Library, text: str) -> tuple[Recipe, str | None]:
    """Read a recipe file, or that of a catalog model, with the requested quantization. Raises UsageError."""
    path = as_path(text)
    spec = library.catalogue.merged(text)
    if spec and spec.recipe:
        return parse_recipe(read_text(spec.recipe, MAX_RECIPE_BYTES), spec.name), text.partition(":")[2] or None
    if not is_missing(path):
        return parse_recipe(read_text(path, MAX_RECIPE_BYTES), path.name), None
    known = ", ".join(spec.name for spec in library.catalogue.specs if spec.recipe)
    raise UsageError(f"{text}: no such recipe", f"name a mergekit recipe in YAML, or a catalog model with one: {known}")


def source_references(
    library: Library, names: Sequence[str], quantization: str | None, sources: Iterable[str] = ()
) -> dict[str, str]:
    """Map the names in a recipe to model references, some given as NAME=MODEL. Raises UsageError for other names.

    The quantization is added to names of the catalog without one.
    """
    references = {name: name for name in names}
    for name in names if quantization else ():
        if library.catalogue.named(name):
            references[name] = f"{name}:{quantization}"
    for text in sources:
        name, _, model = text.partition("=")
        hint = f"use NAME=MODEL, where NAME is {' or '.join(names)}"
        if name not in names:
            raise UsageError(f"--source {text}: the recipe does not name this model", hint)
        if not model:
            raise UsageError(f"--source {text}: no model after the =", hint)
        references[name] = model
    return references


def local_source(library: Library, text: str) -> InstalledModel | None:
    """The weights in a folder, if a reference is its path. Raises ModelFileError or ModelNotFound for one without."""
    folder = library.parse(text)
    if not isinstance(folder, Path) or not is_directory(folder):
        return None
    require_weights(folder, file_names(folder))
    path = folder.resolve()
    return InstalledModel.folder(path.name, path)


def resolve_models(library: Library, references: Mapping[str, str], find: Callable[[str], InstalledModel]) -> Models:
    """The models of references, by their names in the recipe; `find` finds those that are not folders of weights."""
    models = {}
    for name, text in references.items():
        try:
            models[name] = local_source(library, text) or find(text)
        except (ModelNotFound, PullError) as error:  # most names are of repositories without GGUF files
            hint = f"pull it first, or name another model: --source {name}=MODEL"
            if not looks_like_path(text) and is_directory(Path(text)):
                hint = f"to use the folder of this name: --source {name}={as_reference(Path(text))}"
            raise ModelNotFound(f"the recipe's model {name}: {error.message}", hint) from error
    return models


@frozen
class MergeOptions:
    """Output path and name of a merge.

    `type` is the type of all weights, None to leave each tensor's type. `title` is the model name in the file unless
    the recipe has one.
    """

    output: Path
    name: str
    type: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Merge:
    """A merge ready to be written, and the sources of its layers."""

    recipe: Recipe
    models: Models
    options: MergeOptions
    plan: Plan
    layers: Sequence[LayerSources]


def prepare(recipe: Recipe, models: Models, options: MergeOptions) -> Merge:
    """Plan a merge of models by their names in the recipe. Raises MergeError if they do not fit, ModelFileError."""
    tables = {}
    for name, model in models.items():
        if model.path.is_dir():
            tables[name] = read_checkpoint(model.path, model.name)
        else:
            require_loadable(model.path, read_header(model.path))
            tables[name] = read_table(model.label, model.paths)
    texts = {
        MERGE_RECIPE: recipe.text,
        MERGE_SOURCES: "\n".join(dict.fromkeys(table.name for table in tables.values())),
    }
    tokenizer = models[recipe.tokenizer_model]
    if tokenizer.known_format and tokenizer.known_format != EMBEDDED:
        texts[MERGE_FORMAT] = tokenizer.known_format
    title = recipe.name or options.title or options.name
    plan, layers = plan_merge(recipe, tables, options.type, title, texts)
    require_supported_types(plan)
    return Merge(recipe, models, options, plan, layers)


def write(library: Library, merge: Merge, on_progress: OnProgress) -> InstalledModel:
    """Write a merge, report bytes done and total, and register it.

    Raises UsageError if the file is one of the sources, MergeError if it cannot be written, which leaves no file, and
    ConfigError if it cannot be registered, which keeps the file: writing it may have taken an hour.
    """
    require_not_source(merge.models, merge.options.output)
    return write_plan(library, merge.plan, merge.options.output, merge.options.name, "merge", on_progress)


def write_plan(
    library: Library, plan: Plan, path: Path, name: str, source: Literal["merge", "converted"], on_progress: OnProgress
) -> InstalledModel:
    """Write and register a planned file. Raises MergeError, ConfigError as `write` does."""
    with translate_os_errors(MergeError, path):
        path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f".{path.name}.")
    elsewhere = DATA_ELSEWHERE if source == "converted" else "write elsewhere"
    require_space(path.parent.resolve(), plan.size, MergeError, elsewhere)
    sha256 = execute(plan, path, thread_count(), on_progress)
    return library.register(path.resolve(), sha256, name, source)


def require_not_source(models: Models, path: Path) -> None:
    for model in models.values():
        if path.resolve() in map(Path.resolve, model.paths):
            raise UsageError(f"{path} is a source of this merge", "choose another output file")
