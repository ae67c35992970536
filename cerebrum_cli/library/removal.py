"""Remove models: downloaded files are deleted, a user's own file is only removed from the registry."""

from __future__ import annotations

from cerebrum_cli.core import files
from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.text import format_size
from cerebrum_cli.library.installed import Library
from cerebrum_cli.library.model import InstalledModel
from cerebrum_cli.library.reference import Reference
from cerebrum_cli.library.registry import USED


def find_removable(library: Library, reference: Reference) -> InstalledModel:
    if entry := library.registry.find(str(reference)):
        return library.model_from_entry(entry)
    if cached := library.best_match(reference, [model for model in library.models() if not model.file]):
        return cached
    try:
        model = library.find(reference)
    except ModelNotFound as error:
        if vocabulary := library.stored_vocabulary(reference):
            return vocabulary
        raise ModelNotFound(error.message, "list installed models with cerebrum list") from error
    if model.is_bundled:
        raise UsageError(f"{model.name} is part of cerebrum and cannot be deleted", "list what can be: cerebrum list")
    if model.is_unnamed:
        raise ModelNotFound(
            f"{model.path} is not registered", "delete the file yourself; list what rm can remove with cerebrum list"
        )
    return model


def removal_question(library: Library, model: InstalledModel) -> str:
    if model.is_vocabulary:
        return f"Delete the vocabulary of {model.reference} in {model.path}?"
    if model.missing:
        return f"Remove {model.reference} from the list?"
    if _is_ours(library, model) and not _other_names(library, model):
        return f"Delete {model.reference}, {format_size(model.size)} in {model.path}?"
    return f"Remove {model.reference} from the list (its file {model.path} is kept)?"


def remove(library: Library, model: InstalledModel) -> str:
    """Remove a model, and return a report. With a vocabulary file, all that belongs to the whole model remains."""
    if model.is_vocabulary:
        _delete(library, model)
        return f"deleted the vocabulary of {model.reference}"
    was_default = library.is_default(model)
    other_names = _other_names(library, model)
    report = _remove_files(library, model, other_names)
    if model.file:
        library.registry.remove(model.file.name)
    if not other_names:
        files.remove(library.registry.directory / USED / model.usage_key)
    if was_default:
        report += _replace_default(library, model)
    return report


def _remove_files(library: Library, model: InstalledModel, other_names: list[str]) -> str:
    unlisted = f"removed {model.reference} from the list"
    if model.missing:
        report = f"{unlisted}; {model.missing} no longer exists"
        return f"{report}; its other files are kept" if len(model.paths) > 1 else report
    if other_names:
        return f"{unlisted}; kept {model.path}, {other_names[0]} uses it"
    if not _is_ours(library, model):
        return f"{unlisted}; kept {model.path}"
    freed = _delete(library, model)
    if not freed:
        return f"removed {model.reference}; its file is kept, since another revision in the cache uses it"
    return f"deleted {model.reference}, freed {format_size(freed)}"


def _replace_default(library: Library, model: InstalledModel) -> str:
    """Make another installed model the default one, and return the end of a report."""
    for successor in library.models():
        if not successor.missing and library.is_managed(successor):
            library.registry.set_default(successor.reference)
            if successor.reference == model.reference:
                return ""
            return f"; the default model is now {successor.reference}"
    library.registry.set_default(None)
    return ""


def _is_pulled_merge(library: Library, model: InstalledModel) -> bool:
    return model.path.parent == library.merge_directory


def _is_ours(library: Library, model: InstalledModel) -> bool:
    if model.file is None or model.file.source in ("package", "hub"):
        return True
    return _is_pulled_merge(library, model)


def _other_names(library: Library, model: InstalledModel) -> list[str]:
    if model.file is None:
        return []
    return [entry.name for entry in library.registry.entries() if entry.path == model.path and entry != model.file]


def _delete(library: Library, model: InstalledModel) -> int:
    """Delete a model's files, except those that another revision uses, and return the number of freed bytes."""
    if _is_pulled_merge(library, model) or (model.file and model.file.source == "package"):
        size = model.size
        model.path.unlink()
        return size
    from cerebrum_cli.library.hub import delete

    cache = library.vocabulary_cache if model.is_vocabulary else library.cache
    return delete(model.paths, cache.directory)
