"""Remove models: downloaded files are deleted, a user's own file is only removed from the registry."""

from __future__ import annotations

from contextlib import suppress

from cerebrum_cli.core import files
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import format_size
from cerebrum_cli.library.cache import Cache
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.library.registry import USED, Registry


@frozen
class Removal:
    """The removal of a model, which is asked about before it is carried out; `cache` is where its files may be."""

    registry: Registry
    cache: Cache
    model: InstalledModel

    @property
    def question(self) -> str:
        model = self.model
        if self._owns_files:
            return f"Delete {model.reference}, {format_size(model.size)} in {model.path}?"
        return f"Remove {model.reference} from the list, but keep its file?"

    def carry_out(self) -> str:
        """Remove the model, and return a report."""
        registry, model = self.registry, self.model
        report = f"removed {model.reference} from the list; its file is kept"
        if self._owns_files:
            source = model.is_converted and model.converted_from["source"]
            report = f"deleted {model.reference}, freed {format_size(self._delete())}"
            if source:
                report += f"; not deleted: the safetensors of {source}"
            files.remove(registry.directory / USED / model.usage_key)
        if model.entry:
            registry.remove(model.entry.name)
        return report

    @property
    def _is_own_file(self) -> bool:
        """Whether this program made the file, by a merge or conversion, or out of a package."""
        model = self.model
        return model.source in ("package", "converted") or model.path.parent == self.registry.merge_directory

    @property
    def _owns_files(self) -> bool:
        """Whether the model's files are there, belong to this program, and have no other name."""
        model = self.model
        if model.entry is None:
            return True
        file = model.path.resolve()
        names = [entry.name for entry in self.registry.entries() if entry.path.resolve() == file]
        if model.missing or len(names) > 1:
            return False
        return model.source == "hub" or self._is_own_file

    def _delete(self) -> int:
        """Delete the model's files, in all commits that have them, and return the number of freed bytes."""
        model = self.model
        if self._is_own_file:
            size = model.size
            model.path.unlink()
            if model.path.parent.parent == self.registry.conversion_directory:
                with suppress(OSError):  # other types of the same weights
                    model.path.parent.rmdir()
            return size
        from cerebrum_cli.library.hub import delete

        return delete(model.paths, self.cache.directory)
