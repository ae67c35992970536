"""Remove models: downloaded files are deleted, a user's own file is only removed from the registry."""

from __future__ import annotations

from contextlib import suppress

from cerebrum_cli.core import files
from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.text import format_size
from cerebrum_cli.library.installed import Bundled, InstalledModel, LocalFile
from cerebrum_cli.library.library import Library
from cerebrum_cli.library.reference import Reference
from cerebrum_cli.library.registry import USED


def find_removable(library: Library, reference: Reference) -> InstalledModel:
    if entry := library.registry.find(str(reference)):
        return library.model_from_entry(entry)
    if cached := library.best_match(reference, [model for model in library.models() if not model.entry]):
        return cached
    try:
        model = library.find(reference)
    except ModelNotFound as error:
        if vocabulary := library.stored_vocabulary(reference):
            return vocabulary
        error.hint = "list installed models with cerebrum list"
        raise
    if model.origin == Bundled():
        raise UsageError(
            f"{model.name} is part of cerebrum and cannot be deleted", "cerebrum list shows which models can be deleted"
        )
    if model.origin == LocalFile():
        raise ModelNotFound(
            f"{model.path} is not registered", "delete the file yourself; cerebrum list shows what rm can remove"
        )
    return model


def removal_question(library: Library, model: InstalledModel) -> str:
    if model.is_vocabulary:
        return f"Delete the vocabulary of {model.reference} in {model.path}?"
    if _owns_files(library, model):
        return f"Delete {model.reference}, {format_size(model.size)} in {model.path}?"
    return f"Remove {model.reference} from the list, but keep its file?"


def remove(library: Library, model: InstalledModel) -> str:
    """Remove a model, and return a report. With a vocabulary file, all that belongs to the whole model remains."""
    if model.is_vocabulary:
        _delete(library, model)
        return f"deleted the vocabulary of {model.reference}"
    report = f"removed {model.reference} from the list; its file is kept"
    was_default = library.is_default(model)
    if _owns_files(library, model):
        report = f"deleted {model.reference}, freed {format_size(_delete(library, model))}"
        files.remove(library.registry.directory / USED / model.usage_key)
    if model.entry:
        library.registry.remove(model.entry.name)
    if was_default:
        library.registry.set_default(None)
        report += "; no default model is set now"
    return report


def _is_own_file(library: Library, model: InstalledModel) -> bool:
    """Whether this program made the file, by a merge or conversion, or out of a package."""
    return model.source in ("package", "converted") or model.path.parent == library.merge_directory


def _owns_files(library: Library, model: InstalledModel) -> bool:
    """Whether a model's files are there, belong to this program, and have no other name."""
    if model.entry is None:
        return True
    names = [entry.name for entry in library.registry.entries() if entry.path == model.path]
    if model.missing or len(names) > 1:
        return False
    return model.source == "hub" or _is_own_file(library, model)


def _delete(library: Library, model: InstalledModel) -> int:
    """Delete a model's files, except those that another revision uses, and return the number of freed bytes."""
    if _is_own_file(library, model):
        size = model.size
        model.path.unlink()
        if model.path.parent.parent == library.conversion_directory:
            with suppress(OSError):  # other types of the same weights
                model.path.parent.rmdir()
        return size
    from cerebrum_cli.library.hub import delete

    cache = library.vocabulary_cache if model.is_vocabulary else library.cache
    return delete(model.paths, cache.directory)
