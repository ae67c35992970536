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
    if model.missing:
        kept = "; its other files are kept" if len(model.paths) > 1 else ""
        report = f"removed {model.reference} from the list; {model.missing} no longer exists{kept}"
    elif other_names or not _is_ours(library, model):
        user = f", {other_names[0]} uses it" if other_names else ""
        report = f"removed {model.reference} from the list; kept {model.path}{user}"
    elif freed := _delete(library, model):
        report = f"deleted {model.reference}, freed {format_size(freed)}"
    else:
        report = f"removed {model.reference}; its file is kept, since another revision in the cache uses it"
    if model.file:
        library.registry.remove(model.file.name)
    if not other_names:
        files.remove(library.registry.directory / USED / model.usage_key)
    if not was_default:
        return report
    candidates = (installed for installed in library.models() if not installed.missing)
    successor = next(filter(library.is_managed, candidates), None)
    library.registry.set_default(successor.reference if successor else None)
    changed = successor is not None and successor.reference != model.reference
    if successor and changed:
        return f"{report}; the default model is now {successor.reference}"
    return report


def _is_pulled_merge(library: Library, model: InstalledModel) -> bool:
    return model.path.parent == library.merge_directory


def _is_ours(library: Library, model: InstalledModel) -> bool:
    return model.file is None or model.file.source in ("package", "hub") or _is_pulled_merge(library, model)


def _other_names(library: Library, model: InstalledModel) -> list[str]:
    entries = library.registry.entries() if model.file else ()
    return [entry.name for entry in entries if entry.path == model.path and entry != model.file]


def _delete(library: Library, model: InstalledModel) -> int:
    """Delete a model's files, except those that another revision uses, and return the number of freed bytes."""
    if _is_pulled_merge(library, model) or (model.file and model.file.source == "package"):
        size = model.size
        model.path.unlink()
        return size
    from cerebrum_cli.library.hub import delete

    return delete(model.paths, (library.vocabulary_cache if model.is_vocabulary else library.cache).directory)
