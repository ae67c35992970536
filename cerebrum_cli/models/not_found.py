"""Errors for references without an installed model: what is wrong, and the command that installs it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from cerebrum_cli.core.errors import ModelNotFound, PullError
from cerebrum_cli.models.catalogue import ModelSpec
from cerebrum_cli.models.model import Model, is_file
from cerebrum_cli.models.reference import HubReference, NameReference

_OLLAMA_TAG = re.compile(r"[\w.-]+:(?:latest|e?\d+(?:\.\d+)?[bm]\b.*)", re.IGNORECASE)


def file_missing(model: Model, merge_directory: Path) -> ModelNotFound:
    """Error for a registered model whose file no longer exists."""
    name, spec, cached = model.name, model.spec, model.cached
    problem = f"{name}: its file {model.path} no longer exists"
    if cached:
        return ModelNotFound(problem, f"cerebrum pull {cached.repo_id}:{cached.quantization} --name {name}")
    if spec and spec.package:
        option = "" if name == spec.name else f" --name {name}"
        return ModelNotFound(problem, f"cerebrum pull {spec.name}{option}", None if option else spec.name)
    if spec and model.path.parent == merge_directory:
        return ModelNotFound(problem, f"cerebrum pull {name}", name)
    return ModelNotFound(problem, f"cerebrum pull PATH --name {name}  (PATH: where the file is now)")


def not_installed(reference: NameReference | HubReference, spec: ModelSpec | None = None) -> ModelNotFound:
    """Error for a catalog model (`spec`) or a repository that is not downloaded."""
    if spec and not (spec.package or spec.sources or spec.recipe):
        return ModelNotFound(f"{spec.name} is not installed and cannot be downloaded", spec.notes)
    if spec and not spec.is_available_in(reference.quantization):
        problem = f"{reference} is not installed, and the catalog lists no such quantization"
        return ModelNotFound(problem, f"list quantizations: cerebrum pull --dry-run {spec.name}")
    hint = f"cerebrum pull {reference}{_file_hint(str(reference))}"
    return ModelNotFound(f"{reference} is not downloaded", hint, str(reference))


def unknown_model(text: str, names: Iterable[str]) -> ModelNotFound:
    """Error for a name that no model has; the hint suggests similar names."""
    similar = get_close_matches(text.partition(":")[0], sorted(names), n=3, cutoff=0.5)
    suggestion = f"did you mean {' or '.join(similar)}? " if similar else ""
    if _OLLAMA_TAG.fullmatch(text) and not similar:
        problem = f"unknown model {text!r}: Ollama tags are not supported"
        return ModelNotFound(problem, "pull a GGUF repository of the Hub: cerebrum pull OWNER/REPO[:QUANT]")
    if "gguf" in text.lower() and not similar:
        hint = f"if it is on the Hub, name its owner: cerebrum pull OWNER/{text}"
        return ModelNotFound(f"unknown model {text!r}", f"{hint}{_file_hint(text)}")
    hint = f"{suggestion}cerebrum list --available shows all{_file_hint(text)}"
    return ModelNotFound(f"unknown model {text!r}", hint)


def _file_hint(text: str) -> str:
    """How to refer to the file of this name, if there is one: a name never means a file."""
    return f"; for the file of this name, use ./{text}" if is_file(Path(text)) else ""


def require_not_refused(specs: Iterable[ModelSpec], repo_id: str) -> None:
    """Raise PullError for a repository that the catalog lists as broken; the hint names a working one."""
    for spec in specs:
        for refusal in spec.refuse:
            if refusal.repo_id.lower() == repo_id.lower():
                source = f"  (from {spec.repo_id})" if spec.repo_id else ""
                raise PullError(f"{refusal.repo_id}: {refusal.reason}", f"cerebrum pull {spec.name}{source}")
