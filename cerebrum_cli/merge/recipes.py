"""Find a recipe by path or catalog name, and the models it names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.core.errors import CerebrumError, ModelFileError, ModelNotFound, PullError, UsageError
from cerebrum_cli.merge.recipe import Recipe, parse_recipe
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import Model, as_path, is_directory, is_missing
from cerebrum_cli.models.reference import NameReference, looks_like_path
from cerebrum_cli.models.spec import ModelSpec

MAX_RECIPE_BYTES = 1 << 20


class RequestedMerge(NamedTuple):
    """A recipe; for one from the catalog also its row and the requested quantization."""

    recipe: Recipe
    spec: ModelSpec | None = None
    quantization: str | None = None


def read_recipe(library: Library, text: str) -> RequestedMerge:
    """Read a recipe file, or the recipe of a catalog model. Raises UsageError if it is missing or invalid."""
    path, (name, _, quantization) = as_path(text), text.partition(":")
    spec = library.spec_named(name)
    if spec and spec.recipe:
        return RequestedMerge(catalogue_recipe(spec), spec, quantization or None)
    if not is_missing(path):
        return RequestedMerge(parse_recipe(read_text(path), path.name))
    known = ", ".join(spec.name for spec in library.specs if spec.recipe)
    raise UsageError(f"{text}: no such recipe", f"name a mergekit recipe in YAML, or a catalog model with one: {known}")


def catalogue_recipe(spec: ModelSpec) -> Recipe:
    """Read the recipe of a catalog row that has one. Raises UsageError if it cannot be read."""
    assert spec.recipe is not None, "the row has no recipe"
    return parse_recipe(read_text(spec.recipe), spec.name)


def read_text(path: Path) -> str:
    """Read the text of a recipe file or pipe. Raises UsageError if it cannot be read."""
    hint = "name a mergekit recipe in YAML"
    if is_directory(path):
        raise UsageError(f"{path}: is a directory", hint)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes", hint)
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text", hint) from error


def source_references(library: Library, request: RequestedMerge, sources: Iterable[str]) -> dict[str, str]:
    """Map the names in a recipe to model references, some given as NAME=MODEL. Raises UsageError for other names."""
    names, quantization = request.recipe.models, request.quantization
    references = {name: with_quantization(library, name, quantization) if quantization else name for name in names}
    given: set[str] = set()
    for text in sources:
        matching = [name for name in names if text.startswith(f"{name}=")]
        if not matching:
            hint = f"use NAME=MODEL, where NAME is {' or '.join(names)}"
            raise UsageError(f"--source {text}: the recipe does not name this model", hint)
        name = max(matching, key=len)
        reference = text[len(name) + 1 :]
        if name in given or not reference:
            problem = f"a second model for {name}" if name in given else "no model after the ="
            raise UsageError(f"--source {text}: {problem}", f"give --source {name}=MODEL once")
        given.add(name)
        references[name] = reference
    return references


def resolve_models(library: Library, references: Mapping[str, str], find: Callable[[str], Model]) -> dict[str, Model]:
    """Find the model of each name. Raises ModelNotFound, or the error of pulling it, for a missing one."""
    models = {}
    for name, reference in references.items():
        try:
            models[name] = find(reference)
        except (ModelNotFound, ModelFileError, PullError) as error:
            is_damaged = isinstance(error, ModelFileError) and looks_like_path(name)
            if is_damaged or name != reference or is_catalogued(library, name):
                raise
            raise unknown_source(name, error) from error
    return models


def unknown_source(name: str, error: CerebrumError) -> ModelNotFound:
    """Error for a name in a recipe without an installed model; most names are of repositories without GGUF files."""
    hint = f"name the model to use: --source {name}=MODEL"
    if isinstance(error, ModelNotFound) and error.pullable:
        return ModelNotFound(error.message, f"{error.hint}, if it has GGUF files; or {hint}", pullable=error.pullable)
    return ModelNotFound(f"the recipe's model {name}: {error.message}", hint)


def is_catalogued(library: Library, text: str) -> bool:
    try:
        return library.spec_for(library.parse(text)) is not None
    except CerebrumError:  # not a valid reference
        return False


def with_quantization(library: Library, text: str, quantization: str) -> str:
    """Add a quantization to a reference to a catalog model; leave any other reference unchanged."""
    reference = library.parse(text)
    if isinstance(reference, NameReference) and reference.quantization is None and library.spec_named(reference.name):
        return str(NameReference(reference.name, quantization))
    return text
