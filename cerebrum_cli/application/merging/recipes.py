"""Recipes of merges as a user names them, and the models that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model, as_path, is_directory, is_file, is_missing
from cerebrum_cli.catalogue.reference import Named
from cerebrum_cli.catalogue.spec import ModelSpec
from cerebrum_cli.core.errors import CerebrumError, ModelFileError, ModelNotFound, PullError, UsageError
from cerebrum_cli.merge.recipe import Recipe, parse_recipe

MAX_RECIPE_BYTES = 1 << 20  # bytes of a recipe


class RequestedMerge(NamedTuple):
    """A recipe, and where it is that of a model of the catalogue, the model's row and the quantisation asked for."""

    recipe: Recipe
    spec: ModelSpec | None = None
    quantization: str | None = None


def read_recipe(library: Library, text: str) -> RequestedMerge:
    """Return the recipe in a file, or that of a model of the catalogue.

    UsageError where there is none, or it cannot be read as one.
    """
    path, (name, _, quantization) = as_path(text), text.partition(":")
    spec = library.spec_named(name)
    if spec and spec.recipe and (is_missing(path) or is_directory(path)):
        return RequestedMerge(catalogue_recipe(spec), spec, quantization or None)
    if not is_missing(path):
        return RequestedMerge(parse_recipe(read_text(path), path.name))
    known = ", ".join(spec.name for spec in library.specs if spec.recipe)
    do = f"name a mergekit recipe in YAML, or a model of the catalogue that has one: {known}"
    raise UsageError(f"{text}: there is no such recipe", do)


def catalogue_recipe(spec: ModelSpec) -> Recipe:
    """Return the recipe that a row of the catalogue names, which must have one. UsageError where it cannot be read."""
    assert spec.recipe is not None, "only rows with a recipe are merged"
    return parse_recipe(read_text(spec.recipe), spec.name)


def read_text(path: Path) -> str:
    """Return what stands in a recipe's file, or comes out of a pipe. UsageError where it cannot be read."""
    do = "name a mergekit recipe in YAML"
    if is_directory(path):
        raise UsageError(f"{path}: is a directory", do)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
        if len(data) > MAX_RECIPE_BYTES:
            raise UsageError(f"{path}: too long for a recipe", do)
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "check its permissions") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: no text in UTF-8", do) from error


def source_references(library: Library, request: RequestedMerge, sources: Iterable[str]) -> dict[str, str]:
    """Return which model each name of a recipe means, given NAME=MODEL for some. UsageError for a name it has not."""
    names, quantization = request.recipe.models, request.quantization
    found = {name: with_quantization(library, name, quantization) if quantization else name for name in names}
    given: set[str] = set()
    for text in sources:
        fitting = [name for name in names if text.startswith(f"{name}=")]
        if not fitting:
            do = f"give NAME=MODEL, where NAME is {' or '.join(names)}"
            raise UsageError(f"--source {text}: the recipe names no such model", do)
        name = max(fitting, key=len)
        reference = text[len(name) + 1 :]
        if name in given or not reference:
            what = "it is said twice which model that is" if name in given else "no model stands behind the ="
            raise UsageError(f"--source {text}: {what}", f"give --source {name}=MODEL once")
        given.add(name)
        found[name] = reference
    return found


def resolve_models(library: Library, references: Mapping[str, str], find: Callable[[str], Model]) -> dict[str, Model]:
    """Return the models that a recipe's names mean. ModelNotFound, or what pulling one says, where one is not here."""
    models = {}
    for name, reference in references.items():
        try:
            models[name] = find(reference)
        except (ModelNotFound, ModelFileError, PullError) as error:
            if name != reference or is_known(library, name):
                raise
            raise unknown_source(name, error) from error
    return models


def unknown_source(name: str, error: CerebrumError) -> ModelNotFound:
    """Return the error of a name in a recipe that means no model here: most are those of files that are no GGUF."""
    do = f"say which one is meant: --source {name}=MODEL"
    if isinstance(error, ModelNotFound) and error.pullable:
        return ModelNotFound(error.message, f"{error.hint}, if that holds GGUF files; or {do}", offer=error.pullable)
    return ModelNotFound(f"the recipe names a model {name}: {error.message}", do)


def is_known(library: Library, text: str) -> bool:
    """Return whether a reference names a model of the catalogue."""
    try:
        return not is_file(as_path(text)) and library.spec_meant(library.parse(text)) is not None
    except CerebrumError:  # what can be no reference names none
        return False


def with_quantization(library: Library, text: str, quantization: str) -> str:
    """Return a reference to a model of the catalogue with the quantisation that is meant; any other as it is."""
    if is_file(as_path(text)):
        return text
    reference = library.parse(text)
    if isinstance(reference, Named) and reference.quantization is None and library.spec_named(reference.name):
        return str(Named(reference.name, quantization))
    return text
