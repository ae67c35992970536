"""Remove models: a removal is planned first, so that it can be confirmed."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.text import format_size
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import InstalledModel, absolute_path, is_missing
from cerebrum_cli.models.reference import Reference


@dataclass(frozen=True, slots=True)
class Removal:
    """Removal of a model: downloaded files are deleted, a user's own file is only removed from the registry.

    With a vocabulary file nothing else is removed: what belongs to the whole model, such as its profile, remains.
    """

    library: Library
    model: InstalledModel

    @property
    def identity(self) -> str | None:
        """Identity of the model, to which its profiles belong; None if they remain or its file no longer exists."""
        model = self.model
        return None if model.is_vocabulary or is_missing(model.path) else self.library.identity(model)

    @property
    def question(self) -> str:
        model = self.model
        if model.is_vocabulary:
            return f"Delete the vocabulary of {model.reference} in {model.path}?"
        if self._deletes_files:
            return f"Delete {model.reference}, {format_size(model.size)} in {model.path}?"
        kept = "" if is_missing(model.path) else f" (its file {model.path} is kept)"
        return f"Remove {model.reference} from the list{kept}?"

    def execute(self) -> str:
        library, model = self.library, self.model
        if model.is_vocabulary:
            self._delete()
            return f"deleted the vocabulary of {model.reference}"
        was_default, other_names = library.is_default(model), self._other_names
        if is_missing(model.path):
            report = f"removed {model.reference} from the list; its file no longer exists"
        elif not self._deletes_files:
            user = f", {other_names[0]} uses it" if other_names else ""
            report = f"removed {model.reference} from the list; kept {model.path}{user}"
        elif freed := self._delete():
            report = f"deleted {model.reference}, freed {format_size(freed)}"
        else:
            report = f"removed {model.reference}; its file is kept, since another revision in the cache uses it"
        if model.file:
            library.registry.remove(model.file.name)
        if not other_names:
            library.registry.forget_use(model.usage_key)
        if not was_default:
            return report
        successor = next((model for model in library.models() if library.is_managed(model)), None)
        library.registry.set_default(successor.reference if successor else None)
        changed = successor is not None and successor.reference != model.reference
        return f"{report}; the default model is now {successor.reference}" if successor and changed else report

    @property
    def _is_pulled_merge(self) -> bool:
        """Whether it is a merge created by `pull`, rather than one written to a path of the user's."""
        return self.model.path.parent == self.library.merge_directory

    @property
    def _deletes_files(self) -> bool:
        entry = self.model.file
        is_ours = entry is None or entry.source in ("package", "hub") or self._is_pulled_merge
        return is_ours and not is_missing(self.model.path) and not self._other_names

    @property
    def _other_names(self) -> list[str]:
        model = self.model
        entries = self.library.registry.entries() if model.file else ()
        return [entry.name for entry in entries if entry.path == model.path and entry != model.file]

    def _delete(self) -> int:
        library, model = self.library, self.model
        if self._is_pulled_merge or (model.file and model.file.source == "package"):
            size = model.size
            model.path.unlink()
            return size
        from cerebrum_cli.models.hub import delete

        return delete(model.paths, (library.vocabulary_cache if model.is_vocabulary else library.cache).directory)


def plan_removal(library: Library, reference: Reference) -> Removal:
    """Plan the removal of a model, or of its vocabulary file if it is not installed. Raises ModelNotFound."""
    if entry := library.registry.find(str(reference)):
        return Removal(library, library.model_from_entry(entry))
    if unregistered := library.find_unregistered(reference):
        return Removal(library, unregistered)
    try:
        model = library.find(reference)
    except ModelNotFound as error:
        if vocabulary := library.stored_vocabulary(reference):
            return Removal(library, vocabulary)
        raise ModelNotFound(error.message, "list installed models with cerebrum list") from error
    if model.is_bundled:
        raise UsageError(f"{model.name} is part of cerebrum and cannot be deleted", "list what can be: cerebrum list")
    if not model.is_unnamed:
        return Removal(library, model)
    for cached in library.cached_models():
        if absolute_path(cached.path) == model.path:
            return Removal(library, cached)
    hint = "delete the file yourself; list what rm can remove with cerebrum list"
    raise ModelNotFound(f"{model.path} is not registered", hint)
