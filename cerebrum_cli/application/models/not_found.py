"""Why a reference names no model that is here, and what brings it here: the errors of the library."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from cerebrum_cli.catalogue.derivatives import Derivative
from cerebrum_cli.catalogue.reference import InRepository, Named
from cerebrum_cli.catalogue.registry import ModelFile
from cerebrum_cli.catalogue.spec import ModelSpec, Refusal
from cerebrum_cli.core.errors import ModelNotFound, PullError

if TYPE_CHECKING:
    from cerebrum_cli.application.models.library import Library


def gone(library: Library, entry: ModelFile, spec: ModelSpec | None) -> ModelNotFound:
    """Return the error of a model that is remembered, as a row of the catalogue, and whose file is not there."""
    what = f"{entry.name}: its file {entry.path} is gone"
    if entry.source == "hub" and (cached := library.cache.model_at(entry.path)):
        return ModelNotFound(what, f"cerebrum pull {cached.repo_id}:{cached.quantization} --name {entry.name}")
    if entry.original:
        return ModelNotFound(what, Derivative.parse(entry.name).command)
    if spec and spec.package:
        named = "" if entry.name == spec.name else f" --name {entry.name}"
        return ModelNotFound(what, f"cerebrum pull {spec.name}{named}", pullable=None if named else spec.name)
    if spec and entry.path.parent == library.merges:
        return ModelNotFound(what, f"cerebrum pull {entry.name}", pullable=entry.name)
    return ModelNotFound(what, f"cerebrum pull PATH --name {entry.name}  (PATH is where it is now)")


def missing(library: Library, reference: Named | InRepository) -> ModelNotFound:
    """Return the error of a reference to a model that is not here. PullError where it is one that is refused."""
    if isinstance(reference, InRepository):
        require_sound(library, reference.repo_id)
    elif (spec := library.spec_named(reference.name)) is None:
        return unknown(library, str(reference))
    elif not (spec.package or spec.sources or spec.recipe):
        return ModelNotFound(f"{spec.name} is not here and cannot be downloaded", spec.notes)
    elif not spec.may_be_had_in(reference.quantization):
        what = f"{reference} is not here, and the catalogue knows no such quantisation"
        return ModelNotFound(what, f"see which there are: cerebrum pull --dry-run {spec.name}")
    return ModelNotFound(f"{reference} is not downloaded", f"cerebrum pull {reference}", pullable=str(reference))


def unknown(library: Library, text: str) -> ModelNotFound:
    """Return the error of a name nobody has, with those that are like it."""
    names = sorted({model.name for model in library.models()} | {spec.name for spec in library.specs})
    near = get_close_matches(text.partition(":")[0], names, n=3, cutoff=0.5)
    like = f"did you mean {' or '.join(near)}? " if near else ""
    return ModelNotFound(f"unknown model {text!r}", f"{like}cerebrum list --available shows all", near)


def require_sound(library: Library, repo_id: str) -> None:
    """Raise PullError for a repository the catalogue calls broken, naming the one that works."""
    for spec in library.specs:
        for refusal in spec.refuse:
            if refusal.repo_id.lower() == repo_id.lower():
                raise refused(spec, refusal)


def refused(spec: ModelSpec, refusal: Refusal) -> PullError:
    """Return the error of a repository that is broken."""
    works = f"  (from {spec.repo_id})" if spec.repo_id else ""
    return PullError(f"{refusal.repo_id}: {refusal.reason}", f"cerebrum pull {spec.name}{works}")
