"""Take a model away: what that does is said before it is done."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.application.library import Library
from cerebrum_cli.application.model import Model, is_missing
from cerebrum_cli.ground.errors import ModelNotFound
from cerebrum_cli.ground.text import size_text


@dataclass(frozen=True, slots=True)
class Removal:
    """What `rm` does to a model: the files we brought are deleted, a file of the user's is only forgotten."""

    library: Library
    model: Model

    @property
    def deletes(self) -> bool:
        """Whether files go, and not only what is remembered of them."""
        file = self.model.file
        return not is_missing(self.model.path) and (file is None or file.source in ("package", "hub"))

    @property
    def question(self) -> str:
        """What to ask before it is done."""
        model = self.model
        if self.deletes:
            return f"Delete {model.reference}, {size_text(model.size)} in {model.path}?"
        return f"Forget {model.reference}, and leave its file {model.path} alone?"

    def execute(self) -> str:
        """Do it, and return what has been done."""
        library, model = self.library, self.model
        was_default = library.is_default(model)
        deletes = self.deletes
        freed = self._delete() if deletes else 0
        if model.file:
            library.registry.remove(model.file.name)
        if was_default:
            left = next(iter(library.models()), None)
            library.registry.set_default(left.reference if left else None)
        if not deletes:
            return f"{model.reference} is forgotten; {model.path} is left alone"
        if not freed:
            return f"{model.reference} is gone from this revision; its file stays, since another in the cache uses it"
        return f"{model.reference} is gone, {size_text(freed)} are free again"

    def _delete(self) -> int:
        model = self.model
        if model.file and model.file.source == "package":
            size = model.size
            model.path.unlink()
            return size
        from cerebrum_cli.catalogue.hub import delete

        return delete(model.paths)


def removal(library: Library, text: str) -> Removal:
    """Return what removing a model would do. ModelNotFound where it is neither here nor remembered."""
    if entry := library.registry.find(text):
        return Removal(library, library.registered(entry))
    try:
        return Removal(library, library.resolve(text))
    except ModelNotFound as error:
        raise ModelNotFound(error.what, "cerebrum list shows what is here", error.near) from error
