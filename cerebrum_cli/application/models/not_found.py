"""Why a reference names no model that is here, and what brings it here: the errors of the library."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from cerebrum_cli.catalogue.derivatives import Derivative
from cerebrum_cli.catalogue.reference import HubReference, NameReference
from cerebrum_cli.catalogue.registry import ModelFile
from cerebrum_cli.catalogue.spec import ModelSpec, Refusal
from cerebrum_cli.core.errors import ModelNotFound, PullError

if TYPE_CHECKING:
    from cerebrum_cli.application.models.library import Library


def file_missing(library: Library, entry: ModelFile, spec: ModelSpec | None) -> ModelNotFound:
    """Return the error of a model that is remembered, as a row of the catalogue, and whose file is not there."""
    problem = f"{entry.name}: its file {entry.path} is gone"
    if entry.source == "hub" and (cached := library.cache.model_at(entry.path)):
        return ModelNotFound(problem, f"cerebrum pull {cached.repo_id}:{cached.quantization} --name {entry.name}")
    if entry.original:
        return ModelNotFound(problem, Derivative.parse(entry.name).rebuild_command)
    if spec and spec.package:
        named = "" if entry.name == spec.name else f" --name {entry.name}"
        return ModelNotFound(problem, f"cerebrum pull {spec.name}{named}", offer=None if named else spec.name)
    if spec and entry.path.parent == library.merge_directory:
        return ModelNotFound(problem, f"cerebrum pull {entry.name}", offer=entry.name)
    return ModelNotFound(problem, f"cerebrum pull PATH --name {entry.name}  (PATH is where it is now)")


def not_installed(library: Library, reference: NameReference | HubReference) -> ModelNotFound:
    """Return the error of a reference to a model that is not here. PullError where it is one that is refused."""
    if isinstance(reference, HubReference):
        require_not_refused(library, reference.repo_id)
    elif (spec := library.spec_named(reference.name)) is None:
        return unknown_model(library, str(reference))
    elif not (spec.package or spec.sources or spec.recipe):
        return ModelNotFound(f"{spec.name} is not here and cannot be downloaded", spec.notes)
    elif not spec.is_available_in(reference.quantization):
        what = f"{reference} is not here, and the catalogue knows no such quantisation"
        return ModelNotFound(what, f"see which there are: cerebrum pull --dry-run {spec.name}")
    return ModelNotFound(f"{reference} is not downloaded", f"cerebrum pull {reference}", offer=str(reference))


def unknown_model(library: Library, text: str) -> ModelNotFound:
    """Return the error of a name nobody has, with those that are like it."""
    names = sorted({model.name for model in library.models()} | {spec.name for spec in library.specs})
    similar = get_close_matches(text.partition(":")[0], names, n=3, cutoff=0.5)
    like = f"did you mean {' or '.join(similar)}? " if similar else ""
    return ModelNotFound(f"unknown model {text!r}", f"{like}cerebrum list --available shows all", similar)


def require_not_refused(library: Library, repo_id: str) -> None:
    """Raise PullError for a repository the catalogue calls broken, naming the one that works."""
    for spec in library.specs:
        for refusal in spec.refuse:
            if refusal.repo_id.lower() == repo_id.lower():
                raise refused_repository(spec, refusal)


def refused_repository(spec: ModelSpec, refusal: Refusal) -> PullError:
    """Return the error of a repository that is broken."""
    source = f"  (from {spec.repo_id})" if spec.repo_id else ""
    return PullError(f"{refusal.repo_id}: {refusal.reason}", f"cerebrum pull {spec.name}{source}")
