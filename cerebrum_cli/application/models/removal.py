"""Take a model away: what that does is said before it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.application.models.library import Library
from cerebrum_cli.application.models.model import Model, is_missing
from cerebrum_cli.catalogue.derivatives import Derivative, discard
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.text import format_size


@dataclass(frozen=True, slots=True)
class Removal:
    """What `rm` does to a model: the files we brought are deleted, a file of the user's is only forgotten."""

    library: Library
    model: Model

    @property
    def deletes(self) -> bool:
        """Whether files go, and not only what is remembered of them."""
        file = self.model.file
        brought = file is None or file.source in ("package", "hub", "derived") or self.is_own_merge
        return brought and not self.is_gone and not self.others

    @property
    def is_own_merge(self) -> bool:
        """Whether it was merged because it was pulled, and not to a place the user has named."""
        return self.model.path.parent == self.library.merges

    @property
    def is_gone(self) -> bool:
        """Whether its file is not there any more."""
        return is_missing(self.model.path)

    @property
    def others(self) -> list[str]:
        """The other names the same file has here."""
        entries = self.library.registry.entries() if self.model.file else ()
        return [each.name for each in entries if each.path == self.model.path and each != self.model.file]

    @property
    def derivatives(self) -> list[Model]:
        """What was made of it here, or of an earlier file of its name, and goes with it."""
        if self.others:
            return []
        library, model = self.library, self.model
        made = {each.name: each for each in library.derivatives(model)}
        for entry in library.registry.entries():
            if entry.original and Derivative.parse(entry.name).original == model.reference:
                made.setdefault(entry.name, library.registered(entry))
        return list(made.values())

    @property
    def question(self) -> str:
        """What to ask before it is done."""
        model, names = self.model, " and ".join(each.name for each in self.derivatives)
        too = f", and delete {names}, made of it" if names else ""
        if self.deletes:
            return f"Delete {model.reference}, {format_size(model.size)} in {model.path}{too}?"
        return f"Forget {model.reference}{'' if self.is_gone else f', and leave its file {model.path} alone'}{too}?"

    def execute(self) -> str:
        """Do it, and return what has been done."""
        library, model = self.library, self.model
        was_default, others, said = library.is_default(model), self.others, self._forgotten()
        derivatives = [Removal(library, each) for each in self.derivatives]
        if self.deletes:
            said = self._deleted()
        if model.file:
            library.registry.remove(model.file.name)
        if not others:
            library.registry.forget_use(model.usage_key)
        said = "; ".join((said, *(made.execute() for made in derivatives)))
        if not was_default:
            return said
        left = next((each for each in library.models() if library.is_ours(each) and not each.is_derived), None)
        library.registry.set_default(left.reference if left else None)
        moved = left is not None and left.reference != model.reference
        return f"{said}; {left.reference} is asked now when none is named" if left and moved else said

    def _forgotten(self) -> str:
        name, path = self.model.reference, self.model.path
        if self.is_gone:
            return f"{name} is forgotten; its file was gone already"
        return f"{name} is forgotten; {path} is left alone" + (f", {self.others[0]} uses it" if self.others else "")

    def _deleted(self) -> str:
        name, freed = self.model.reference, self._delete()
        if not freed:
            return f"{name} is gone from this revision; its file stays, since another in the cache uses it"
        return f"{name} is gone, {format_size(freed)} are free again"

    def _delete(self) -> int:
        model = self.model
        if self.is_own_merge or (model.file and model.file.source in ("package", "derived")):
            size = model.size
            (discard if model.is_derived else Path.unlink)(model.path)
            return size
        from cerebrum_cli.catalogue.hub import delete

        return delete(model.paths)


def plan_removal(library: Library, text: str) -> Removal:
    """Return what removing a model would do. ModelNotFound where it is neither here nor remembered."""
    if entry := library.registry.find(text):
        return Removal(library, library.registered(entry))
    try:
        return Removal(library, library.resolve(text))
    except ModelNotFound as error:
        raise ModelNotFound(error.message, "cerebrum list shows what is here", error.suggestions) from error
