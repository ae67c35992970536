"""Errors for models that are unknown, or not installed, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.files import exists, is_directory
from cerebrum_cli.core.paths import as_reference
from cerebrum_cli.core.text import did_you_mean, short_name
from cerebrum_cli.library.reference import ModelReference

if TYPE_CHECKING:
    from cerebrum_cli.library.catalogue import ModelSpec


def not_installed(reference: ModelReference, spec: ModelSpec | None = None) -> ModelNotFound:
    if spec and not spec.is_obtainable:
        return ModelNotFound(f"{spec.name} is not installed and cannot be downloaded", spec.notes)
    return ModelNotFound(
        f"{reference} is not downloaded", f"cerebrum pull {reference}{_file_hint(str(reference))}", str(reference)
    )


def unknown_model(text: str, names: Sequence[str]) -> ModelNotFound:
    """The error for a reference that means none of the models with these names."""
    name = text.partition(":")[0]
    similar = did_you_mean(name, names, 3, 0.5)
    problem = f"unknown model {text!r}"
    if ":" in text and not similar:
        pull = f"cerebrum pull ollama:{text}; or pull from the Hub: cerebrum pull OWNER/REPO"
        return ModelNotFound(problem, f"if Ollama has it, run {pull}")
    search = f"to find others: cerebrum search {quote(name)}, then cerebrum pull OWNER/REPO"
    known = similar or "see cerebrum list --available; "
    return ModelNotFound(problem, f"{known}{search}{_file_hint(text)}")


def file_not_found(path: Path) -> ModelNotFound:
    """The error for a path to nothing, or to a folder with a quantization behind it."""
    name, colon, type = str(path).rpartition(":")
    folder = Path(name)
    if colon and is_directory(folder):
        hint = f"cerebrum pull {quote(as_reference(folder))} --type {quote(type)}"
        return ModelNotFound(f"{path}: file not found; {folder} is a folder: give the type with --type", hint)
    return ModelNotFound(
        f"{short_name(path)}: file not found", "check the path, or list installed models with cerebrum list"
    )


def no_default(installed: str | None) -> ModelNotFound:
    """The error where no model is given; one may be installed, by another tool, so not chosen by the user."""
    if installed:
        hint = f"add -m {installed}, or set the default: cerebrum pull --default {installed}"
        return ModelNotFound("no model given, and no default model is set", hint)
    return ModelNotFound(
        "no model is installed",
        "cerebrum pull  (choose one that fits this machine)  or  cerebrum pull starter  (98 MB, to try it out)",
        pullable="starter",
    )


def _file_hint(text: str) -> str:
    """Hint for referring to the file or folder of this name, if there is one: a name never means a file."""
    if exists(Path(text)):
        return f"; for a file or folder of this name, use ./{text}"
    return ""
