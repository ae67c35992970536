"""Remove models: a removal is planned first, so that it can be confirmed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.text import format_size
from cerebrum_cli.models.library import Library
from cerebrum_cli.models.model import Model, absolute_path, is_missing
from cerebrum_cli.models.reference import Reference


@dataclass(frozen=True, slots=True)
class Removal:
    """Removal of a model: downloaded files are deleted, a user's own file is only removed from the registry."""

    library: Library
    model: Model

    @property
    def deletes_files(self) -> bool:
        file = self.model.file
        brought = file is None or file.source in ("package", "hub") or self.is_pulled_merge
        return brought and not self.is_file_missing and not self.other_names

    @property
    def is_pulled_merge(self) -> bool:
        """Whether it is a merge created by `pull`, rather than one written to a path of the user's."""
        return self.model.path.parent == self.library.merge_directory

    @property
    def is_file_missing(self) -> bool:
        return is_missing(self.model.path)

    @property
    def identity(self) -> str | None:
        """Identity of the model, to which its profiles belong; None if its file no longer exists."""
        return None if self.is_file_missing else self.library.identity(self.model)

    @property
    def other_names(self) -> list[str]:
        """Other names of the same file."""
        entries = self.library.registry.entries() if self.model.file else ()
        return [each.name for each in entries if each.path == self.model.path and each != self.model.file]

    @property
    def question(self) -> str:
        model = self.model
        if self.deletes_files:
            return f"Delete {model.reference}, {format_size(model.size)} in {model.path}?"
        kept = "" if self.is_file_missing else f" (its file {model.path} is kept)"
        return f"Remove {model.reference} from the list{kept}?"

    def execute(self) -> str:
        """Remove the model and return a report."""
        library, model = self.library, self.model
        was_default, other_names, report = library.is_default(model), self.other_names, self._forget_report()
        if self.deletes_files:
            report = self._delete_and_report()
        if model.file:
            library.registry.remove(model.file.name)
        if not other_names:
            library.registry.forget_use(model.usage_key)
        if not was_default:
            return report
        successor = next((each for each in library.models() if library.is_managed(each)), None)
        library.registry.set_default(successor.reference if successor else None)
        changed = successor is not None and successor.reference != model.reference
        return f"{report}; the default model is now {successor.reference}" if successor and changed else report

    def _forget_report(self) -> str:
        name, path = self.model.reference, self.model.path
        if self.is_file_missing:
            return f"removed {name} from the list; its file no longer exists"
        used = f", {self.other_names[0]} uses it" if self.other_names else ""
        return f"removed {name} from the list; kept {path}{used}"

    def _delete_and_report(self) -> str:
        name, freed = self.model.reference, self._delete()
        if not freed:
            return f"removed {name}; its file is kept, since another revision in the cache uses it"
        return f"deleted {name}, freed {format_size(freed)}"

    def _delete(self) -> int:
        model = self.model
        if self.is_pulled_merge or (model.file and model.file.source == "package"):
            size = model.size
            model.path.unlink()
            return size
        from cerebrum_cli.models.hub import delete

        return delete(model.paths, self.library.cache.directory)


@dataclass(frozen=True, slots=True)
class VocabularyRemoval:
    """Removal of a vocabulary file; what belongs to the whole model, such as its profile, remains."""

    library: Library
    model: Model
    identity: None = None

    @property
    def question(self) -> str:
        return f"Delete the vocabulary of {self.model.reference} in {self.model.path}?"

    def execute(self) -> str:
        """Delete the file and return a report."""
        from cerebrum_cli.models.hub import delete

        delete(self.model.paths, self.library.vocabulary_cache.directory)
        return f"deleted the vocabulary of {self.model.reference}"


def plan_removal(library: Library, reference: Reference) -> Removal | VocabularyRemoval:
    """Plan the removal of a model, or of its vocabulary file if it is not installed.

    Raises ModelNotFound if neither is there.
    """
    if entry := library.registry.find(str(reference)):
        return Removal(library, library.model_from_entry(entry))
    try:
        model = library.find(reference)
    except ModelNotFound as error:
        if vocabulary := library.stored_vocabulary(reference):
            return VocabularyRemoval(library, vocabulary)
        raise ModelNotFound(error.message, "list installed models with cerebrum list") from error
    return Removal(library, _cached_model(library, model.path) if model.is_unnamed else model)


def _cached_model(library: Library, path: Path) -> Model:
    """The model of the cache with this resolved path. Raises ModelNotFound for any other file."""
    cached = (each for each in library.cached_models() if absolute_path(each.path) == path)
    if found := next(cached, None):
        return found
    raise ModelNotFound(f"{path} is not registered", "delete the file yourself; cerebrum list shows what rm removes")
