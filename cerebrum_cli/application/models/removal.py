"""Take a model away: what that does is said before it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model, is_missing
from cerebrum_cli.catalogue.derivatives import Derivative, delete_file
from cerebrum_cli.catalogue.reference import Reference
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.text import format_size


@dataclass(frozen=True, slots=True)
class Removal:
    """What `rm` does to a model: the files we brought are deleted, a file of the user's is only forgotten."""

    library: Library
    model: Model

    @property
    def deletes_files(self) -> bool:
        """Whether files go, and not only what is remembered of them."""
        file = self.model.file
        brought = file is None or file.source in ("package", "hub", "derived") or self.is_pulled_merge
        return brought and not self.is_file_missing and not self.other_names

    @property
    def is_pulled_merge(self) -> bool:
        """Whether it was merged because it was pulled, and not to a place the user has named."""
        return self.model.path.parent == self.library.merge_directory

    @property
    def is_file_missing(self) -> bool:
        """Whether its file is not there any more."""
        return is_missing(self.model.path)

    @property
    def other_names(self) -> list[str]:
        """The other names the same file has here."""
        entries = self.library.registry.entries() if self.model.file else ()
        return [each.name for each in entries if each.path == self.model.path and each != self.model.file]

    @property
    def derivatives(self) -> list[Model]:
        """What was made of it here, or of an earlier file of its name, and goes with it."""
        if self.other_names:
            return []
        library, model = self.library, self.model
        derivatives = {each.name: each for each in library.derivatives(model)}
        for entry in library.registry.entries():
            if entry.original and Derivative.parse(entry.name).original == model.reference:
                derivatives.setdefault(entry.name, library.model_from_entry(entry))
        return list(derivatives.values())

    @property
    def question(self) -> str:
        """What to ask before it is done."""
        model, names = self.model, " and ".join(each.name for each in self.derivatives)
        also = f", and delete {names}, made of it" if names else ""
        if self.deletes_files:
            return f"Delete {model.reference}, {format_size(model.size)} in {model.path}{also}?"
        kept = "" if self.is_file_missing else f" (its file {model.path} is kept)"
        return f"Forget {model.reference}{kept}{also}?"

    def execute(self) -> str:
        """Do it, and return what has been done."""
        library, model = self.library, self.model
        was_default, other_names, report = library.is_default(model), self.other_names, self._forget_report()
        derivatives = [Removal(library, each) for each in self.derivatives]
        if self.deletes_files:
            report = self._delete_and_report()
        if model.file:
            library.registry.remove(model.file.name)
        if not other_names:
            library.registry.forget_use(model.usage_key)
        report = "; ".join((report, *(made.execute() for made in derivatives)))
        if not was_default:
            return report
        successor = next((each for each in library.models() if library.is_managed(each) and not each.is_derived), None)
        library.registry.set_default(successor.reference if successor else None)
        changed = successor is not None and successor.reference != model.reference
        return f"{report}; {successor.reference} is asked now when none is named" if successor and changed else report

    def _forget_report(self) -> str:
        name, path = self.model.reference, self.model.path
        if self.is_file_missing:
            return f"{name} is forgotten; its file was gone already"
        return f"{name} is forgotten; {path} is left alone" + (
            f", {self.other_names[0]} uses it" if self.other_names else ""
        )

    def _delete_and_report(self) -> str:
        name, freed = self.model.reference, self._delete()
        if not freed:
            return f"{name} is gone from this revision; its file stays, since another in the cache uses it"
        return f"{name} is gone, {format_size(freed)} are free again"

    def _delete(self) -> int:
        model = self.model
        if self.is_pulled_merge or (model.file and model.file.source in ("package", "derived")):
            size = model.size
            (delete_file if model.is_derived else Path.unlink)(model.path)
            return size
        from cerebrum_cli.catalogue.hub import delete

        return delete(model.paths)


def plan_removal(library: Library, reference: Reference) -> Removal:
    """Return what removing a model would do. ModelNotFound where it is neither here nor remembered."""
    if entry := library.registry.find(str(reference)):
        return Removal(library, library.model_from_entry(entry))
    try:
        return Removal(library, library.find(reference))
    except ModelNotFound as error:
        raise ModelNotFound(error.message, "list installed models with cerebrum list") from error
